"""The doctor: what is wrong on which host of a cluster, how that is known, and the command that mends it.

`script` and `onhost` are what is asked, `probe` asks all hosts at once, `checks` is the table of failures, the ``judge_…``
modules tell from the answers alone whether one is there, `report` tells people, `reference` writes docs/failures.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from trainer.cluster.doctor.judge import judge_all
from trainer.cluster.doctor.probe import examine
from trainer.cluster.doctor.report import count_problems, list_findings, print_report, render_json
from trainer.cluster.doctor.view import Finding
from trainer.cluster.inventory import Cluster, load_inventory
from trainer.errors import EXIT_OK, ClusterError

__all__ = ["Finding", "quick", "run"]


def run(inventory: Path, as_json: bool) -> int:
    """Examine every host of an inventory and print what was found; returns 0, or 3 if there are problems.

    Raises `InputError` for an inventory that cannot be used. Takes less than 20 seconds, changes nothing.
    """
    fleet = examine(load_inventory(inventory))
    results = judge_all(fleet)
    if as_json:
        sys.stdout.write(render_json(fleet, results) + "\n")
    else:
        print_report(Console(highlight=False), fleet, results)
    return ClusterError.exit_code if count_problems(results) else EXIT_OK


def quick(cluster: Cluster) -> list[Finding]:
    """Return the problems and notes that a look of a few seconds finds, before every training; changes nothing."""
    findings = list_findings(judge_all(examine(cluster, only_quick=True), only_quick=True))
    return [finding for finding in findings if finding.severity != "unknown"]
