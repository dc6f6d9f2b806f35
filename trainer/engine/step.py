"""One optimizer step, exact for any number of ranks.

With L_i the loss summed over the supervised tokens of row i and n_i their number, the gradient of the global batch is
``sum_i grad L_i / sum_i n_i``. Each rank adds up what its own rows contribute, one flat float32 all-reduce adds the
ranks, and one division by the global token count follows. Averaging the ranks' means instead is off by as much as their
token counts differ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from trainer.comm.group import Comm, to_floats
from trainer.data.batch import Batch
from trainer.model.loss import summed_loss
from trainer.model.network import Network

Named = list[tuple[str, mx.array]]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, over all ranks. Times in seconds, as this rank saw them.

    ``comm_s`` is the all-reduce proper; ``wait_s`` is how long this rank waited for the slowest before it.
    ``rank_tokens`` and ``rank_compute_s`` hold a number for each rank. ``stop`` is true if any rank was asked to stop;
    ``wishes`` are the sums of what the ranks wished. A step whose loss or gradient is not finite ``is_applied`` on no rank;
    ``is_finite_here`` says whether what this rank added was finite.
    """

    loss: float
    grad_norm: float
    num_supervised: int
    compute_s: float
    comm_s: float
    wait_s: float
    rank_tokens: tuple[int, ...]
    rank_compute_s: tuple[float, ...]
    stop: bool
    wishes: tuple[float, ...] = ()
    is_applied: bool = True
    is_finite_here: bool = True


@dataclass(frozen=True)
class Reduced:
    """The result of `reduce_gradients`: averaged gradients by name, and the sums that travelled with them."""

    gradients: Named
    loss_sum: float
    num_supervised: int
    extra: tuple[float, ...]


def trainable_parameters(model: nn.Module) -> Named:
    """Return the trainable parameters sorted by name, the order in which they lie in the flat vector."""
    return sorted(tree_flatten(model.trainable_parameters()))


def local_gradients(network: Network, batches: Sequence[Batch], *, fused: bool = True) -> tuple[mx.array, Named]:
    """Return loss and gradients summed over ``batches`` (any number of them, also none), float32 and materialised.

    Memory is that of one micro-batch: each one's gradients are added up before the next is computed.
    """
    model = network.model
    value_and_grad = nn.value_and_grad(model, lambda batch: summed_loss(network, batch, fused=fused))
    names = [name for name, _ in trainable_parameters(model)]
    loss = mx.zeros(())
    total: Named = [(name, mx.zeros(value.shape)) for name, value in trainable_parameters(model)]
    for batch in batches:
        if batch.num_supervised == 0:
            continue
        batch_loss, tree = value_and_grad(batch)
        gradients = dict(tree_flatten(tree))
        loss = loss + batch_loss
        total = [
            (name, value + gradients[name].astype(mx.float32)) for name, value in zip(names, map(_second, total), strict=True)
        ]
        mx.eval(loss, total)
    return loss, total


def reduce_gradients(comm: Comm, loss: mx.array, gradients: Named, num_supervised: int, extra: Sequence[float] = ()) -> Reduced:
    """Average the ranks' summed ``gradients`` over all supervised tokens in one flat float32 all-reduce; a collective.

    ``extra`` (of equal length on all ranks) travels along and comes back summed. Token counts are exact up to 2**24.
    A global batch without any supervised token has the gradient 0.
    """
    numbers = mx.array([num_supervised, *extra], dtype=mx.float32)
    flat = mx.concatenate([*(value.reshape(-1) for _, value in gradients), loss.reshape(1), numbers])
    total = comm.all_sum(flat)
    split = total.size - numbers.size - 1
    loss_sum, tokens, *sums = to_floats(total[split:])
    averaged = total[:split] / max(tokens, 1.0)
    return Reduced(_unflatten(averaged, gradients), loss_sum, int(tokens), tuple(sums))


