"""``python -P -m trainer.cluster.deliver``: bring code, model and data to the hosts of an inventory, as a run would.

Prints ``{"changed": …, "hosts": {host: {"code": "present" | "sent" | "missing", …}}}``; "missing" only with --check,
which sends nothing. The Ansible role ``artifacts`` calls it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.cluster.inventory import Cluster, Host, load_inventory
from trainer.cluster.launch import Inputs, JobError, prepare
from trainer.cluster.nodes import muster
from trainer.cluster.outcome import Line
from trainer.cluster.several import find_artifacts, send_all, tell_states
from trainer.cluster.ssh import on_all
from trainer.cluster.store import Artifact, find_missing
from trainer.errors import EXIT_OK, ClusterError, FlotillaError
from trainer.events import Event
from trainer.paths import PROJECT_ROOT, find_beside
from trainer.recipe import DEFAULT_RECIPE, load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m trainer.cluster.deliver", description=__doc__)
    parser.add_argument("--inventory", type=Path, required=True)
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="whose model and data to bring")
    parser.add_argument("--check", action="store_true", help="send nothing; tell what is missing")
    parser.add_argument("--allow-slow-link", action="store_true", help="send over the management network if need be")
    options = parser.parse_args(argv)
    try:
        print(json.dumps(_deliver(options)))
    except FlotillaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except JobError as failed:
        print(failed.outcome.message, file=sys.stderr)
        return failed.outcome.exit_code
    return EXIT_OK


def _deliver(options: argparse.Namespace) -> dict[str, object]:
    cluster = load_inventory(options.inventory)
    config = load_config(options.recipe)
    if cluster.is_local:  # the ranks use this machine's own files
        return {"changed": False, "hosts": {host.name: {} for host in cluster.hosts}}
    fleet = None if options.check else muster(cluster, options.allow_slow_link, _say)
    inputs = Inputs(cluster=cluster, config=config, data=find_beside(config.data.path, PROJECT_ROOT), name="deliver")
    model, fingerprints = prepare(inputs, Narrator())
    artifacts = find_artifacts(inputs, model, fingerprints)
    if fleet:
        hosts = send_all(fleet, artifacts, Narrator().tell_progress)
    else:
        hosts = tell_states(artifacts, _predict_missing(cluster, artifacts), "missing")
    return {"changed": any(state != "present" for kinds in hosts.values() for state in kinds.values()), "hosts": hosts}


def _predict_missing(cluster: Cluster, artifacts: list[Artifact]) -> dict[str, list[Artifact]]:
    """Return what each host lacks; a host that has no Python of ours yet, or does not let us in yet, lacks everything."""

    def look(host: Host) -> list[Artifact]:
        try:
            return find_missing(dataclasses.replace(cluster, hosts=(host,)), artifacts)[host.name]
        except ClusterError as error:
            _say(f"{error}; so everything is taken to be missing there")
            return list(artifacts)

    return on_all(cluster.hosts, look)


class Narrator:
    """Tells on standard error what goes on, a line for each tenth of the way."""

    def __init__(self) -> None:
        self._said: tuple[str, int] = ("", -1)

    def on_event(self, event: Event) -> None:
        """Show a notice."""
        if event["event"] == "notice":
            _say(event["text"])

    def on_line(self, line: Line) -> None:
        """Take other output, which nobody needs."""

    def tell_progress(self, phase: str, done: int, total: int) -> None:
        """Show how far a transfer has come."""
        tenth = 10 * done // max(total, 1)
        if (phase, tenth) != self._said:
            self._said = (phase, tenth)
            _say(f"{phase}: {done} of {total} MiB")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
