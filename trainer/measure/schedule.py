"""The run's own schedule, played with measured times.

Every step of a run is known beforehand: which rows, on which rank, in which micro-batches (`trainer.data.assign`). So padding,
uneven shares, and which host computes the frozen layers for a row are not estimated but counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import RunConfig
from trainer.data.assign import CALIBRATED_AFTER, assign_rows, settle_speeds, split_micro_batches, steps_at_once, weigh_rows
from trainer.data.order import global_batch_at, steps_per_epoch
from trainer.measure.cost import Cost, fit_cost

_SEED = 20_261_124


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run computes: its rows as (tokens, supervised tokens), and the settings that deal them out.

    ``trunk_ratio`` is the frozen layers' work for a token over the rest's; 0 where their output is not kept. ``is_kept``: the
    output is there for all rows before the first step, from an earlier run.
    """

    rows: Sequence[tuple[int, int]]
    num_rows: int
    steps: int
    global_batch: int
    micro_batch: int
    seed: int
    payload_bytes: int
    is_packed: bool
    balance: str
    trunk_ratio: float
    is_kept: bool = False

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(self.num_rows, self.global_batch)

    def scaled(self, factor: int) -> Job:
        """Return the job with a global batch ``factor`` times as large."""
        return dataclasses.replace(self, global_batch=self.global_batch * factor)

    def chosen(self, step: int) -> list[int]:
        """Return the rows of the global batch of ``step``, from 0."""
        return [int(row) for row in global_batch_at(step, len(self.rows), self.global_batch, self.seed)]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A host that takes part: its name, its ranks, and what a micro-batch costs on one of them."""

    name: str
    ranks: int
    cost: Cost


def make_job(baseline: Mapping[str, Any], config: RunConfig | None = None, *, is_kept: bool = False) -> Job:
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
        is_packed=measured["is_packed"],
        balance=config.speed.balance if config else baseline["config"]["speed"]["balance"],
        trunk_ratio=measured["trunk_ratio"],
        is_kept=is_kept,
    )


def list_members(baseline: Mapping[str, Any]) -> list[Member]:
    """Return the hosts whose training was measured, the fastest first."""
    members = [
        Member(name=name, ranks=host["ranks"], cost=fit_cost(host["training"]))
        for name, host in baseline["hosts"].items()
        if host.get("training")
    ]
    return sorted(members, key=lambda member: member.cost.seconds(1000, 500) / member.ranks)


def schedule(job: Job, members: Sequence[Member], num_steps: int, first: int = 0) -> NDArray[np.float64]:
    """Return the seconds [steps, ranks] that each rank computes in each of ``num_steps`` steps from ``first`` on.

    Noise included. Where the output of frozen layers is kept, the steps before ``first`` have left each row's on one host.
    """
    return np.array(list(_Dealer(job, members, first).play(num_steps)))


class _Dealer:
    """Deals rows out as `trainer.engine.feed.Feed` does, and adds up what they cost."""

    def __init__(self, job: Job, members: Sequence[Member], first: int) -> None:
        self.job, self.first = job, first
        self.costs = [member.cost for member in members for _ in range(member.ranks)]
        self.host_of = [host for host, member in enumerate(members) for _ in range(member.ranks)]
        self.speeds: tuple[float, ...] = ()
        self.rates: list[list[float]] = []
        self.noise = np.random.Generator(np.random.Philox(_SEED))
        owner = np.arange(len(job.rows)) % len(members)
        self.is_kept = [owner == host if first else np.full(len(job.rows), job.is_kept) for host in range(len(members))]

    def play(self, num_steps: int) -> Iterator[list[float]]:
        """Yield each step's seconds by rank; the frozen layers of several steps' rows are computed before the first of them."""
        shares: list[list[list[int]]] = []
        trunk_s = [0.0] * len(self.costs)
        for step in range(self.first, self.first + num_steps):
            if not shares:
                tokens = sum(self.job.rows[row][0] for row in self.job.chosen(step)) / len(self.costs)
                ahead = steps_at_once(tokens) if self.job.trunk_ratio else 1
                last = min(step + ahead, self.first + num_steps)
                missing, shares = self._deal(range(step, last))
                trunk_s = [cost.trunk_s * count for cost, count in zip(self.costs, missing, strict=True)]
            own = [self._compute(share, cost) for share, cost in zip(shares[0], self.costs, strict=True)]
            self._settle(shares.pop(0), own)
            yield [seconds + before for seconds, before in zip(own, trunk_s, strict=True)]
            trunk_s = [0.0] * len(self.costs)

    def _deal(self, steps: Sequence[int]) -> tuple[list[int], list[list[list[int]]]]:
        """Return how many tokens each rank sends through the frozen layers, and each step's rows by rank."""
        missing, found = [0] * len(self.costs), []
        for step in steps:
            chosen = self.job.chosen(step)
            shares = [[chosen[position] for position in share] for share in self._assign(chosen)]
            for rank, share in enumerate(shares):
                kept = self.is_kept[self.host_of[rank]]
                missing[rank] += sum(self.job.rows[row][0] - 1 for row in share if not kept[row])
            for rank, share in enumerate(shares):
                self.is_kept[self.host_of[rank]][share] = True
            found.append(shares)
        return missing, found

    def _assign(self, chosen: Sequence[int]) -> list[list[int]]:
        lengths = [self.job.rows[row][0] for row in chosen]
        if not self.job.trunk_ratio:
            return assign_rows(lengths, len(self.costs), self.speeds)
        by_host = [weigh_rows(lengths, kept[chosen].tolist(), self.job.trunk_ratio) for kept in self.is_kept]
        return assign_rows(lengths, len(self.costs), self.speeds, [by_host[host] for host in self.host_of])

    def _compute(self, share: Sequence[int], cost: Cost) -> float:
        lengths = [self.job.rows[row][0] for row in share]
        total = 0.0
        for group in split_micro_batches(range(len(share)), lengths, self.job.micro_batch):
            inputs = [lengths[position] - 1 for position in group]
            padded = sum(inputs) if self.job.is_packed else len(inputs) * max(inputs)
            supervised = sum(self.job.rows[share[position]][1] for position in group)
            total += cost.seconds(padded, supervised) * cost.ratios[self.noise.integers(len(cost.ratios))]
        return total

    def _settle(self, shares: Sequence[Sequence[int]], seconds: Sequence[float]) -> None:
        if self.speeds or self.job.balance == "tokens" or len(self.costs) == 1:
            return
        tokens = [sum(self.job.rows[row][0] - 1 for row in share) for share in shares]
        self.rates.append([count / taken if taken else 0.0 for count, taken in zip(tokens, seconds, strict=True)])
        if len(self.rates) > CALIBRATED_AFTER:
            self.speeds = settle_speeds(self.rates[1:])
