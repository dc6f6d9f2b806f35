"""The global order of samples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.assign import assign_rows
from trainer.data.order import epoch_order, global_batch_at, permute, steps_per_epoch

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test of time

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 300)


@patient
@given(sizes, seeds, st.integers(0, 2**31))
def test_an_epoch_is_a_permutation(num_rows: int, seed: int, epoch: int) -> None:
    """Each row comes once, for any seed and epoch, and the same on every call."""
    order = epoch_order(num_rows, seed, epoch)
    assert sorted(order.tolist()) == list(range(num_rows))
    assert np.array_equal(order, epoch_order(num_rows, seed, epoch))


@patient
@given(sizes, st.integers(1, 400), seeds, st.integers(0, 5))
def test_the_batches_of_an_epoch_use_each_row_once(num_rows: int, global_batch: int, seed: int, epoch: int) -> None:
    """Batches are full but for the last, none is empty, and together they are the epoch in its order."""
    steps = steps_per_epoch(num_rows, global_batch)
    batches = [global_batch_at(epoch * steps + index, num_rows, global_batch, seed) for index in range(steps)]
    assert [len(batch) for batch in batches[:-1]] == [global_batch] * (steps - 1)
    assert 1 <= len(batches[-1]) <= global_batch
    assert np.array_equal(np.concatenate(batches), epoch_order(num_rows, seed, epoch))


@patient
@given(sizes, st.integers(1, 64), seeds, st.integers(0, 50))
def test_a_step_is_independent_of_what_came_before(num_rows: int, global_batch: int, seed: int, step: int) -> None:
    """A step's batch needs no earlier step, so that a resumed run continues the same order."""
    forward = [global_batch_at(s, num_rows, global_batch, seed).tolist() for s in range(step + 1)]
    assert forward[-1] == global_batch_at(step, num_rows, global_batch, seed).tolist()


@patient
@given(st.integers(1, 60), st.integers(1, 16), seeds, st.integers(0, 20), st.integers(1, 9), st.integers(1, 9))
def test_the_ranks_share_the_same_batch_however_many_they_are(
    num_rows: int, global_batch: int, seed: int, step: int, one: int, other: int
) -> None:
    """The union of what the ranks compute in a step does not depend on their number."""
    chosen = global_batch_at(step, num_rows, global_batch, seed)
    lengths = [5 + row % 7 for row in chosen.tolist()]
    unions = [sorted(chosen[p] for rank in assign_rows(lengths, n) for p in rank) for n in (one, other)]
    assert unions[0] == unions[1] == sorted(chosen.tolist())


@pytest.mark.parametrize(("change", "other"), [("seed", (1, 0)), ("epoch", (0, 1)), ("swapped", (0, 2))])
def test_seed_and_epoch_both_matter(change: str, other: tuple[int, int]) -> None:
    """Another seed, another epoch, and the two exchanged, are other orders."""
    reference = (2, 0) if change == "swapped" else (0, 0)
    assert not np.array_equal(epoch_order(100, *reference), epoch_order(100, *other)), change


def test_orders_differ_from_seed_to_seed_and_epoch_to_epoch() -> None:
    """Among 400 pairs of seed and epoch no order comes twice."""
    orders = {epoch_order(50, seed, epoch).tobytes() for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


# ---- more rows than a list is made of


@patient
@given(
    st.integers(1, 3000) | st.sampled_from([2**k + d for k in range(1, 13) for d in (-1, 0, 1)]), seeds, st.integers(0, 2**31)
)
def test_every_size_is_permuted(num_rows: int, seed: int, epoch: int) -> None:
    """Each row comes once, whatever the number of rows; and a place's row does not depend on which others are asked for."""
    places = np.arange(num_rows)
    rows = permute(places, num_rows, seed, epoch)
    assert sorted(rows.tolist()) == places.tolist()
    some = places[:: max(1, num_rows // 7)][::-1]
    assert permute(some, num_rows, seed, epoch).tolist() == rows[some].tolist()


@pytest.mark.parametrize("num_rows", [1_000_003, 2**31 + 11, 10**12])
def test_large_data_are_shuffled(num_rows: int) -> None:
    """Rows of places in a line are spread evenly, without regard to the place before, and other in each seed and epoch."""
    places = np.arange(40_000)
    orders = [permute(places, num_rows, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for rows in orders:
        assert ((rows >= 0) & (rows < num_rows)).all()
        assert len(set(rows.tolist())) == len(rows)
        counts = np.bincount((rows * (64 / num_rows)).astype(int), minlength=64)
        assert ((counts - 625) ** 2 / 625).sum() < 130  # chi-squared, 63 degrees of freedom: 1 in 10^6 is above 127
        assert abs(np.corrcoef(rows[1:], rows[:-1])[0, 1]) < 0.025  # five standard deviations
        assert abs(np.corrcoef(rows, places)[0, 1]) < 0.025
        assert 0.49 < np.mean(rows % 2) < 0.51
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (orders[one] == orders[other]).mean() < 0.001
        assert abs(np.corrcoef(orders[one], orders[other])[0, 1]) < 0.025


@patient
@given(st.integers(1, 2000), st.integers(1, 300), seeds)
def test_batches_of_large_data_use_each_row_once(num_rows: int, global_batch: int, seed: int) -> None:
    """Beyond the size of which a list is made, the batches of an epoch are a permutation as well, and each epoch's another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.data.order.MOST_LISTED", 0)
        steps = steps_per_epoch(num_rows, global_batch)
        epochs = [
            np.concatenate([global_batch_at(epoch * steps + index, num_rows, global_batch, seed) for index in range(steps)])
            for epoch in range(2)
        ]
    assert all(sorted(rows.tolist()) == list(range(num_rows)) for rows in epochs)
    assert num_rows < 20 or epochs[0].tolist() != epochs[1].tolist()


def test_the_order_of_large_data_takes_no_memory() -> None:
    """A batch of a billion rows' epoch takes kilobytes."""
    tracemalloc.start()
    try:
        assert len(set(global_batch_at(123_456, 10**9, 64, 0).tolist())) == 64
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_order_of_large_data_stays() -> None:
    """A run that is resumed by a later version meets the same order."""
    assert global_batch_at(5, 3_000_000, 4, 7).tolist() == [2057279, 1907461, 36993, 71881]
