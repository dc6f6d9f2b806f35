"""Rehearsing a run: the real links and collectives, compute replaced by waiting as long as a baseline measured.

So the prediction of communication among N hosts can be tested where they have no cores to compute with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.cluster.errand import Errand, run_errand
from trainer.cluster.inventory import Cluster
from trainer.cluster.launch import JobError, Watcher
from trainer.cluster.nodes import Fleet
from trainer.cluster.outcome import Line
from trainer.cluster.store import find_code
from trainer.config import parse_config
from trainer.errors import InputError
from trainer.events import Event
from trainer.measure.link import Route, list_routes
from trainer.measure.predict import extend
from trainer.measure.schedule import Member, list_members, make_job, schedule


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """Predicted and measured seconds of a step, and of the communication in it, among ``num_hosts`` hosts."""

    num_hosts: int
    backend: str
    predicted_step_s: float
    step_s: float
    predicted_comm_s: float
    comm_s: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured; negative if it was too short."""
        return self.predicted_step_s / self.step_s - 1


def rehearse(
    baseline: Mapping[str, Any],
    cluster: Cluster,
    fleet: Fleet | None,
    num_hosts: int,
    steps: int,
    backend: str,
    watcher: Watcher,
) -> Rehearsed:
    """Rehearse ``steps`` steps on the first ``num_hosts`` hosts of ``cluster``; the code must be on the fleet's hosts.

    Raises `InputError` for a route that the baseline has not measured, `JobError` if the ranks fail.
    """
    members = extend(list_members(baseline), num_hosts)
    members = [
        dataclasses.replace(member, ranks=host.slots) for member, host in zip(members, cluster.hosts[:num_hosts], strict=True)
    ]
    job = make_job(baseline)
    kind = "local" if fleet is None else "slow" if fleet.is_slow else "fast"
    comm_s = _predict_comm(baseline, members, backend, kind, job.payload_bytes)
    seconds = schedule(job, members, steps)
    fixed_s = max(member.cost.step_s for member in members)
    table = {"seconds": seconds.tolist(), "payload_bytes": job.payload_bytes, "fixed_s": fixed_s}
    config = parse_config({**baseline["config"], "launch": {**baseline["config"]["launch"], "backend": backend}})
    errand = Errand(name="rehearsal", config=config, words=("rehearse",), files={"schedule.json": json.dumps(table)})
    heard = _Heard(watcher)
    some = dataclasses.replace(cluster, hosts=cluster.hosts[:num_hosts])
    outcome = run_errand(errand, some, fleet, [find_code()], heard)
    if outcome.exit_code:
        raise JobError(outcome)
    return Rehearsed(
        num_hosts=num_hosts,
        backend=backend,
        predicted_step_s=float(seconds.max(axis=1).mean()) + fixed_s + comm_s,
        step_s=sum(heard.rehearsed["step_s"]) / steps,
        predicted_comm_s=comm_s,
        comm_s=sum(heard.rehearsed["comm_s"]) / steps,
    )


def _predict_comm(baseline: Mapping[str, Any], members: list[Member], backend: str, kind: str, payload_bytes: int) -> float:
    """Return the predicted seconds of one all-reduce on the route of the same kind, whatever its addresses."""
    names, ranks = [member.name for member in members], sum(member.ranks for member in members)
    for route in _routes_of(baseline, backend, kind):
        seconds = route.all_reduce_s(names, ranks, payload_bytes)
        if seconds is not None:
            return seconds
    raise InputError(f"the baseline {baseline['name']} has no all-reduce of {backend} over a {kind} link; measure it first")


def _routes_of(baseline: Mapping[str, Any], backend: str, kind: str) -> list[Route]:
    """Return the baseline's routes of one kind: "local", "slow" or "fast"."""
    found = [route for route in list_routes(baseline) if route.backend == backend]
    return [route for route in found if kind == ("fast" if route.is_fast else "slow" if route.network else "local")]


class _Heard:
    """Keeps what rank 0 tells of the rehearsal and passes the rest on."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.rehearsed: Event = {}

    def on_event(self, event: Event) -> None:
        """Take an event."""
        if event["event"] == "rehearsed":
            self.rehearsed = event
        else:
            self._watcher.on_event(event)

    def on_line(self, line: Line) -> None:
        """Pass a line on."""
        self._watcher.on_line(line)
