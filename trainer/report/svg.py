"""Plots as SVG inside a page: text is the page's own, colours are its classes ``c0`` … and so follow its theme."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch

from markupsafe import Markup

from trainer.measure.verdict import duration
from trainer.report.chart import (
    Axis,
    Bars,
    Chart,
    Edge,
    Histogram,
    Lane,
    Network,
    Plot,
    Point,
    Series,
    Timeline,
    axes_of,
    make_axis,
)
from trainer.report.markup import tag

WIDE, HALF, NARROW = 880, 424, 358
_LETTER = 6.6  # mean width at 12 px; what is measured is only how much room labels need
_AXIS = 34  # below the plot
_APART = 1.5  # pixels: marks that lie closer would cover one another


def draw(plot: Plot, width: int, prefix: str = "") -> Markup:
    """Return the SVG element of ``plot``, ``width`` pixels wide; ``prefix`` keeps its ids apart from another drawing's."""
    height, parts = _draw(plot, width)
    title_id, desc_id = f"{prefix}{plot.name}-title", f"{prefix}{plot.name}-desc"
    return tag(
        "svg",
        tag("title", plot.title, id=title_id),
        tag("desc", plot.description, id=desc_id),
        *parts,
        viewBox=f"0 0 {width} {height:.0f}",
        role="img",
        aria_labelledby=f"{title_id} {desc_id}",
        data_plot=plot.name,
    )


@singledispatch
def _draw(plot: Plot, width: int) -> tuple[float, Iterator[Markup]]:
    raise AssertionError(f"no drawing for {type(plot)}")


@dataclass(frozen=True)
class _Frame:
    """The rectangle of a plot, with the axes that measure it."""

    left: float
    top: float
    right: float
    bottom: float
    x: Axis
    y: Axis

    def at(self, point: Point) -> Point:
        """Return where a point lies, in pixels."""
        return (
            self.left + self.x.place(point[0]) * (self.right - self.left),
            self.bottom - self.y.place(point[1]) * (self.bottom - self.top),
        )


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None) -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def _room(labels: Sequence[str], most: float = math.inf) -> float:
    return min(most, max((len(label) for label in labels), default=0) * _LETTER)


