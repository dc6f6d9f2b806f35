"""``python -P -m trainer.cluster.linkcheck``: an all-reduce over all ranks of an inventory, and which link carried it.

Prints ``{"world_size", "correct", "hosts": {host: {interface: {"rx", "tx"}}}, "share_fast", "seconds"}``; ends with exit
code 3 unless the ranks of all hosts met, got the right sum, and the fast network carried nearly all of it. It goes the
way that a run goes: survey, delivery of the code, mpirun on the head. On one machine there is no link: the share is null.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.cluster.errand import Errand, run_errand
from trainer.cluster.inventory import Cluster, load_inventory
from trainer.cluster.nodes import muster
from trainer.cluster.outcome import Line
from trainer.cluster.store import deliver, find_code
from trainer.cluster.traffic import sum_traffic
from trainer.config import LaunchConfig, RunConfig
from trainer.errors import EXIT_OK, ClusterError, FlotillaError
from trainer.events import Event

MIN_SHARE = 0.99
SIZE_MIB = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m trainer.cluster.linkcheck", description=__doc__)
    parser.add_argument("--inventory", type=Path, required=True)
    parser.add_argument("--backend", default="mpi", choices=("mpi", "ring", "jaccl"))
    parser.add_argument("--allow-slow-link", action="store_true", help="check the management network if need be")
    options = parser.parse_args(argv)
    try:
        result = check_links(load_inventory(options.inventory), options.backend, options.allow_slow_link)
    except FlotillaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(result))
    share = result["share_fast"]
    return EXIT_OK if result["correct"] and (share is None or share >= MIN_SHARE) else ClusterError.exit_code


def check_links(cluster: Cluster, backend: str = "mpi", allow_slow_link: bool = False) -> dict[str, Any]:
    """Return what ``main`` prints; raises `ClusterError` if the ranks could not be started or did not end well."""
    log = _Log()
    config = RunConfig(launch=LaunchConfig(backend=backend))  # type: ignore[arg-type]
    errand = Errand(name="linkcheck", config=config, words=("allreduce", "--size-mib", str(SIZE_MIB)))
    code = find_code()
    fleet = None if cluster.is_local else muster(cluster, allow_slow_link, _say)
    if fleet:
        deliver(fleet, [code], lambda *_: None)
    outcome = run_errand(errand, fleet.cluster if fleet else cluster, fleet, [code], log)
    reduced = [event for event in log.events if event["event"] == "reduced"]
    if outcome.exit_code or not reduced:
        raise ClusterError(outcome.message or "the ranks ended without a result")
    traffic = sum_traffic([event for event in log.events if event["event"] == "traffic"])
    return {
        "world_size": reduced[0]["world_size"],
        "correct": reduced[0]["correct"] and reduced[0]["world_size"] == cluster.world_size,
        "hosts": traffic["hosts"] if traffic else {},
        "share_fast": traffic["share"] if traffic else None,
        "seconds": round(reduced[0]["seconds"], 3),
    }


class _Log:
    """Keeps the events and tells the rest."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if event["event"] == "notice":
            _say(event["text"])

    def on_line(self, line: Line) -> None:
        _say(line.text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
