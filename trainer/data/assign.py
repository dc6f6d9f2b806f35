"""Which rank computes which rows of a global batch, and in which portions."""

from __future__ import annotations

from collections.abc import Sequence


def assign_rows(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Return for each rank the positions (into ``lengths``) of its rows, so that the ranks' tokens are balanced.

    Longest row first to the rank with the fewest tokens so far (Graham's LPT rule, 1969: at most 4/3 of the best
    possible makespan). Ties go to the lowest rank, so every rank computes the same assignment. A rank may get none.
    """
    loads = [0] * num_ranks
    rows: list[list[int]] = [[] for _ in range(num_ranks)]
    for position in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        rank = min(range(num_ranks), key=lambda r: (loads[r], r))
        loads[rank] += lengths[position]
        rows[rank].append(position)
    return rows


def split_micro_batches(positions: Sequence[int], lengths: Sequence[int], micro_batch: int) -> list[list[int]]:
    """Return ``positions`` in groups of at most ``micro_batch`` rows of similar length, so that padding stays small."""
    ordered = sorted(positions, key=lambda p: (-lengths[p], p))
    return [ordered[i : i + micro_batch] for i in range(0, len(ordered), micro_batch)]
