"""What keeps the hosts of an inventory from training together: all that a run looks at before it starts anything."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.cluster.inventory import load_inventory
from trainer.cluster.nodes import muster
from trainer.errors import EXIT_OK, ClusterError


def run(inventory: Path, *, as_json: bool) -> int:
    """Examine the hosts and print what is wrong, with the command that mends it; returns 0, or 3 if something is."""
    cluster = load_inventory(inventory)
    notes: list[str] = []
    problems: list[str] = []
    if cluster.is_local:
        notes.append("all ranks run on this machine: there is no other host to examine")
    else:
        try:
            muster(cluster, allow_slow_link=False, say=notes.append)
            notes.append(f"{len(cluster.hosts)} hosts are reachable, provisioned and alike; the fast link is up on all")
        except ClusterError as error:
            problems = str(error).splitlines()
    if as_json:
        print(json.dumps({"healthy": not problems, "problems": problems, "notes": notes}, indent=2))
    else:
        print("\n".join(problems or notes))
    return ClusterError.exit_code if problems else EXIT_OK
