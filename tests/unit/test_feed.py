"""Shares by speed: measured once, alike ranks exactly equal; and they bring unequal ranks close to their ideal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.assign import assign_rows, settle_speeds


@given(noise=st.lists(st.tuples(st.floats(95, 105), st.floats(95, 105)), min_size=3, max_size=9))
def test_alike_ranks_count_as_equal(noise: list[tuple[float, float]]) -> None:
    """Noise of a few per cent does not decide who computes what."""
    assert settle_speeds(noise) == (1.0, 1.0)


def test_a_hiccup_is_no_speed() -> None:
    """A step that took ten times as long changes nothing; a rank that is slow in most steps does."""
    assert settle_speeds([[100, 99], [100, 10], [100, 98]]) == (1.0, 1.0)
    assert settle_speeds([[100, 51], [100, 50], [100, 300]]) == (1.0, 0.51)
    assert settle_speeds([[100, 0], [90, 0]]) == (1.0, 1.0)


@pytest.mark.parametrize(("speeds", "batch"), [((1.0, 0.5), 16), ((1.0, 1.0, 0.5), 32)])
def test_unequal_ranks_come_close_to_their_ideal(speeds: tuple[float, ...], batch: int) -> None:
    """Over many ragged batches, ranks of 2:1 reach 90 % of all speeds together and none waits for 10 % of a step."""
    random = np.random.default_rng(0)
    ideal = taken = 0.0
    waited = np.zeros(len(speeds))
    for _ in range(200):
        lengths = random.integers(90, 200, batch).tolist()
        shares = assign_rows(lengths, len(speeds), speeds)
        assert sorted(p for share in shares for p in share) == list(range(batch))
        seconds = [sum(lengths[p] for p in share) / speed for share, speed in zip(shares, speeds, strict=True)]
        ideal += sum(lengths) / sum(speeds)
        taken += max(seconds)
        waited += max(seconds) - np.array(seconds)
    assert ideal / taken >= 0.9
    assert (waited / taken).max() <= 0.1


def test_a_row_goes_where_it_is_cheap() -> None:
    """A row whose hidden state is on one host goes there, unless that host would be done later for it."""
    here, there = [10.0, 30.0], [30.0, 10.0]
    assert assign_rows([10, 10], 2, costs=[here, there]) == [[0], [1]]
    assert assign_rows([10, 10], 2, costs=[there, here]) == [[1], [0]]
    assert assign_rows([10, 10, 10], 2, costs=[[10, 10, 10], [15, 15, 15]]) == [[0, 2], [1]]
