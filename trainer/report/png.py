"""Plots as PNG files, drawn by matplotlib with the light palette of the page."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.paths import cache_dir
from trainer.report.chart import Bars, Chart, Histogram, Network, Plot, Series, Timeline, axes_of
from trainer.report.markup import clean
from trainer.report.palette import LIGHT
from trainer.report.svg import bend_edges, place_nodes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 160


def write_pngs(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Draw each plot into ``folder``; returns the files. What others named is taken literally, never as mathematics."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))  # read when matplotlib is imported
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"text.parse_math": False, "font.size": 9}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks
        return [_write(plot, folder / f"{plot.name}.png") for plot in plots]


def _write(plot: Plot, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8 if plot.is_wide else 5.6, 3.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(clean(plot.title), loc="left", fontweight="bold")
    _DRAWN_BY[type(plot)](plot, axes)
    scratch = path.with_name(f".{path.name}")
    figure.savefig(scratch, dpi=_DPI, format="png", metadata={"Title": clean(plot.title), "Software": None})
    os.replace(scratch, path)
    return path


def _chart(plot: Chart, axes: Axes) -> None:
    x_axis, y_axis = axes_of(plot)
    if plot.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xticks(x_axis.ticks, [x_axis.name(tick) for tick in x_axis.ticks])
    axes.set_yticks(y_axis.ticks, [y_axis.name(tick) for tick in y_axis.ticks])
    axes.minorticks_off()
    axes.set_xlim(x_axis.low, x_axis.high)
    axes.set_ylim(y_axis.low, y_axis.high)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    below: Sequence[float] | None = None
    for series in plot.series:
        below = _series(series, axes, below)
    if len(plot.series) > 1:
        handles = axes.get_legend_handles_labels()[0]
        labels = [f" {clean(series.label)}" for series in plot.series]
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _series(series: Series, axes: Axes, below: Sequence[float] | None) -> Sequence[float] | None:
    xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
    style: dict[str, object] = {"color": LIGHT[series.colour], "label": " series"}
    if series.kind == "area":
        axes.fill_between(xs, ys, below if below is not None else 0, linewidth=0, **style)  # type: ignore[arg-type]
        return ys
    style |= {"alpha": 0.4} if series.kind == "faint" else {}
    style |= {"linestyle": "none"} if series.kind == "scatter" else {"linestyle": "--"} if series.kind == "dashed" else {}
    style |= {"marker": "o", "markersize": 4} if series.kind in ("dots", "scatter") else {}
    axes.plot(xs, ys, **style)  # type: ignore[arg-type]
    return below


def _histogram(plot: Histogram, axes: Axes) -> None:
    axes.stairs(plot.counts, plot.edges, fill=True, color=LIGHT[0])
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)


def _bars(plot: Bars, axes: Axes) -> None:
    bars = axes.barh(range(len(plot.bars)), [bar.value for bar in plot.bars], color=[LIGHT[bar.colour] for bar in plot.bars])
    axes.bar_label(bars, [bar.text for bar in plot.bars], padding=4)
    axes.set_yticks(range(len(plot.bars)), [clean(bar.label) for bar in plot.bars])
    axes.invert_yaxis()


def _timeline(plot: Timeline, axes: Axes) -> None:
    for row, lane in enumerate(plot.lanes):
        spans = [(moment.start_s, moment.end_s - moment.start_s) for moment in lane.moments if moment.end_s > moment.start_s]
        axes.broken_barh(spans, (row - 0.25, 0.5), color=LIGHT[lane.colour])
        moments = [moment.start_s for moment in lane.moments if moment.end_s <= moment.start_s]
        axes.plot(moments, [row] * len(moments), "o", color=LIGHT[lane.colour])
    axes.set_yticks(range(len(plot.lanes)), [clean(lane.label) for lane in plot.lanes])
    axes.set_xlim(0, plot.length_s)
    axes.set_xlabel("seconds")
    axes.invert_yaxis()


def _network(plot: Network, axes: Axes) -> None:
    places = [(x, -y) for x, y in place_nodes(len(plot.nodes), 420, 300)]
    bends = bend_edges(plot.edges)
    for edge, bend in zip(plot.edges, bends, strict=True):
        start, end = (places[number] for number in sorted(edge.ends))
        style = {"arrowstyle": "-", "color": LIGHT[edge.colour], "linewidth": 1 + 4 * edge.weight}
        style |= {"connectionstyle": f"arc3,rad={0.4 * bend}", "linestyle": "--" if edge.is_broken else "-"}
        axes.annotate("", end, start, arrowprops=style)
        if len(plot.edges) <= _MOST_LABELS:
            x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
            aside = 0.2 * bend
            place = (x + aside * (end[1] - start[1]), y - aside * (end[0] - start[0]))
            axes.annotate(edge.text, place, ha="center", va="center", backgroundcolor="white")
    for name, place in zip(plot.nodes, places, strict=True):
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": "#666666"}
        axes.annotate(clean(name), place, ha="center", va="center", bbox=box)
    xs, ys = zip(*places, strict=True)
    axes.set_xlim(min(xs) - 70, max(xs) + 70)
    axes.set_ylim(min(ys) - 60, max(ys) + 60)
    axes.set_axis_off()


_MOST_LABELS = 6
_DRAWN_BY: dict[type, Callable[..., None]] = {
    Chart: _chart,
    Histogram: _histogram,
    Bars: _bars,
    Timeline: _timeline,
    Network: _network,
}
