"""Rows padded to a micro-batch, against a reference that walks token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.batch import make_batch
from trainer.data.tokens import TokenRow

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test of time

token = st.tuples(st.integers(0, 2**31 - 1), st.booleans())
ragged = st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=6)


def make_row(pairs: list[tuple[int, bool]]) -> TokenRow:
    tokens, supervised = zip(*pairs, strict=True)
    return TokenRow(np.array(tokens, dtype=np.int32), np.array(supervised, dtype=np.bool_))


@patient
@given(ragged)
def test_positions_and_targets_equal_a_walk_over_the_tokens(rows: list[list[tuple[int, bool]]]) -> None:
    """Every supervised token but a row's first is a target, at the flattened place of the token before it."""
    batch = make_batch([make_row(pairs) for pairs in rows])
    width = max(len(pairs) for pairs in rows) - 1
    expected = [
        (row * width + place - 1, pairs[place][0])
        for row, pairs in enumerate(rows)
        for place in range(1, len(pairs))
        if pairs[place][1]
    ]
    assert list(zip(batch.positions_S.tolist(), batch.targets_S.tolist(), strict=True)) == expected
    assert batch.num_supervised == sum(make_row(pairs).num_supervised for pairs in rows)


@patient
@given(ragged)
def test_inputs_are_the_rows_without_their_last_token(rows: list[list[tuple[int, bool]]]) -> None:
    """Inputs hold each row from the left, zeros behind it, and as many real tokens as are counted."""
    batch = make_batch([make_row(pairs) for pairs in rows])
    width = max(len(pairs) for pairs in rows) - 1
    expected = [[number for number, _ in pairs[:-1]] + [0] * (width - len(pairs) + 1) for pairs in rows]
    assert batch.inputs_BT.tolist() == expected
    assert batch.num_tokens == sum(len(pairs) - 1 for pairs in rows)


@patient
@given(ragged)
def test_a_target_follows_its_position(rows: list[list[tuple[int, bool]]]) -> None:
    """No position lies in the padding or in another row: the input there is the token before the target."""
    made = [make_row(pairs) for pairs in rows]
    batch = make_batch(made)
    width = batch.inputs_BT.shape[1]
    for position, target in zip(batch.positions_S.tolist(), batch.targets_S.tolist(), strict=True):
        row, place = divmod(position, width)
        assert place + 1 < len(made[row])
        assert made[row].tokens[place] == batch.inputs_BT[row, place]
        assert made[row].tokens[place + 1] == target


@patient
@given(ragged)
def test_types_are_what_the_model_takes(rows: list[list[tuple[int, bool]]]) -> None:
    """Everything is int32, also where nothing is supervised."""
    batch = make_batch([make_row(pairs) for pairs in rows])
    assert {array.dtype for array in (batch.inputs_BT, batch.positions_S, batch.targets_S)} == {np.dtype(np.int32)}


def test_what_is_supervised_does_not_depend_on_the_neighbours() -> None:
    """A short row beside a long one has the same targets as alone."""
    short, long = make_row([(1, False), (2, True)]), make_row([(7, False)] * 9)
    assert make_batch([short, long]).targets_S.tolist() == make_batch([short]).targets_S.tolist() == [2]


def test_a_batch_without_rows_is_a_bug() -> None:
    """Nobody makes a batch of nothing: a rank without rows makes none."""
    with pytest.raises(ValueError, match="empty"):
        make_batch([])
