"""What a plot shows, apart from how it is drawn: `trainer.report.svg` draws it for the page, `trainer.report.png` as a file.

Colours are numbers into a palette, so that the page can have one for light and one for dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LineKind = Literal["line", "faint", "dashed", "dots", "scatter", "area"]
Point = tuple[float, float]
NUM_COLOURS = 6  # that may stand for anything; then come two with a meaning
GREY, FAULT = 6, 7


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points in order of x: "dots" are joined by a line, a "scatter" is not, an "area" reaches down to the one before it."""

    label: str
    points: Sequence[Point]
    kind: LineKind = "line"
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines, dots or areas over two axes. ``description`` says in a sentence what is to be seen."""

    name: str
    title: str
    description: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    from_zero: bool = False
    log: bool = False  # both axes
    is_counted: bool = False  # x is a number of something: no ticks between whole numbers
    is_wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar with its length and what is written at it."""

    label: str
    value: float
    text: str
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal bars from zero."""

    name: str
    title: str
    description: str
    bars: Sequence[Bar]
    is_wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values fell between ``edges`` (one more than ``counts``)."""

    name: str
    title: str
    description: str
    edges: Sequence[float]
    counts: Sequence[int]
    x_label: str
    y_label: str
    is_wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Something on a timeline, from ``start_s`` to ``end_s``, the same for what has no duration."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One row of a timeline."""

    label: str
    moments: Sequence[Moment]
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What happened when, in seconds since the beginning."""

    name: str
    title: str
    description: str
    lanes: Sequence[Lane]
    length_s: float
    is_wide: bool = True


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A link between two nodes, by their positions; ``weight`` from 0 to 1 is how thick it is drawn."""

    ends: tuple[int, int]
    text: str
    title: str
    weight: float
    colour: int = 0
    is_broken: bool = False


@dataclass(frozen=True, kw_only=True)
class Network:
    """Hosts and the links between them; ``legend`` names the colours. ``caption`` is for those who see the graph."""

    name: str
    title: str
    description: str
    caption: str
    nodes: Sequence[str]
    edges: Sequence[Edge]
    legend: Sequence[tuple[str, int]]
    is_wide: bool = False


Plot = Chart | Bars | Histogram | Timeline | Network


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` with ``ticks`` between, on a straight or a logarithmic scale."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at ``low`` and 1 at ``high``."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def name(self, tick: float) -> str:
        """Return how a tick is written."""
        if self.log:
            return f"{tick:g}"
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        return f"{tick:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def make_axis(
    values: Sequence[float], *, from_zero: bool = False, num_ticks: int = 5, tight: bool = False, whole: bool = False
) -> Axis:
    """Return an axis of round ticks around ``values``, ``whole`` numbers if asked; ``tight`` ends it at the values."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if from_zero:
        low = min(low, 0.0)
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = max(abs(low), abs(high)) * 0.1 or 1.0
        low, high = low if from_zero else low - pad, high + pad
    step = max(_round_step((high - low) / num_ticks), 1.0 if whole else 0.0)
    begin, end = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if not tight:
        begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        end = max(end, begin + 1)
    ticks = tuple(number * step for number in range(begin, end + 1))
    return Axis(low, high, ticks) if tight else Axis(ticks[0], ticks[-1], ticks)


def make_log_axis(values: Sequence[float]) -> Axis:
    """Return an axis from one power of ten to another around ``values`` (those above 0), with a tick at each."""
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    begin, end = math.floor(math.log10(min(known)) + 1e-9), math.ceil(math.log10(max(known)) - 1e-9)
    end = max(end, begin + 1)
    return Axis(10.0**begin, 10.0**end, tuple(10.0**power for power in range(begin, end + 1)), log=True)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least * (1 - 1e-9))


def axes_of(chart: Chart) -> tuple[Axis, Axis]:
    """Return the two axes of a chart."""
    points = [point for series in chart.series for point in series.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if chart.log:
        return make_log_axis(xs), make_log_axis(ys)
    num_ticks = 8 if chart.is_counted and max(xs) <= 8 else 6
    return make_axis(xs, num_ticks=num_ticks, tight=True, whole=chart.is_counted), make_axis(ys, from_zero=chart.from_zero)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most ``most`` points: of a longer list the means of neighbours, so that no part is left out."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Sequence[Point], weight: float) -> list[Point]:
    """Return an exponential moving average with ``weight`` on what was before, without the bias towards the first value."""
    total, norm, found = 0.0, 0.0, []
    for x, y in points:
        total, norm = weight * total + (1 - weight) * y, weight * norm + (1 - weight)
        found.append((x, total / norm))
    return found
