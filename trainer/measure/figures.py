"""Repeated measurements as a median with its quartiles: the form of every figure in a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Stat = dict[str, Any]  # {"median", "low", "high", "count"}: low and high are the quartiles


def summarise_values(values: Sequence[float]) -> Stat:
    """Return median, quartiles and number of ``values`` (at least one), in their unit."""
    low, median, high = (float(number) for number in np.percentile(values, [25, 50, 75]))
    return {"median": median, "low": low, "high": high, "count": len(values)}


def median_of(stat: Stat | None) -> float:
    """Return the median of a stored figure, 0 where it could not be measured."""
    return float(stat["median"]) if stat else 0.0
