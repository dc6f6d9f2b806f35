"""Which rank computes which rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.assign import assign_rows, split_micro_batches

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test of time

any_lengths = st.lists(st.integers(1, 2000), max_size=40)
any_ranks = st.integers(1, 12)


def loads(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(lengths[position] for position in rank) for rank in rows]


@patient
@given(any_lengths, any_ranks)
def test_each_row_goes_to_exactly_one_rank(lengths: list[int], num_ranks: int) -> None:
    """The ranks' rows are disjoint and together all rows; there is a list for every rank."""
    rows = assign_rows(lengths, num_ranks)
    assert len(rows) == num_ranks
    assert sorted(position for rank in rows for position in rank) == list(range(len(lengths)))


@patient
@given(any_lengths, any_ranks)
def test_every_rank_computes_the_same_assignment(lengths: list[int], num_ranks: int) -> None:
    """Nothing but lengths and number of ranks matters, so no rank has to be told."""
    assert assign_rows(lengths, num_ranks) == assign_rows(tuple(lengths), num_ranks)


@patient
@given(any_lengths, any_ranks)
def test_the_fullest_rank_is_within_a_row_of_the_mean(lengths: list[int], num_ranks: int) -> None:
    """The fullest rank has at most the mean load and (1 - 1/n) of the longest row, Graham's bound of 1966."""
    fullest, longest = max(loads(lengths, assign_rows(lengths, num_ranks))), max(lengths, default=0)
    assert num_ranks * fullest <= sum(lengths) + (num_ranks - 1) * longest


@patient
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_the_fullest_rank_is_within_four_thirds_of_the_best(lengths: list[int], num_ranks: int) -> None:
    """Against every possible assignment, tried one by one, the fullest rank has at most 4/3 - 1/(3n) of the best."""
    best = min(
        max(sum(length for length, rank in zip(lengths, choice, strict=True) if rank == r) for r in range(num_ranks))
        for choice in itertools.product(range(num_ranks), repeat=len(lengths))
    )
    assert 3 * num_ranks * max(loads(lengths, assign_rows(lengths, num_ranks))) <= (4 * num_ranks - 1) * best


@patient
@given(any_lengths, any_ranks)
def test_no_rank_could_hand_a_row_to_another_and_be_better_off(lengths: list[int], num_ranks: int) -> None:
    """Taking its smallest row away leaves the fullest rank no longer than any other."""
    rows = assign_rows(lengths, num_ranks)
    for rank in filter(None, rows):
        without = sum(lengths[p] for p in rank) - min(lengths[p] for p in rank)
        assert without <= min(loads(lengths, rows))


def test_more_ranks_than_rows_leaves_ranks_without_work() -> None:
    """Two rows on four ranks: the longer one first, and two ranks with nothing."""
    assert assign_rows([3, 5], 4) == [[1], [0], [], []]
    assert assign_rows([], 2) == [[], []]


def test_ties_go_to_the_lowest_rank_and_row() -> None:
    """Equal rows are dealt out in order."""
    assert assign_rows([4] * 5, 2) == [[0, 2, 4], [1, 3]]


@patient
@given(any_lengths, st.integers(1, 9))
def test_micro_batches_split_the_rows_by_length(lengths: list[int], micro_batch: int) -> None:
    """Each row is in one micro-batch, only the last is not full, and no batch's rows are longer than the one's before."""
    batches = split_micro_batches(range(len(lengths)), lengths, micro_batch)
    flat = [position for batch in batches for position in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert all(len(batch) == micro_batch for batch in batches[:-1])
    assert all(1 <= len(batch) <= micro_batch for batch in batches)
    assert [lengths[position] for position in flat] == sorted(lengths, reverse=True)


@patient
@given(st.permutations(range(12)), st.lists(st.integers(1, 9), min_size=12, max_size=12))
def test_micro_batches_do_not_depend_on_the_order_of_the_rows(positions: list[int], lengths: list[int]) -> None:
    """The same rows in another order are split the same."""
    assert split_micro_batches(positions, lengths, 5) == split_micro_batches(range(12), lengths, 5)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_no_rows_are_no_micro_batches(micro_batch: int) -> None:
    """A rank without rows has nothing to compute, not an empty batch."""
    assert split_micro_batches([], [], micro_batch) == []
