"""What a rank computes at each step: its share of the global batch, as micro-batches that are ready to be computed.

The share depends on lengths, on the ranks' speeds, and on which host has a row's hidden state already. All of it is known to
all ranks, so each computes everybody's share and takes its own; what the global batch is does not depend on any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.comm.group import Comm
from trainer.config import RunConfig
from trainer.data.assign import assign_rows, split_micro_batches
from trainer.data.batch import Batch, make_batch, pack_batch
from trainer.data.order import global_batch_at
from trainer.data.store import lengths_of
from trainer.data.tokens import TokenRow
from trainer.engine.frozen import FrozenTrunk
from trainer.engine.step import StepResult

CALIBRATED_AFTER = 8  # steps; the first is not counted
_ALIKE = 0.85  # ranks that are as fast as this share of the fastest count as equally fast
_AHEAD_TOKENS = 4096  # of a rank, that go through the trunk together
_MOST_AHEAD = 64  # steps


class Feed:
    """Gives a rank its micro-batches, step by step. Every rank calls every method, in the same order."""

    def __init__(
        self,
        rows: Mapping[str, Sequence[TokenRow]],
        config: RunConfig,
        comm: Comm,
        *,
        is_packed: bool,
        frozen: FrozenTrunk | None = None,
        speeds: Sequence[float] = (),
    ) -> None:
        """Deal out ``rows``. ``speeds`` are those of an earlier part of the run; without them they are measured."""
        self._rows, self._config, self._comm = rows, config, comm
        self._frozen = frozen
        self._pack = pack_batch if is_packed else make_batch
        self.speeds = tuple(speeds)
        self._rates: list[list[float]] = []
        self._planned: dict[int, list[int]] = {}
        self._next: tuple[int, Future[list[Batch]]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")

    def batches(self, step: int, tick: Callable[[int, int], None] = lambda _done, _total: None) -> list[Batch]:
        """Return this rank's micro-batches of optimizer step ``step`` (from 0); those of the next are made meanwhile.

        ``tick`` is told how far the trunk has come where hidden states must be computed first.
        """
        if step not in self._planned:
            self._plan(step, tick)
        prepared = self._next[1].result() if self._next and self._next[0] == step else self._assemble(self._planned[step])
        del self._planned[step]
        self._next = None
        if step + 1 in self._planned:
            self._next = (step + 1, self._pool.submit(self._assemble, self._planned[step + 1]))
        return prepared

    def validation(self, tick: Callable[[int, int], None] = lambda _done, _total: None) -> tuple[int, Iterator[Batch]]:
        """Return how many micro-batches of the validation split this rank has, and them one by one."""
        lengths = lengths_of(self._rows["valid"]).tolist()
        own = assign_rows(lengths, self._comm.size)[self._comm.rank]
        if self._frozen:
            self._frozen.fill("valid", own, tick)
        groups = split_micro_batches(own, lengths, self._config.train.micro_batch)
        return len(groups), (self._make("valid", group) for group in groups)

    def learn(self, result: StepResult) -> None:
        """Take note of how fast the ranks were, until their speeds are settled for the rest of the run."""
        if self.speeds or self._config.speed.balance == "tokens" or self._comm.size == 1:
            return
        self._rates.append([n / s if s else 0.0 for n, s in zip(result.rank_tokens, result.rank_compute_s, strict=True)])
        if len(self._rates) > CALIBRATED_AFTER:
            self.speeds = settle_speeds(self._rates[1:])

    def close(self) -> None:
        """End the thread that prepares batches."""
        self._pool.shutdown(cancel_futures=True)

    def _plan(self, step: int, tick: Callable[[int, int], None]) -> None:
        """Decide this rank's rows of ``step``, and of as many steps more as go through the trunk together."""
        train, rows = self._config.train, self._rows["train"]
        ahead = 1
        if self._frozen:
            tokens = sum(len(rows[int(i)]) for i in self._chosen(step)) / self._comm.size
            ahead = min(_MOST_AHEAD, max(1, int(_AHEAD_TOKENS / max(tokens, 1.0))))
        last = self._config.train.steps or train.epochs * -(-len(rows) // train.global_batch)
        for planned in range(step, min(step + ahead, max(last, step + 1))):
            self._planned[planned] = self._own_rows(planned)
        if self._frozen:
            self._frozen.fill("train", sorted({row for own in self._planned.values() for row in own}), tick)

    def _chosen(self, step: int) -> NDArray[np.int64]:
        train = self._config.train
        return global_batch_at(step, len(self._rows["train"]), train.global_batch, train.seed)

    def _own_rows(self, step: int) -> list[int]:
        chosen = [int(row) for row in self._chosen(step)]
        lengths = [len(self._rows["train"][row]) for row in chosen]
        costs = self._frozen.costs(chosen, lengths) if self._frozen else ()
        shares = assign_rows(lengths, self._comm.size, self.speeds, costs)
        if self._frozen:
            self._frozen.note([[chosen[p] for p in share] for share in shares])
        return [chosen[p] for p in shares[self._comm.rank]]

    def _assemble(self, own: Sequence[int]) -> list[Batch]:
        lengths = [len(self._rows["train"][row]) for row in own]
        groups = split_micro_batches(range(len(own)), lengths, self._config.train.micro_batch)
        return [self._make("train", [own[p] for p in group]) for group in groups]

    def _make(self, split: str, indices: Sequence[int]) -> Batch:
        rows = [self._rows[split][index] for index in indices]
        if not self._frozen:
            return self._pack(rows)
        return pack_batch(rows, self._frozen.entering(split, indices))


def settle_speeds(rates: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return each rank's speed relative to the fastest, from tokens a second of some steps; 1.0 for all that are about alike.

    Medians, and alike ranks exactly equal, so that hiccups do not decide who computes what. A rank that had no rows counts as
    alike.
    """
    seen: list[list[float]] = [[rate for rate in column if rate] for column in zip(*rates, strict=True)]
    middle: list[Any] = [median(column) if column else None for column in seen]
    fastest = max((rate for rate in middle if rate), default=1.0)
    relative = [rate / fastest if rate else 1.0 for rate in middle]
    return tuple(1.0 if share >= _ALIKE else share for share in relative)
