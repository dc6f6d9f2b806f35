"""What N of these hosts would bring: a step takes what its slowest rank computes, one all-reduce, and a fixed part."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import RunConfig
from trainer.measure.link import ASSUMED, Route, list_routes
from trainer.measure.schedule import Job, Member, list_members, make_job, schedule

MOST_HOSTS = 8
MOST_STEPS = 200  # of a longer run, as many are played


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Means over the steps of a run, in seconds and per second, over all ranks together."""

    step_s: float
    compute_s: float
    wait_s: float
    samples_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Played:
    """A job played on some hosts, before any communication: sums over its ``num_steps`` steps, seconds."""

    num_steps: int
    slowest_s: float
    mean_s: float
    fixed_s: float
    samples: float
    tokens: float

    def timing(self, comm_s: float) -> Timing:
        """Return the timing where an all-reduce takes ``comm_s``."""
        total = self.slowest_s + self.num_steps * (self.fixed_s + comm_s)
        return Timing(
            step_s=total / self.num_steps,
            compute_s=self.mean_s / self.num_steps + self.fixed_s,
            wait_s=(self.slowest_s - self.mean_s) / self.num_steps,
            samples_per_s=self.samples / total,
            tokens_per_s=self.tokens / total,
        )


def play(job: Job, members: Sequence[Member]) -> Played:
    """Return ``job`` as played on ``members``."""
    slowest, mean, samples, tokens = 0.0, 0.0, 0.0, 0.0
    for first, num_played, num_meant in _parts(job):
        seconds = schedule(job, members, num_played, first)
        batches = [job.chosen(step) for step in range(first, first + num_played)]
        weight = num_meant / num_played
        slowest += weight * float(seconds.max(axis=1).sum())
        mean += weight * float(seconds.mean(axis=1).sum())
        samples += weight * sum(map(len, batches))
        tokens += weight * sum(job.rows[row][0] - 1 for batch in batches for row in batch)
    return Played(
        num_steps=job.steps,
        slowest_s=slowest,
        mean_s=mean,
        fixed_s=max(member.cost.step_s for member in members),
        samples=samples,
        tokens=tokens,
    )


def _parts(job: Job) -> list[tuple[int, int, int]]:
    """Return what is played of a job, as (first step, steps played, steps that these stand for).

    A long run is two samples, where its first epoch differs from the others: there the frozen layers are computed.
    """
    if job.steps <= MOST_STEPS:
        return [(0, job.steps, job.steps)]
    early = min(job.steps, job.epoch_steps)
    if not job.trunk_ratio or job.is_kept or early == job.steps:
        return [(0, MOST_STEPS, job.steps)]
    later = job.steps - early
    half = MOST_STEPS // 2
    return [(0, min(early, half), early), (early, min(later, half), later)]


def predict(baseline: Mapping[str, Any], config: RunConfig | None = None, *, is_kept: bool = False) -> list[dict[str, Any]]:
    """Return the predictions for 1 to `MOST_HOSTS` hosts on every measured route, strong scaling and weak.

    Strong scaling keeps the global batch: the same result, sooner. Weak scaling makes it N times as large.
    With N hosts the fastest N take part; beyond those that exist, hosts like them. Speed-up is against the fastest host alone.
    ``is_kept``: what the frozen layers put out is there from an earlier run.
    """
    members = list_members(baseline)
    if not members:
        return []
    job = make_job(baseline, config, is_kept=is_kept)
    local_s = _local_s(baseline, members[0], job)
    alone = play(job, members[:1]).timing(local_s)
    found = [_entry("strong", members[:1], None, alone, alone, local_s, job)]
    for num_hosts, scaling in itertools.product(range(2, MOST_HOSTS + 1), ("strong", "weak")):
        chosen = extend(members, num_hosts)
        asked = job if scaling == "strong" else job.scaled(num_hosts)
        played = play(asked, chosen)
        for route in [*list_routes(baseline), *ASSUMED]:
            comm_s = _comm_s(route, chosen, job)
            if comm_s is not None:
                found.append(_entry(scaling, chosen, route, played.timing(comm_s), alone, comm_s, asked))
    return sorted(found, key=_by_route(found))


def _by_route(entries: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], tuple[int, str, int]]:
    """Return the order in which they are told: by route as found, strong scaling first, from few hosts to many."""
    routes = list(dict.fromkeys((entry["network"], entry["backend"]) for entry in entries))
    return lambda entry: (routes.index((entry["network"], entry["backend"])), entry["scaling"], entry["num_hosts"])


def _comm_s(route: Route, members: Sequence[Member], job: Job) -> float | None:
    num_ranks = sum(member.ranks for member in members)
    return route.all_reduce_s([member.name for member in members], num_ranks, job.payload_bytes)


def extend(members: Sequence[Member], num_hosts: int) -> list[Member]:
    """Return the first ``num_hosts`` members; where there are fewer, the missing ones are like those there are."""
    missing = max(0, num_hosts - len(members))
    likes = itertools.islice(itertools.cycle(members), missing)
    return [*members[:num_hosts], *(dataclasses.replace(member, name=f"like {member.name}") for member in likes)]


def _local_s(baseline: Mapping[str, Any], member: Member, job: Job) -> float:
    """Return the seconds of the all-reduce among the ranks of one host, 0 for a single rank."""
    routes = [route for route in list_routes(baseline) if frozenset({member.name}) in route.sweeps]
    times = [route.all_reduce_s([member.name], member.ranks, job.payload_bytes) for route in routes if route.backend == "mpi"]
    return next((seconds for seconds in times if seconds), 0.0)


def _entry(
    scaling: str, members: Sequence[Member], route: Route | None, timing: Timing, alone: Timing, comm_s: float, job: Job
) -> dict[str, Any]:
    speedup = timing.samples_per_s / alone.samples_per_s
    return {
        "scaling": scaling,
        "num_hosts": len(members),
        "hosts": [member.name for member in members],
        "network": route.network if route else None,
        "is_fast": route.is_fast if route else None,
        "backend": route.backend if route else None,
        "is_assumed": route in ASSUMED,
        **dataclasses.asdict(timing),
        "comm_s": comm_s,
        "speedup": speedup,
        "efficiency": speedup / len(members),
        "run_s": job.steps * timing.step_s,
    }
