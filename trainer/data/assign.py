"""Which rank computes which rows of a global batch, and in which portions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

CALIBRATED_AFTER = 8  # steps; the first is not counted
_ALIKE = 0.85  # ranks that are as fast as this share of the fastest count as equally fast
_AHEAD_TOKENS = 4096  # of a rank, that go through the frozen layers together
_MOST_AHEAD = 64  # steps


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


def weigh_rows(lengths: Sequence[int], is_kept: Sequence[bool], trunk_ratio: float) -> list[float]:
    """Return what each row costs where the output of the frozen layers is kept for some, in tokens of a row that is kept.

    ``trunk_ratio``: the frozen layers' work for a token over that of all the rest.
    """
    return [length * (1.0 if kept else 1.0 + trunk_ratio) for length, kept in zip(lengths, is_kept, strict=True)]


def settle_speeds(rates: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return each rank's speed relative to the fastest, from tokens a second of some steps; 1.0 for all that are about alike.

    Medians, and alike ranks exactly equal, so that hiccups do not decide who computes what. A rank that had no rows counts as
    alike.
    """
    seen: list[list[float]] = [[rate for rate in column if rate] for column in zip(*rates, strict=True)]
    middle = [median(column) if column else None for column in seen]
    fastest = max((rate for rate in middle if rate), default=1.0)
    relative = [rate / fastest if rate else 1.0 for rate in middle]
    return tuple(1.0 if share >= _ALIKE else share for share in relative)


def steps_at_once(tokens: float) -> int:
    """Return for how many steps the frozen layers are computed together, for a rank with ``tokens`` in each."""
    return min(_MOST_AHEAD, max(1, int(_AHEAD_TOKENS / max(tokens, 1.0))))
