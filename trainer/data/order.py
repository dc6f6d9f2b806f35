"""The global order of samples: a pure function of seed and epoch, the same on every rank and for any number of ranks."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray


@functools.lru_cache(maxsize=1)
def epoch_order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of the row numbers 0 … num_rows - 1 for one epoch, read-only.

    The last one is kept: 8 bytes a row, and each step of an epoch asks for it.
    """
    order = np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_rows)
    order.flags.writeable = False
    return order


def steps_per_epoch(num_rows: int, global_batch: int) -> int:
    """Return the optimizer steps of one epoch; the last one may have fewer rows, none is dropped."""
    return math.ceil(num_rows / global_batch)


def global_batch_at(step: int, num_rows: int, global_batch: int, seed: int) -> NDArray[np.int64]:
    """Return the row numbers of optimizer step ``step`` (from 0), over all ranks together."""
    epoch, index = divmod(step, steps_per_epoch(num_rows, global_batch))
    return epoch_order(num_rows, seed, epoch)[index * global_batch : (index + 1) * global_batch]
