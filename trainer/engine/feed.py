"""What a rank computes at each step: its share of the global batch, as micro-batches that are ready to be computed.

The share depends on lengths, on the ranks' speeds, and on which host has a row's hidden state already. All of it is known to
all ranks, so each computes everybody's share and takes its own; what the global batch is does not depend on any of it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.comm.group import Comm
from trainer.config import RunConfig
from trainer.data.assign import CALIBRATED_AFTER, assign_rows, settle_speeds, split_micro_batches, steps_at_once
from trainer.data.batch import Batch, make_batch, pack_batch
from trainer.data.order import global_batch_at
from trainer.data.store import lengths_of
from trainer.data.tokens import TokenRow
from trainer.engine.frozen import FrozenTrunk
from trainer.engine.step import StepResult


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
        self.dealt: list[list[int]] = []  # the rows of each rank in the last step
        self._rates: list[list[float]] = []
        self._planned: dict[int, list[list[int]]] = {}  # step to the rows of each rank
        self._next: tuple[int, Future[list[Batch]]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._hosts: list[str] = comm.all_gather(socket.gethostname())

    def batches(self, step: int, tick: Callable[[int, int], None] = lambda _done, _total: None) -> list[Batch]:
        """Return this rank's micro-batches of optimizer step ``step`` (from 0); those of the next are made meanwhile.

        ``tick`` is told how far the trunk has come where hidden states must be computed first.
        """
        if step not in self._planned:
            self._plan(step, tick)
        rank = self._comm.rank
        is_ready = self._next and self._next[0] == step
        prepared = self._next[1].result() if self._next and is_ready else self._assemble(self._planned[step][rank])
        self.dealt = self._planned.pop(step)
        self._next = None
        if step + 1 in self._planned:
            self._next = (step + 1, self._pool.submit(self._assemble, self._planned[step + 1][rank]))
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

    def describe(self) -> dict[str, Any]:
        """Return what the coming shares depend on beside the rows, fit for JSON: a run that goes on deals out alike.

        Speeds are measured, and which rows have been through the trunk is the past's; equal shares on the same hosts are what
        makes a continued run equal to one that was never interrupted, bit by bit.
        """
        planned = {str(step): shares for step, shares in self._planned.items()}
        present = self._frozen.describe() if self._frozen else {}
        rates = [list(each) for each in self._rates]  # they go on while a checkpoint is written
        return {"hosts": self._hosts, "speeds": self.speeds, "rates": rates, "planned": planned, "present": present}

    def restore(self, told: Mapping[str, Any]) -> None:
        """Go on dealing out as what `describe` told; on other hosts, or another number of ranks, all is measured anew."""
        if list(told["hosts"]) != self._hosts or bool(told["present"]) != bool(self._frozen):
            return
        self.speeds = tuple(told["speeds"])
        self._rates = [list(rates) for rates in told["rates"]]
        self._planned = {int(step): shares for step, shares in told["planned"].items()}
        if self._frozen:
            self._frozen.restore(told["present"])
            self._frozen.fill("train", self._rows_ahead(), lambda _done, _total: None)

    def close(self) -> None:
        """End the thread that prepares batches."""
        self._pool.shutdown(cancel_futures=True)

    def _plan(self, step: int, tick: Callable[[int, int], None]) -> None:
        """Decide this rank's rows of ``step``, and of as many steps more as go through the trunk together."""
        train, rows = self._config.train, self._rows["train"]
        ahead = 1
        if self._frozen:
            tokens = sum(len(rows[int(i)]) for i in self._chosen(step)) / self._comm.size
            ahead = steps_at_once(tokens)
        last = self._config.train.steps or train.epochs * -(-len(rows) // train.global_batch)
        for planned in range(step, min(step + ahead, max(last, step + 1))):
            self._planned[planned] = self._deal_out(planned)
        if self._frozen:
            self._frozen.fill("train", self._rows_ahead(), tick)

    def _rows_ahead(self) -> list[int]:
        """Return the rows of this rank in all steps that are planned, in order."""
        return sorted({row for shares in self._planned.values() for row in shares[self._comm.rank]})

    def _chosen(self, step: int) -> NDArray[np.int64]:
        train = self._config.train
        return global_batch_at(step, len(self._rows["train"]), train.global_batch, train.seed)

    def _deal_out(self, step: int) -> list[list[int]]:
        """Return the rows of ``step`` that each rank computes."""
        chosen = [int(row) for row in self._chosen(step)]
        lengths = [len(self._rows["train"][row]) for row in chosen]
        costs = self._frozen.costs(chosen, lengths) if self._frozen else ()
        shares = assign_rows(lengths, self._comm.size, self.speeds, costs)
        dealt = [[chosen[p] for p in share] for share in shares]
        if self._frozen:
            self._frozen.note(dealt)
        return dealt

    def _assemble(self, own: Sequence[int]) -> list[Batch]:
        lengths = [len(self._rows["train"][row]) for row in own]
        groups = split_micro_batches(range(len(own)), lengths, self._config.train.micro_batch)
        return [self._make("train", [own[p] for p in group]) for group in groups]

    def _make(self, split: str, indices: Sequence[int]) -> Batch:
        rows = [self._rows[split][index] for index in indices]
        if not self._frozen:
            return self._pack(rows)
        return pack_batch(rows, self._frozen.entering(split, indices))
