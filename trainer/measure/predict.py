"""What N of these hosts would bring: the run's own schedule, played with measured times.

Every step of the run is known beforehand: which rows, on which rank, in which micro-batches (`trainer.data`). So padding and
uneven shares are not estimated but counted. A step takes what its slowest rank computes, one all-reduce, and a fixed part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import RunConfig
from trainer.data.assign import assign_rows, split_micro_batches
from trainer.data.order import global_batch_at, steps_per_epoch
from trainer.measure.cost import Cost, fit_cost
from trainer.measure.link import ASSUMED, Route, list_routes

MOST_HOSTS = 8
MOST_STEPS = 200  # of a longer run, as many are played
_SEED = 20_261_124


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run computes: its rows as (tokens, supervised tokens), and the settings that deal them out."""

    rows: Sequence[tuple[int, int]]
    num_rows: int
    steps: int
    global_batch: int
    micro_batch: int
    seed: int
    payload_bytes: int

    def scaled(self, factor: int) -> Job:
        """Return the job with a global batch ``factor`` times as large."""
        return dataclasses.replace(self, global_batch=self.global_batch * factor)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A host that takes part: its name, its ranks, and what a micro-batch costs on one of them."""

    name: str
    ranks: int
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Means over the steps of a run, in seconds and per second, over all ranks together."""

    step_s: float
    compute_s: float
    wait_s: float
    samples_per_s: float
    tokens_per_s: float


def make_job(baseline: Mapping[str, Any], config: RunConfig | None = None) -> Job:
    """Return the job that a baseline measured, with the ``train`` settings of ``config`` if it is given."""
    measured = baseline["job"]
    train = config.train if config else None
    num_rows = measured["rows"]
    batch = train.global_batch if train else measured["global_batch"]
    steps = measured["steps"]
    if train:
        steps = train.steps or train.epochs * steps_per_epoch(num_rows, batch)
    return Job(
        rows=[(int(tokens), int(supervised)) for tokens, supervised in measured["lengths"]],
        num_rows=num_rows,
        steps=steps,
        global_batch=batch,
        micro_batch=train.micro_batch if train else measured["micro_batch"],
        seed=train.seed if train else measured["seed"],
        payload_bytes=measured["payload_bytes"],
    )


def list_members(baseline: Mapping[str, Any]) -> list[Member]:
    """Return the hosts whose training was measured, the fastest first."""
    members = [
        Member(name=name, ranks=host["ranks"], cost=fit_cost(host["training"]))
        for name, host in baseline["hosts"].items()
        if host.get("training")
    ]
    return sorted(members, key=lambda member: member.cost.seconds(1000, 500) / member.ranks)


def schedule(job: Job, members: Sequence[Member], num_steps: int) -> NDArray[np.float64]:
    """Return the seconds [steps, ranks] that each rank computes in each of the first ``num_steps`` steps, noise included."""
    noise = np.random.Generator(np.random.Philox(_SEED))
    costs = [(member.cost, np.array(member.cost.ratios)) for member in members for _ in range(member.ranks)]
    seconds = np.zeros((num_steps, len(costs)))
    for step in range(num_steps):
        chosen = [job.rows[int(row)] for row in global_batch_at(step, len(job.rows), job.global_batch, job.seed)]
        lengths = [tokens for tokens, _ in chosen]
        for rank, (own, (cost, ratios)) in enumerate(zip(assign_rows(lengths, len(costs)), costs, strict=True)):
            for group in split_micro_batches(own, lengths, job.micro_batch):
                padded = len(group) * (max(lengths[position] for position in group) - 1)
                supervised = sum(chosen[position][1] for position in group)
                seconds[step, rank] += cost.seconds(padded, supervised) * ratios[noise.integers(len(ratios))]
    return seconds


@dataclass(frozen=True, kw_only=True)
class Played:
    """A job played on some hosts, before any communication: sums over ``num_steps`` steps, seconds."""

    num_steps: int
    slowest_s: float
    mean_s: float
    fixed_s: float
    samples: int
    tokens: int

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
    num_steps = min(job.steps, MOST_STEPS)
    seconds = schedule(job, members, num_steps)
    batches = [global_batch_at(step, len(job.rows), job.global_batch, job.seed) for step in range(num_steps)]
    return Played(
        num_steps=num_steps,
        slowest_s=float(seconds.max(axis=1).sum()),
        mean_s=float(seconds.mean(axis=1).sum()),
        fixed_s=max(member.cost.step_s for member in members),
        samples=sum(len(batch) for batch in batches),
        tokens=sum(job.rows[int(row)][0] - 1 for batch in batches for row in batch),
    )


def predict(baseline: Mapping[str, Any], config: RunConfig | None = None) -> list[dict[str, Any]]:
    """Return the predictions for 1 to `MOST_HOSTS` hosts on every measured route, strong scaling and weak.

    Strong scaling keeps the global batch: the same result, sooner. Weak scaling makes it N times as large.
    With N hosts the fastest N take part; beyond those that exist, hosts like them. Speed-up is against the fastest host alone.
    """
    members = list_members(baseline)
    if not members:
        return []
    job = make_job(baseline, config)
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
