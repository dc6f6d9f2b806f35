"""What happened when in a run: the lanes of its timeline, and its events in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from trainer.errors import EXIT_INTERRUPTED
from trainer.events import Event
from trainer.measure.verdict import duration
from trainer.report.chart import FAULT, GREY, Lane, Moment, Timeline
from trainer.report.record import is_number
from trainer.report.story import Step, Story

_QUIET = {"step", "progress", "traffic", "prepared", "launched", "started", "planned", "reduced", "measured", "done"}
_PAUSE_S = 1.0


def plot_timeline(story: Story) -> Timeline:
    """Return the timeline of all that was told, also of what a resume has undone."""
    lanes = [lane for lane in _lanes(story) if lane.moments]
    length = max(story.told_at - story.began_at, 1e-3)
    return Timeline(
        name="timeline",
        title="What happened when",
        description=f"{duration(length)} from the first to the last event.",
        lanes=lanes,
        length_s=length,
    )


def _lanes(story: Story) -> Iterator[Lane]:
    since = story.began_at
    yield Lane(label="steps", moments=[_stretch(steps, since) for steps in _join(story.steps)], colour=0)
    rest: dict[str, list[Event]] = {}
    for event in _loud_events(story):
        rest.setdefault(event["event"], []).append(event)
    for kind, events in sorted(rest.items(), key=lambda item: _order(item[0])):
        label, colour = _LANES.get(kind, (kind, 4))
        moments = [Moment(start_s=e["time"] - since, end_s=e["time"] - since, text=tell_event(e)) for e in events]
        yield Lane(label=label, moments=moments, colour=colour)


_LANES = {
    "answered": ("answers", 2),
    "validated": ("validation", 1),
    "saved": ("adapter saved", 3),
    "checkpoint": ("checkpoints", 4),
    "notice": ("notices", GREY),
    "error": ("errors", FAULT),
}


def _order(kind: str) -> int:
    return list(_LANES).index(kind) if kind in _LANES else len(_LANES) - 2


def _join(steps: Sequence[Step]) -> list[list[Step]]:
    """Return steps in stretches that have no pause of more than a second between them."""
    stretches: list[list[Step]] = []
    for step in steps:
        if stretches and step.time - step.step_s - stretches[-1][-1].time < _PAUSE_S:
            stretches[-1].append(step)
        elif math.isfinite(step.step_s):
            stretches.append([step])
    return stretches


def _stretch(steps: Sequence[Step], since: float) -> Moment:
    first, last = steps[0], steps[-1]
    text = f"step {first.step}" if first is last else f"steps {first.step} to {last.step}"
    return Moment(start_s=first.time - first.step_s - since, end_s=last.time - since, text=text)


def tell_event(event: Event) -> str:
    """Return an event in a few words."""
    kind = event["event"]
    if kind == "validated":
        best = ", the best so far" if event.get("best") and event.get("step") else ""
        loss = f"{event['loss']:.4f}" if is_number(event.get("loss")) else "not finite"
        return f"step {event.get('step')}: validation loss {loss}{best}"
    if kind in ("checkpoint", "resumed", "skipped"):
        return {"checkpoint": "checkpoint of", "resumed": "goes on after", "skipped": "left out:"}[
            kind
        ] + f" step {event.get('step')}"
    if kind == "saved":
        return f"{event.get('what')} adapter saved"
    if kind == "answered":
        share = event.get("share_in_style")
        return f"answers {event.get('when')} training" + (f": {share:.0%} in style" if is_number(share) else "")
    return str(event.get("text") or event.get("message") or kind)


def list_events(story: Story) -> list[tuple[float, str]]:
    """Return what happened besides steps, in words, with the seconds since the beginning."""
    return [(event["time"] - story.began_at, tell_event(event)) for event in _loud_events(story)]


def _loud_events(story: Story) -> Iterator[Event]:
    """Yield what is worth a mark: of the ends those with a reason that no rank has told."""
    told = [event.get("message") for event in story.of("error")]
    for event in story.events:
        if event["event"] == "ended":
            kind = "notice" if event.get("exit_code") == EXIT_INTERRUPTED else "error"
            if event.get("exit_code") and event.get("message") not in told:
                yield {**event, "event": kind}
        elif event["event"] not in _QUIET:
            yield event
