"""What makes a run's numbers worthless, noticed while it goes on: divergence, and ranks whose parameters are not the same."""

from __future__ import annotations

import hashlib
import socket
from collections import Counter
from typing import TYPE_CHECKING

from trainer.engine.checkpoint import collect_state, to_bytes
from trainer.engine.step import StepResult
from trainer.errors import ClusterError, DivergedError

if TYPE_CHECKING:
    from trainer.engine.loop import Run

_MOST_SKIPPED = 3  # steps in a row that are left out before the run is given up


class Sentry:
    """Looks at each step of ``run``. Every rank has one; `look` and `compare` are collectives."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._in_a_row = 0

    def look(self, step: int, result: StepResult) -> None:
        """Tell of a step that was not applied, with its samples, and compare the ranks' states when it is time.

        Raises `DivergedError` at the third in a row that was not applied, `ClusterError` where states differ.
        """
        self._in_a_row = 0 if result.is_applied else self._in_a_row + 1
        if not result.is_applied:
            self._tell_skipped(step, result)
        if self._in_a_row == _MOST_SKIPPED:
            raise DivergedError(
                f"step {step}: the loss is {result.loss} and the gradient's norm {result.grad_norm}, "
                f"the {_MOST_SKIPPED}rd step in a row that is not finite; lower optimizer.learning_rate or "
                f"raise schedule.warmup_steps{self._find_way_back()}"
            )
        every = self._run.config.train.compare_every
        if every and step % every == 0:
            self.compare(step)

    def compare(self, step: int) -> None:
        """Raise `ClusterError` on all ranks unless they hold the same parameters and moments, bit by bit."""
        run = self._run
        digest = hashlib.sha256()
        for name, value in collect_state(run.model, run.step.optimizer).items():
            digest.update(name.encode())
            digest.update(to_bytes(value))
        seen = run.comm.all_gather((digest.hexdigest(), socket.gethostname()))
        [(common, count)] = Counter(theirs for theirs, _ in seen).most_common(1)
        if count < len(seen):
            odd = ", ".join(f"rank {rank} on {host}" for rank, (theirs, host) in enumerate(seen) if theirs != common)
            raise ClusterError(
                f"after step {step} the ranks' parameters are not the same: {odd} has others than most; "
                f"its memory or its link is not to be trusted{self._find_way_back()}"
            )

    def _tell_skipped(self, step: int, result: StepResult) -> None:
        """Name the samples of the ranks whose share was not finite; of all, if only the sum is not."""
        run = self._run
        ranks = [rank for rank, is_finite in enumerate(run.comm.all_gather(result.is_finite_here)) if not is_finite]
        shares = [run.feed.dealt[rank] for rank in ranks or range(run.comm.size)]
        samples = sorted(row + 1 for share in shares for row in share)
        run.tell("skipped", step=step, loss=result.loss, grad_norm=result.grad_norm, ranks=ranks, samples=samples)
        named = ", ".join(map(str, samples))
        run.tell("notice", text=f"step {step} is not applied, its loss is {result.loss}: look at the training samples {named}")

    def _find_way_back(self) -> str:
        kept = self._run.bookmark.last_step()
        return f"; the last good checkpoint is that of step {kept}" if kept else "; there is no checkpoint yet"
