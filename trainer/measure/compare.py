"""Two baselines side by side: what got slower or faster, beyond the noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.measure.cost import fit_cost
from trainer.measure.figures import Stat

LEAST_CHANGE = 0.05


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure in both baselines. ``ratio`` is the newer speed over the older one, above 1 if it got faster."""

    what: str
    before: float
    after: float
    ratio: float
    is_certain: bool


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return every figure that both have.

    A change is certain where the quartiles do not overlap and it is more than `LEAST_CHANGE`.
    """
    old, new = dict(_figures(before)), dict(_figures(after))
    return [_change(what, stat, new[what][0], is_time) for what, (stat, is_time) in old.items() if what in new]


def _change(what: str, before: Stat, after: Stat, is_time: bool) -> Change:
    ratio = after["median"] / before["median"] if before["median"] else 1.0
    speed = (1 / ratio if ratio else 1.0) if is_time else ratio
    apart = after["low"] > before["high"] or after["high"] < before["low"]
    return Change(
        what=what,
        before=before["median"],
        after=after["median"],
        ratio=speed,
        is_certain=apart and abs(speed - 1) > LEAST_CHANGE,
    )


def _figures(baseline: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Stat, bool]]]:
    """Yield name, figure, and whether it is a time (less is better) instead of a rate."""
    for name, host in baseline["hosts"].items():
        yield f"{name}: prompt tokens/s", (host["inference"]["prompt_tokens_per_s"], False)
        yield f"{name}: generation tokens/s", (host["inference"]["generation_tokens_per_s"], False)
        yield f"{name}: training, seconds for 100 tokens", (_training(host["training"]), True)
    for link in baseline["links"]:
        pair = f"{' - '.join(link['hosts'])} over {link['network']}"
        for key, is_time in (("latency_s", True), ("up_bytes_per_s", False), ("down_bytes_per_s", False)):
            if key in link:
                yield f"{pair}: {key.replace('_', ' ')}", (link[key], is_time)
    for each in baseline["all_reduce"]:
        for size in each["sweep"]:
            where = f"{' '.join(each['hosts'])} over {each['network'] or 'this machine'} with {each['backend']}"
            yield f"{where}: all-reduce of {size['bytes']} bytes, seconds", (size["seconds"], True)


def _training(training: Mapping[str, Any]) -> Stat:
    """Return the seconds for 100 tokens, half of them supervised, with the spread of what was measured."""
    cost = fit_cost(training)
    seconds = cost.seconds(100, 50)
    low, median, high = (float(ratio) * seconds for ratio in np.percentile(cost.ratios, [25, 50, 75]))
    return {"median": median, "low": low, "high": high, "count": len(cost.ratios)}
