"""The plots of a run, made of its story."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from trainer.report.chart import (
    GREY,
    NUM_COLOURS,
    Bar,
    Bars,
    Chart,
    Histogram,
    LineKind,
    Plot,
    Point,
    Series,
    smooth,
    thin,
)
from trainer.report.links import plot_network
from trainer.report.record import is_number
from trainer.report.story import Step, Story
from trainer.report.timeline import plot_timeline

MOST_POINTS, _MOST_MEANS = 400, 80
_MOST_LINES = 2 * (NUM_COLOURS - 1)  # plain and dashed; with more, only all together are shown
_SMOOTHING = 0.9


def plot_run(story: Story) -> list[Plot]:
    """Return the plots that the run has the figures for."""
    return [plot for plot in _plots(story) if not isinstance(plot, Chart) or any(series.points for series in plot.series)]


def _plots(story: Story) -> Iterator[Plot]:
    if len(story.steps) > 1 or story.of("validated"):
        yield _loss(story)
    if len(story.steps) > 1:
        yield _learning_rate(story.steps)
        yield _throughput(story)
        yield _sharing(story.steps)
    if len([step for step in story.steps if math.isfinite(step.step_s)]) > 1:
        yield _step_times(story.steps)
    if story.events:
        yield plot_timeline(story)
    if speeds := story.summary.get("baseline"):
        yield _speedup(speeds)
    if story.baseline and story.baseline["links"]:
        yield plot_network(story.baseline)


def _loss(story: Story) -> Chart:
    train = _points(story.steps, "loss")
    smoothed = smooth(train, min(_SMOOTHING, 1 - 1 / max(2.0, len(train) / 4)))
    validated = [(float(e["step"]), float(e["loss"])) for e in story.of("validated") if is_number(e.get("loss"))]
    kind: LineKind = "dots" if len(validated) <= _MOST_MEANS else "line"
    series = (
        Series(label="training", points=thin(train, MOST_POINTS), kind="faint", colour=0),
        Series(label="training, smoothed", points=thin(smoothed, MOST_POINTS), colour=0),
        Series(label="validation", points=thin(validated, MOST_POINTS), kind=kind, colour=1),
    )
    told = [
        f"{label} from {points[0][1]:.3f} to {points[-1][1]:.3f}" for label, points in _named(smoothed, validated) if points
    ]
    return Chart(
        name="loss",
        title="Loss",
        description=f"Nats per supervised token: {', '.join(told)}.",
        series=[each for each in series if each.points],
        x_label="step",
        is_counted=True,
        y_label="nats per token",
        is_wide=True,
    )


def _named(smoothed: Sequence[Point], validated: Sequence[Point]) -> list[tuple[str, Sequence[Point]]]:
    return [("training (smoothed)", smoothed), ("validation", validated)]


def _learning_rate(steps: Sequence[Step]) -> Chart:
    points = _points(steps, "learning_rate")
    peak = max((rate for _, rate in points), default=0.0)
    return Chart(
        name="learning-rate",
        title="Learning rate",
        description=f"At most {peak:.3g}.",
        series=[Series(label="learning rate", points=thin([(x, y * 1e3) for x, y in points], MOST_POINTS), colour=0)],
        x_label="step",
        is_counted=True,
        y_label="10⁻³",
        from_zero=True,
    )


def _throughput(story: Story) -> Chart:
    """All ranks together, and each while it computes: the difference is waiting and communication."""
    steps = [step for step in story.steps if step.step_s > 0]
    together = [(float(step.step), step.tokens / step.step_s) for step in steps]
    series = [Series(label="together", points=_averaged(together), colour=0)]
    groups = _group_ranks(story, len(steps[0].rank_tokens_per_s) if steps else 0)
    for number, (label, ranks) in enumerate(groups, 1):
        points = [(float(step.step), sum(step.rank_tokens_per_s[rank] for rank in ranks)) for step in _with_ranks(steps, ranks)]
        kind: LineKind = "line" if number < NUM_COLOURS else "dashed"
        series.append(Series(label=label, points=_averaged(points), kind=kind, colour=1 + (number - 1) % (NUM_COLOURS - 1)))
    rate = _mean([step.tokens for step in steps]) / _mean([step.step_s for step in steps])
    return Chart(
        name="throughput",
        title="Throughput",
        description=f"Tokens a second, means of neighbouring steps: all together {rate:.0f} over the whole. "
        "Each one's is while it computes, without waiting and communication.",
        series=[each for each in series if each.points],
        x_label="step",
        is_counted=True,
        y_label="tokens/s",
        from_zero=True,
    )


def _with_ranks(steps: Sequence[Step], ranks: Sequence[int]) -> list[Step]:
    return [step for step in steps if len(step.rank_tokens_per_s) > max(ranks)]


def _group_ranks(story: Story, num_ranks: int) -> list[tuple[str, list[int]]]:
    """Return what has a line of its own with the ranks that it stands for: each host, or each rank of a single one."""
    first = [0, *accumulate(story.hosts.values())]
    by_host = [(name, list(range(start, stop))) for name, (start, stop) in zip(story.hosts, pairwise(first), strict=True)]
    by_rank = [(f"rank {rank}", [rank]) for rank in range(num_ranks)]
    groups = by_host if len(by_host) > 1 and first[-1] == num_ranks else by_rank
    return groups if len(groups) <= _MOST_LINES else []


def _averaged(points: Sequence[Point]) -> list[Point]:
    """Return means of neighbouring steps, so few that a trend is seen."""
    return thin([point for point in points if math.isfinite(point[1])], _MOST_MEANS)


def _sharing(steps: Sequence[Step]) -> Chart:
    timed = [step for step in steps if step.step_s > 0]
    comm = _averaged([(float(step.step), 100 * step.comm_s / step.step_s) for step in timed])
    wait = _averaged([(float(step.step), 100 * step.wait_s / step.step_s) for step in timed])
    upper = [(x, y + rest) for (x, y), (_, rest) in zip(comm, wait, strict=False)]
    mean = {name: _mean([getattr(step, name) for step in timed]) / _mean([step.step_s for step in timed]) for name in _PARTS}
    return Chart(
        name="communication",
        title="Communication and waiting",
        description=f"Share of each step on rank 0: {mean['comm_s']:.1%} all-reduce and "
        f"{mean['wait_s']:.1%} waiting for the slowest rank, in the mean.",
        series=[
            Series(label="all-reduce", points=comm, kind="area", colour=0),
            Series(label="waiting for the slowest", points=upper, kind="area", colour=1),
        ],
        x_label="step",
        is_counted=True,
        y_label="% of the step",
        from_zero=True,
    )


_PARTS = ("comm_s", "wait_s")


def _step_times(steps: Sequence[Step]) -> Histogram:
    seconds = [step.step_s for step in steps if math.isfinite(step.step_s)]
    low, median, high = (float(value) for value in np.percentile(seconds, [25, 50, 75]))
    counts, edges = np.histogram(seconds, bins=min(24, max(5, round(2 * math.sqrt(len(seconds))))))
    return Histogram(
        name="step-times",
        title="Step times",
        description=f"Half of the steps took {low:.2f} to {high:.2f} s, the median is {median:.2f} s.",
        edges=[float(edge) for edge in edges],
        counts=[int(count) for count in counts],
        x_label="seconds",
        y_label="steps",
    )


def _speedup(told: Mapping[str, Any]) -> Bars:
    alone, predicted, measured = 1.0, told["predicted_speedup"], told["measured_speedup"]
    bars = [
        Bar(label=f"{told['host_alone']} alone", value=alone, text=f"{alone:.2f}×", colour=GREY),
        Bar(label="predicted", value=predicted, text=f"{predicted:.2f}×", colour=1),
        Bar(label="measured", value=measured, text=f"{measured:.2f}×", colour=0),
    ]
    return Bars(
        name="speed-up",
        title="Predicted and measured",
        description=f"1 is the speed of {told['host_alone']} alone as the baseline measured it: predicted were "
        f"{predicted:.2f}, measured {measured:.2f}.",
        bars=bars,
    )


def _points(steps: Sequence[Step], name: str) -> list[Point]:
    found = [(float(step.step), float(getattr(step, name))) for step in steps]
    return [point for point in found if math.isfinite(point[1])]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
