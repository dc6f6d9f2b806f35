"""Validation: the mean loss over all supervised tokens of a split, shared among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from trainer.comm.group import Comm, to_floats
from trainer.data.assign import assign_rows, split_micro_batches
from trainer.data.batch import make_batch
from trainer.data.tokens import TokenRow
from trainer.model.loss import HeadOnSelected, summed_loss


def evaluate(
    model: nn.Module,
    head: HeadOnSelected,
    rows: Sequence[TokenRow],
    comm: Comm,
    micro_batch: int,
    tick: Callable[[int, int], None] = lambda _done, _total: None,
) -> float:
    """Return the loss in nats per supervised token over all ``rows``, weighted by tokens; a collective.

    The same on every rank, and for any number of ranks up to float rounding. ``tick`` is told how many of this rank's
    micro-batches are done.
    """
    lengths = [len(row) for row in rows]
    own = assign_rows(lengths, comm.size)[comm.rank]
    loss, tokens = mx.zeros(()), 0
    model.eval()
    groups = split_micro_batches(own, lengths, micro_batch)
    for done, positions in enumerate(groups, start=1):
        batch = make_batch([rows[p] for p in positions])
        if batch.num_supervised:
            loss = loss + summed_loss(head, batch)
            mx.eval(loss)
            tokens += batch.num_supervised
        tick(done, len(groups))
    model.train()
    total_loss, total_tokens = to_floats(comm.all_sum(mx.stack([loss, mx.array(float(tokens))])))
    return total_loss / max(total_tokens, 1.0)
