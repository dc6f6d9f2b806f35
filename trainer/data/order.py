"""The global order of samples: a pure function of seed and epoch, the same on every rank and for any number of ranks.

Up to `MOST_LISTED` rows an epoch's order is a list, shuffled. Beyond, there is none: the row of a place in the epoch is
computed, by a permutation that depends on seed and epoch, so the memory does not grow with the data.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

MOST_LISTED = 1 << 20  # 8 MiB
_ROUNDS = 6  # four make a network hard to tell from chance (Luby and Rackoff, 1988); halves are small here
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def rows_at(places: NDArray[np.int64], num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the row numbers at ``places`` (each from 0 to num_rows - 1) of an epoch's order."""
    if num_rows <= MOST_LISTED:
        return epoch_order(num_rows, seed, epoch)[places]
    return permute(places, num_rows, seed, epoch)


@functools.lru_cache(maxsize=1)
def epoch_order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of the row numbers 0 … num_rows - 1 for one epoch, read-only.

    The last one is kept: 8 bytes a row, and each step of an epoch asks for it.
    """
    order = np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_rows)
    order.flags.writeable = False
    return order


def permute(places: NDArray[np.int64], num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return what a permutation of 0 … num_rows - 1, one for each seed and epoch, makes of ``places``.

    A Feistel network permutes the numbers of as many bits as the largest has; one that leaves the range goes through it again
    until it is back (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), twice on average at the most.
    """
    keys = np.random.Generator(np.random.Philox([seed, epoch])).integers(0, 1 << 64, _ROUNDS, dtype=np.uint64)
    num_bits = max(2, (num_rows - 1).bit_length())
    numbers = _scramble(places.astype(np.uint64), num_bits, keys)
    while len(outside := np.flatnonzero(numbers >= num_rows)):
        numbers[outside] = _scramble(numbers[outside], num_bits, keys)
    return numbers.astype(np.int64)


def _scramble(numbers: NDArray[np.uint64], num_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a permutation of the numbers of ``num_bits`` bits, of which an even number of rounds changes either half."""
    low_bits = num_bits // 2
    high_bits = num_bits - low_bits
    for key in keys:
        high, low = numbers >> np.uint64(low_bits), numbers & np.uint64((1 << low_bits) - 1)
        high ^= _mix(low ^ key) >> np.uint64(64 - high_bits)
        numbers = low << np.uint64(high_bits) | high
        low_bits, high_bits = high_bits, low_bits
    return numbers


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return hashes of numbers (the finaliser of SplitMix64: Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))


def steps_per_epoch(num_rows: int, global_batch: int) -> int:
    """Return the optimizer steps of one epoch; the last one may have fewer rows, none is dropped."""
    return math.ceil(num_rows / global_batch)


def global_batch_at(step: int, num_rows: int, global_batch: int, seed: int) -> NDArray[np.int64]:
    """Return the row numbers of optimizer step ``step`` (from 0), over all ranks together."""
    epoch, index = divmod(step, steps_per_epoch(num_rows, global_batch))
    places = np.arange(index * global_batch, min((index + 1) * global_batch, num_rows))
    return rows_at(places, num_rows, seed, epoch)