def _cut(text: str, width: float) -> str:
    """Return ``text`` as far as it fits into ``width`` pixels."""
    most = max(3, int(width / _LETTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def _axes(frame: _Frame, x_label: str, y_label: str) -> Iterator[Markup]:
    for tick in frame.y.ticks:
        _, y = frame.at((frame.x.low, tick))
        yield tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid")
        yield tag("text", frame.y.name(tick), x=frame.left - 8, y=y + 4, text_anchor="end", class_="y tick")
    for tick in frame.x.ticks:
        x, _ = frame.at((tick, frame.y.low))
        yield tag("line", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 4, class_="axis")
        yield tag("text", frame.x.name(tick), x=x, y=frame.bottom + 18, text_anchor="middle", class_="x tick")
    yield tag("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="axis")
    yield _text(frame.left, frame.top - 12, y_label, class_="unit")
    yield _text(frame.right, frame.bottom + 32, x_label, "end", class_="unit")


def _frame(width: int, height: float, x: Axis, y: Axis) -> _Frame:
    left = 14 + _room([y.name(tick) for tick in y.ticks])
    right_label = _room([x.name(x.ticks[-1])]) / 2 if x.ticks else 0.0
    return _Frame(left, 26.0, width - max(8.0, right_label), height - _AXIS, x, y)


@_draw.register
def _(plot: Chart, width: int) -> tuple[float, Iterator[Markup]]:
    height = 300.0 if width == WIDE else 240.0
    frame = _frame(width, height, *axes_of(plot))
    return height, itertools.chain(_axes(frame, plot.x_label, plot.y_label), _all_series(plot, frame))


def _all_series(plot: Chart, frame: _Frame) -> Iterator[Markup]:
    below: list[Point] = []
    for series in plot.series:
        points = [frame.at(point) for point in series.points]
        if series.kind == "area":
            floor = below or [(points[-1][0], frame.bottom), (points[0][0], frame.bottom)]
            yield tag("path", d=_path([*points, *floor]) + "Z", class_=f"area c{series.colour}")
            below = points[::-1]
        elif len(points) > 1 and series.kind != "scatter":
            kind = "line" if series.kind == "dots" else series.kind
            yield tag("path", d=_path(points), class_=f"{kind} c{series.colour}", data_series=series.label)
        if series.kind in ("dots", "scatter") or len(points) == 1:
            yield from _dots(series, points)


def _dots(series: Series, points: Sequence[Point]) -> Iterator[Markup]:
    for (x, y), (at, value) in zip(points, series.points, strict=True):
        title = tag("title", f"{series.label}, {at:g}: {value:.4g}")
        yield tag("circle", title, cx=x, cy=y, r=3.5, class_=f"dot c{series.colour}", data_dot=series.label)


@_draw.register
def _(plot: Histogram, width: int) -> tuple[float, Iterator[Markup]]:
    x = make_axis(plot.edges, num_ticks=6, tight=True)
    frame = _frame(width, 240.0, x, make_axis([*plot.counts, 1.0], from_zero=True, num_ticks=4, whole=True))
    return 240.0, itertools.chain(_axes(frame, plot.x_label, plot.y_label), _bins(plot, frame))


def _bins(plot: Histogram, frame: _Frame) -> Iterator[Markup]:
    for count, (low, high) in zip(plot.counts, itertools.pairwise(plot.edges), strict=True):
        (left, top), (right, bottom) = frame.at((low, count)), frame.at((high, 0))
        if count:
            title = tag("title", f"{low:.2f} to {high:.2f} {plot.x_label}: {count} {plot.y_label}")
            shape = {"x": left + 0.5, "y": top, "width": max(right - left - 1, 1.0), "height": bottom - top}
            yield tag("rect", title, **shape, class_="bar c0", data_count=count)


@_draw.register
def _(plot: Bars, width: int) -> tuple[float, Iterator[Markup]]:
    return 12 + 46.0 * len(plot.bars), _bars(plot, width)


def _bars(plot: Bars, width: int) -> Iterator[Markup]:
    longest = max(bar.value for bar in plot.bars) or 1.0
    room = width - _room([bar.text for bar in plot.bars]) - 16
    for number, bar in enumerate(plot.bars):
        top = 46.0 * number
        yield _text(0, top + 14, bar.label)
        yield tag("rect", x=0, y=top + 21, width=max(room * bar.value / longest, 1.0), height=14, class_=f"bar c{bar.colour}")
        yield _text(room * bar.value / longest + 8, top + 33, bar.text, class_="value")


@_draw.register
def _(plot: Timeline, width: int) -> tuple[float, Iterator[Markup]]:
    height = 26.0 * len(plot.lanes) + 16 + _AXIS
    return height, _lanes(plot, width, height)


def _lanes(plot: Timeline, width: int, height: float) -> Iterator[Markup]:
    left = 12 + _room([lane.label for lane in plot.lanes], 96)
    unit, name = (60.0, "minutes") if plot.length_s > 180 else (1.0, "seconds")
    axis = make_axis([0.0, plot.length_s / unit], from_zero=True, num_ticks=5, tight=True)
    bottom = height - _AXIS
    frame = _Frame(left, 8.0, width - 12.0, bottom, axis, make_axis([0.0, 1.0]))
    for tick in axis.ticks:
        x, _ = frame.at((tick, 0))
        yield tag("line", x1=x, x2=x, y1=4, y2=bottom, class_="grid")
        yield tag("text", axis.name(tick), x=x, y=bottom + 18, text_anchor="middle", class_="x tick")
    yield _text(width - 12, bottom + 32, name, "end", class_="unit")
    for number, lane in enumerate(plot.lanes):
        yield from _lane(lane, frame, 20 + 26.0 * number, unit)


def _lane(lane: Lane, frame: _Frame, y: float, unit: float) -> Iterator[Markup]:
    yield _text(0, y + 4, _cut(lane.label, 96))
    last = -math.inf
    for moment in lane.moments:
        begin, end = (frame.at((max(0.0, seconds) / unit, 0))[0] for seconds in (moment.start_s, moment.end_s))
        title = tag("title", f"{duration(moment.end_s)}: {moment.text}")
        if moment.end_s > moment.start_s:
            shape = {"x": begin, "y": y - 5, "width": max(end - begin, 2.0), "height": 10, "rx": 2}
            yield tag("rect", title, **shape, class_=f"bar c{lane.colour}")
        elif begin - last > _APART:
            last = begin
            yield tag("circle", title, cx=begin, cy=y, r=5, class_=f"dot c{lane.colour}")


@_draw.register
def _(plot: Network, width: int) -> tuple[float, Iterator[Markup]]:
    height = 170.0 if len(plot.nodes) < 3 else 320.0
    return height, _network(plot, width, height)


def place_nodes(count: int, width: float, height: float) -> list[Point]:
    """Return where nodes stand: two side by side, more in a round that fills the frame."""
    margin = 62.0
    if count < 3:
        return [(margin + number * (width - 2 * margin), height / 2) for number in range(count)]
    angles = [2 * math.pi * number / count - math.pi / 2 for number in range(count)]
    x, y = (make_axis([turn(angle) for angle in angles], tight=True) for turn in (math.cos, math.sin))
    inside = (width - 2 * margin, height - 56.0)
    return [(margin + inside[0] * x.place(math.cos(a)), 28 + inside[1] * y.place(math.sin(a))) for a in angles]


def _network(plot: Network, width: int, height: float) -> Iterator[Markup]:
    places = place_nodes(len(plot.nodes), width, height)
    bends = bend_edges(plot.edges)
    is_labelled = len(plot.edges) <= 6
    for edge, bend in zip(plot.edges, bends, strict=True):
        yield from _edge(edge, places, bend * (44 if is_labelled else 10), is_labelled)
    for name, (x, y) in zip(plot.nodes, places, strict=True):
        text = _cut(name, 108)
        half = _room([text]) / 2 + 10
        yield tag("rect", x=x - half, y=y - 14, width=2 * half, height=28, rx=14, class_="node")
        yield tag("text", tag("title", name), text, x=x, y=y + 4, text_anchor="middle")


def bend_edges(edges: Sequence[Edge]) -> list[float]:
    """Return how far each edge bends aside, so that several between the same nodes lie side by side: 0 for a single one."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, edge in enumerate(edges):
        groups.setdefault(tuple(sorted(edge.ends)), []).append(number)
    bends = [0.0] * len(edges)
    for group in groups.values():
        for position, number in enumerate(group):
            bends[number] = position - (len(group) - 1) / 2
    return bends


def _edge(edge: Edge, places: Sequence[Point], bend: float, is_labelled: bool) -> Iterator[Markup]:
    (x1, y1), (x2, y2) = (places[end] for end in sorted(edge.ends))
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    across = (-(y2 - y1) / length, (x2 - x1) / length)
    middle = ((x1 + x2) / 2 + 2 * bend * across[0], (y1 + y2) / 2 + 2 * bend * across[1])
    curve = f"M{x1:.1f} {y1:.1f}Q{middle[0]:.1f} {middle[1]:.1f} {x2:.1f} {y2:.1f}"
    kind = f"edge{' broken' if edge.is_broken else ''} c{edge.colour}"
    yield tag("path", tag("title", edge.title), d=curve, class_=kind, stroke_width=1.5 + 4.5 * edge.weight)
    if is_labelled:
        at = 0.5 + math.copysign(_ASIDE, bend) * bool(bend)  # labels of neighbours are not side by side
        x, y = (_between(a, b, c, at) for a, b, c in zip((x1, y1), middle, (x2, y2), strict=True))
        yield _text(x, y + 4, edge.text, "middle", class_="halo value")


_ASIDE = 0.13  # of an edge's length


def _between(start: float, control: float, end: float, at: float) -> float:
    """Return a coordinate of a quadratic curve's point."""
    return (1 - at) ** 2 * start + 2 * at * (1 - at) * control + at**2 * end
