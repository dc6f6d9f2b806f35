"""The time of all-reduces of several sizes among the ranks of a `Comm`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from trainer.comm.group import Comm, to_floats

SIZES = (4096, 65536, 1048576)  # bytes, beside the run's own payload
QUICK_SIZES = (65536,)
_LEAST, _MOST = 3, 15
BUDGET_S, QUICK_BUDGET_S = 1.5, 0.6  # for the repeats of one size


def sweep(comm: Comm, sizes: Sequence[int], budget_s: float = BUDGET_S) -> list[dict[str, Any]]:
    """Return ``{"bytes", "values"}`` for each size: seconds of single all-reduces, ranks starting together; a collective.

    Each is repeated for about ``budget_s``, at least `_LEAST` times. Uses nothing but `Comm.all_sum`.
    """
    comm.all_sum(mx.ones(16))  # connections are made at the first use
    return [{"bytes": size, "values": _repeat(comm, size, budget_s)} for size in sizes]


def _repeat(comm: Comm, size_bytes: int, budget_s: float) -> list[float]:
    vector = mx.zeros(max(1, size_bytes // 4))
    mx.eval(vector)
    first = _time(comm, vector)
    mean = to_floats(comm.all_sum(mx.array([first])))[0] / comm.size  # all ranks must repeat as often
    times = min(_MOST, max(_LEAST, int(budget_s / max(mean, 1e-6))))
    return [_time(comm, vector) for _ in range(times)]


def _time(comm: Comm, vector: mx.array) -> float:
    comm.all_sum(mx.ones(1))  # a barrier
    started = time.perf_counter()
    comm.all_sum(vector)
    return time.perf_counter() - started
