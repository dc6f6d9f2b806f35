"""A micro-batch: samples packed into one row, or rows padded to one length, with the positions that the loss looks at.

Shapes: B rows, T tokens of the longest row, S supervised positions of all rows together, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.tokens import TokenRow


@dataclass(frozen=True)
class Batch:
    """``inputs_BT``: int32 tokens padded with 0 at the right, where causal attention keeps padding from all else.

    ``positions_S``: int32 places in the flattened [B * T] whose next token is supervised; ``targets_S``: those tokens.
    ``num_tokens`` counts the inputs without padding. ``lengths`` are those of the samples in a packed row, in order; empty for
    padded rows. ``entering`` [B, T, H], if the layers below are skipped, is the hidden state that enters the first one that
    is not. ``is_probe``: not for training, only to find out what a model can do.
    """

    inputs_BT: NDArray[np.int32]
    positions_S: NDArray[np.int32]
    targets_S: NDArray[np.int32]
    num_tokens: int
    lengths: tuple[int, ...] = ()
    entering: Any = None
    is_probe: bool = False

    @property
    def num_supervised(self) -> int:
        """Tokens that count in the loss."""
        return len(self.targets_S)


def make_batch(rows: Sequence[TokenRow]) -> Batch:
    """Return ``rows`` (at least one) as a batch. The last token of a row is only a target, never an input."""
    longest = max(len(row) for row in rows) - 1
    inputs = np.zeros((len(rows), longest), dtype=np.int32)
    positions, targets = [], []
    for index, row in enumerate(rows):
        inputs[index, : len(row) - 1] = row.tokens[:-1]
        learned = np.flatnonzero(row.supervised[1:])
        positions.append(index * longest + learned)
        targets.append(row.tokens[1:][learned])
    num_tokens = sum(len(row) - 1 for row in rows)
    return Batch(inputs, np.concatenate(positions).astype(np.int32), np.concatenate(targets), num_tokens)


def pack_batch(rows: Sequence[TokenRow], entering: Any = None, *, is_probe: bool = False) -> Batch:
    """Return ``rows`` (at least one) as one packed row without padding: [1, T]. No sample will see another."""
    lengths = tuple(len(row) - 1 for row in rows)
    starts = np.cumsum((0, *lengths[:-1]))
    learned = [np.flatnonzero(row.supervised[1:]) for row in rows]
    return Batch(
        np.concatenate([row.tokens[:-1] for row in rows])[None].astype(np.int32),
        np.concatenate([start + places for start, places in zip(starts, learned, strict=True)]).astype(np.int32),
        np.concatenate([row.tokens[1:][places] for row, places in zip(rows, learned, strict=True)]),
        sum(lengths),
        lengths,
        entering,
        is_probe,
    )
