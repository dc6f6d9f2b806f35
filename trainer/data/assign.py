"""Which rank computes which rows of a global batch, and in which portions."""

from __future__ import annotations

from collections.abc import Sequence


def assign_rows(
    lengths: Sequence[int],
    num_ranks: int,
    speeds: Sequence[float] = (),
    costs: Sequence[Sequence[float]] = (),
) -> list[list[int]]:
    """Return for each rank the positions (into ``lengths``) of its rows, so that the slowest rank finishes early.

    ``costs[rank][position]`` is what a row costs there, its length if not given; ``speeds[rank]`` is how fast the rank works,
    the same for all if not given. Longest row first to the rank that would then be done first (Graham's LPT rule, 1969; on
    equal ranks at most 4/3 of the best possible makespan). Ties go to the lowest rank, so every rank computes the same
    assignment. A rank may get none.
    """
    loads = [0.0] * num_ranks
    rows: list[list[int]] = [[] for _ in range(num_ranks)]

    def done_at(rank: int, position: int) -> float:
        cost = costs[rank][position] if costs else lengths[position]
        return loads[rank] + cost / (speeds[rank] if speeds else 1.0)

    for position in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        rank = min(range(num_ranks), key=lambda r: (done_at(r, position), r))
        loads[rank] = done_at(rank, position)
        rows[rank].append(position)
    return rows


def split_micro_batches(positions: Sequence[int], lengths: Sequence[int], micro_batch: int) -> list[list[int]]:
    """Return ``positions`` in groups of at most ``micro_batch`` rows of similar length, so that padding stays small."""
    ordered = sorted(positions, key=lambda p: (-lengths[p], p))
    return [ordered[i : i + micro_batch] for i in range(0, len(ordered), micro_batch)]
