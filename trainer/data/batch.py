"""A micro-batch: rows padded to one length, with the positions that the loss looks at.

Shapes: B rows, T tokens of the longest row, S supervised positions of all rows together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.tokens import TokenRow


@dataclass(frozen=True)
class Batch:
    """``inputs_BT``: int32 tokens padded with 0 at the right, where causal attention keeps padding from all else.

    ``positions_S``: int32 places in the flattened [B * T] whose next token is supervised; ``targets_S``: those tokens.
    ``num_tokens`` counts the inputs without padding.
    """

    inputs_BT: NDArray[np.int32]
    positions_S: NDArray[np.int32]
    targets_S: NDArray[np.int32]
    num_tokens: int

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
