"""The global order of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.assign import assign_rows
from trainer.data.order import epoch_order, global_batch_at, steps_per_epoch

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
