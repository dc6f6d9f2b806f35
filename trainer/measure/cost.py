"""How long a host computes on a micro-batch: a line through what was measured.

``seconds = a + b * padded tokens + c * supervised tokens``: a fixed part for each call, the trunk's work on every position,
padding included, and the output head's on the supervised ones alone. Attention's share, which grows with the square of the
length, is small at the lengths of chat samples (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 20
NOISY_SPREAD = 0.10  # between the quartiles of measured over predicted


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one micro-batch on one rank of a host: a fixed part, and parts for each padded and supervised token.

    ``trunk_s`` are those of the frozen layers for a token, where their output is kept: then the other parts are without them.
    ``ratios`` are measured over predicted times, with the mean 1: what a simulation draws its noise from.
    """

    fixed_s: float
    padded_s: float
    supervised_s: float
    step_s: float
    trunk_s: float = 0.0
    ratios: tuple[float, ...] = (1.0,)

    def seconds(self, padded: int, supervised: int) -> float:
        """Return the mean seconds of forward and backward of a micro-batch; without supervised tokens it is left out."""
        return self.fixed_s + self.padded_s * padded + self.supervised_s * supervised if supervised else 0.0

    @property
    def spread(self) -> float:
        """Distance of the quartiles of measured over predicted: 0 on a quiet machine."""
        low, high = np.percentile(self.ratios, [25, 75])
        return float(high - low)


def fit_cost(training: Mapping[str, Any]) -> Cost:
    """Return the cost of a host from the ``training`` part of its figures (at least one micro-batch).

    The line has the smallest sum of absolute relative errors (by reweighted least squares), so that a hiccup does not bend it,
    and no negative part; it is then scaled to the mean, for a run takes the hiccups along.
    """
    table = np.array([[1.0, each["padded"], each["supervised"]] for each in training["micro_batches"]])
    seconds = np.array([each["seconds"] for each in training["micro_batches"]])
    parts = _fit_line(table / seconds[:, None], np.ones(len(seconds)))
    predicted = table @ parts
    scale = float(seconds.sum() / predicted.sum())
    ratios = seconds / (predicted * scale)
    fixed, padded, supervised = (float(part) * scale for part in parts)
    return Cost(
        fixed_s=fixed,
        padded_s=padded,
        supervised_s=supervised,
        step_s=float(training["fixed_s"]["median"]),
        trunk_s=float(training["trunk"].get("token_s", 0.0)),
        ratios=tuple(float(ratio) for ratio in ratios / ratios.mean()),
    )


def _fit_line(table: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return non-negative factors of the columns that come closest to ``target`` in absolute error."""
    columns = list(range(table.shape[1]))
    while True:
        chosen, weights = table[:, columns], np.ones(len(target))
        for _ in range(_ROUNDS):
            factors = np.linalg.lstsq(chosen * weights[:, None], target * weights, rcond=None)[0]
            weights = 1.0 / np.sqrt(np.maximum(np.abs(target - chosen @ factors), 1e-4))
        worst = int(np.argmin(factors))
        if factors[worst] >= 0 or len(columns) == 1:
            result = np.zeros(table.shape[1])
            result[columns] = np.maximum(factors, 0.0)
            return result
        del columns[worst]
