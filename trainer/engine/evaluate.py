"""Validation: the mean loss over all supervised tokens of a split, shared among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import mlx.core as mx

from trainer.comm.group import Comm, to_floats
from trainer.data.batch import Batch
from trainer.model.loss import summed_loss
from trainer.model.network import Network


def evaluate(
    network: Network,
    batches: Iterable[Batch],
    comm: Comm,
    *,
    fused: bool = True,
    tick: Callable[[int], None] = lambda _done: None,
) -> float:
    """Return the loss in nats per supervised token over the ``batches`` of all ranks, weighted by tokens; a collective.

    The same on every rank, and for any number of ranks up to float rounding. ``tick`` is told how many of this rank's
    micro-batches are done.
    """
    loss, tokens = mx.zeros(()), 0
    network.model.eval()
    for done, batch in enumerate(batches, start=1):
        if batch.num_supervised:
            loss = loss + summed_loss(network, batch, fused=fused, needs_gradient=False)
            mx.eval(loss)
            tokens += batch.num_supervised
        tick(done)
    network.model.train()
    total_loss, total_tokens = to_floats(comm.all_sum(mx.stack([loss, mx.array(float(tokens))])))
    return total_loss / max(total_tokens, 1.0)