def clip_gradients(gradients: Named, max_norm: float) -> tuple[Named, mx.array]:
    """Return ``gradients`` scaled down to an L2 norm of at most ``max_norm`` (0: unchanged), and the norm before."""
    norm = mx.sqrt(sum((mx.sum(mx.square(value)) for _, value in gradients), mx.zeros(())))
    if not max_norm:
        return gradients, norm
    scale = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return [(name, value * scale) for name, value in gradients], norm


class TrainStep:
    """Applies optimizer steps to ``network``. A collective: every rank calls it for every step, with or without rows."""

    def __init__(
        self,
        network: Network,
        optimizer: optim.Optimizer,
        comm: Comm,
        clip_norm: float,
        *,
        fused_loss: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
        wishes: Callable[[], Sequence[float]] = tuple,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self._fused_loss = fused_loss
        self._comm = comm
        self._clip_norm = clip_norm
        self._should_stop = should_stop
        self._wishes = wishes
        self._clock = clock

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """Compute this rank's ``batches``, average with the other ranks, update the parameters if the result is finite."""
        started = self._clock()
        loss, gradients = local_gradients(self.network, batches, fused=self._fused_loss)
        compute_s = self._clock() - started
        num_tokens = sum(batch.num_tokens for batch in batches)
        num_supervised = sum(batch.num_supervised for batch in batches)
        extra = [float(self._should_stop()), *self._own_slot(num_tokens), *self._own_slot(compute_s), *self._wishes()]
        before = self._clock()
        reduced = reduce_gradients(self._comm, loss, gradients, num_supervised, extra)
        reduce_s = self._clock() - before
        norm, is_applied = self._apply(reduced)
        size = self._comm.size
        rank_compute_s = reduced.extra[1 + size : 1 + 2 * size]
        wait_s = min(reduce_s, max(rank_compute_s) - compute_s)
        return StepResult(
            loss=reduced.loss_sum / max(reduced.num_supervised, 1),
            grad_norm=norm,
            num_supervised=reduced.num_supervised,
            compute_s=compute_s,
            comm_s=reduce_s - wait_s,
            wait_s=wait_s,
            rank_tokens=tuple(int(n) for n in reduced.extra[1 : 1 + size]),
            rank_compute_s=rank_compute_s,
            stop=reduced.extra[0] > 0,
            wishes=reduced.extra[1 + 2 * size :],
            is_applied=is_applied,
            is_finite_here=is_applied or _is_finite(loss, gradients),
        )

    def _apply(self, reduced: Reduced) -> tuple[float, bool]:
        """Update the parameters unless that would spoil them; returns the gradient's norm, and whether they were updated.

        What was reduced is the same on all ranks, bit by bit, so they all come to the same decision.
        """
        clipped, norm = clip_gradients(reduced.gradients, self._clip_norm)
        [number] = to_floats(norm.reshape(1))
        is_applied = math.isfinite(number) and math.isfinite(reduced.loss_sum)
        if is_applied:
            model = self.network.model
            self.optimizer.update(model, tree_unflatten(clipped))
            mx.eval(model.trainable_parameters(), self.optimizer.state)
        return number, is_applied

    def _own_slot(self, value: float) -> list[float]:
        """Return a number for each rank, zero but for ours: their sum over the ranks is everybody's value."""
        return [float(value) if rank == self._comm.rank else 0.0 for rank in range(self._comm.size)]


def _unflatten(flat: mx.array, like: Named) -> Named:
    """Cut ``flat`` into arrays with the names and shapes of ``like``."""
    parts, start = [], 0
    for name, value in like:
        parts.append((name, flat[start : start + value.size].reshape(value.shape)))
        start += value.size
    return parts


def _is_finite(loss: mx.array, gradients: Named) -> bool:
    return bool(mx.all(mx.stack([mx.all(mx.isfinite(value)) for value in (loss, *(value for _, value in gradients))])).item())


def _second(pair: tuple[str, mx.array]) -> mx.array:
    return pair[1]
