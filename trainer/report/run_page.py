"""What the page of a run says, in the order in which it is read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from markupsafe import Markup

from trainer.measure.verdict import duration
from trainer.report.baseline_page import tell_links
from trainer.report.markup import Figures, join
from trainer.report.run_plots import plot_run
from trainer.report.settings import compare_config, moment
from trainer.report.story import Story, ago
from trainer.report.timeline import list_events

_STATES = {"done": "finished", "failed": "failed", "interrupted": "interrupted", "unfinished": "not finished"}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the figures at the top."""

    label: str
    value: Markup
    note: Markup


def describe_run(story: Story) -> dict[str, Any]:
    """Return everything that the template of a run's page shows."""
    summary = story.summary
    planned = () if "stopped" in summary else ("steps",)  # without an end of its own, that is how many there should have been
    told = {"summary": {key: value for key, value in summary.items() if key not in planned}}
    told = {} if story.state == "unfinished" else told
    figures = Figures(**told, metrics=story.so_far)
    return {
        "name": story.folder.name,
        "state": _STATES[story.state],
        "is_fault": story.state == "failed",
        "status": _tell_state(story),
        "message": str(summary.get("message") or ""),
        "began": moment(story.began_at),
        "headline": _headline(story, figures),
        "tiles": [*_tiles(figures, story)],
        "answers": [pair for pair in summary.get("answers", []) if isinstance(pair, dict)],
        "plots": {plot.name: plot for plot in plot_run(story)},
        "events": [(_clock(at), text) for at, text in list_events(story)],
        "links": tell_links(story.baseline) if story.baseline and story.baseline["links"] else None,
        "facts": [*_facts(figures, story)],
        "software": {str(name): str(version) for name, version in (summary.get("software") or {}).items()},
        "config": compare_config(story.config),
    }


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))


def _tell_state(story: Story) -> str:
    if story.state == "unfinished":
        return (
            f"No end is recorded: the run is still going, or was cut off. The last event came {duration(ago(story.told_at))} "
            f"before this page was made, at {moment(time.time())}."
        )
    if story.state == "interrupted":
        return "The run was interrupted; what it had learned is kept."
    if story.state == "failed":
        return f"The run ended with exit code {story.summary.get('exit_code')}."
    return ""


def _headline(story: Story, figures: Figures) -> Markup:
    if not figures.has("loss_before", "loss_best"):
        return Markup("Nothing has been learned yet.") if story.state == "unfinished" else Markup("Nothing was learned.")
    before, best = figures.show("loss_before", "{:.4f}"), figures.show("loss_best", "{:.4f}")
    if not figures.get("best_step"):
        return join("The validation loss is ", before, " and has not fallen.")
    sentence = join("The validation loss fell from ", before, " to ", best)
    if figures.has("share_in_style/after"):
        style = str((story.config.get("style") or {}).get("name") or "the")
        after = figures.show("share_in_style/after", "{:.0%}")
        return join(sentence, "; ", after, f" of the replies are in {style} style.")
    return join(sentence, ".")


def _tiles(figures: Figures, story: Story) -> Iterator[Tile]:
    show, has = figures.show, figures.has
    if has("loss_before", "loss_best", "best_step"):
        value = join(show("loss_before", "{:.3f}"), " → ", show("loss_best", "{:.3f}"))
        yield Tile(label="validation loss", value=value, note=join("best at step ", show("best_step", "{:,}")))
    if has("share_in_style/before", "share_in_style/after"):
        value = join(show("share_in_style/before", "{:.0%}"), " → ", show("share_in_style/after", "{:.0%}"))
        yield Tile(label="replies in style", value=value, note=Markup("before and after"))
    if has("tokens_per_s", "supervised_tokens_per_s"):
        note = join(show("supervised_tokens_per_s", "{:,.0f}"), " of them learned from")
        yield Tile(label="throughput", value=join(show("tokens_per_s", "{:,.0f}"), " tok/s"), note=note)
    if has("baseline/measured_speedup", "baseline/predicted_speedup"):
        note = join(show("baseline/predicted_speedup", "{:.2f}"), " predicted")
        label = "beside the baseline" if len(story.hosts) == 1 else "speed-up"  # nobody is gained who could speed one host up
        yield Tile(label=label, value=join(show("baseline/measured_speedup", "{:.2f}"), "×"), note=note)
    if has("comm_share", "wait_share"):
        note = join(show("wait_share", "{:.1%}"), " waiting for the slowest")
        yield Tile(label="communication", value=show("comm_share", "{:.1%}"), note=note)
    if has("traffic/share", "traffic/bytes"):
        note = join(
            "of ", show("traffic/bytes", lambda n: f"{n / 1e6:,.0f} MB"), f" over {story.summary['traffic']['network']}"
        )
        yield Tile(label="on the fast link", value=show("traffic/share", "{:.1%}"), note=note)
    if has("train_s", "steps"):
        yield Tile(label="training", value=show("train_s", _clock), note=figures.count("steps", "step"))
    if memory := figures.get("peak_memory_mib"):
        shown = [show(f"peak_memory_mib/{rank}", "{:,.0f}") for rank in range(len(memory))]
        most = shown[max(range(len(memory)), key=lambda rank: float(memory[rank]))]
        yield Tile(label="peak memory", value=join(most, " MiB"), note=join("by rank: ", Markup(", ").join(shown)))


def _facts(figures: Figures, story: Story) -> Iterator[tuple[str, Markup]]:
    config = story.config
    yield "base model", join((config.get("model") or {}).get("source", "unknown"))
    if figures.has("trainable", "parameters"):
        yield "trained numbers", join(figures.show("trainable", "{:,}"), " of ", figures.show("parameters", "{:,}"))
    if figures.has("rows/train", "tokens/train"):
        yield "samples", join(figures.show("rows/train", "{:,}"), " with ", figures.show("tokens/train", "{:,}"), " tokens")
    if figures.has("rows/valid", "rows/test"):
        yield (
            "kept aside",
            join(figures.show("rows/valid", "{:,}"), " to validate, ", figures.show("rows/test", "{:,}"), " to test"),
        )
    if figures.has("epochs"):
        yield "epochs", figures.show("epochs", lambda n: f"{n:.2g}" if n < 10 else f"{n:,.0f}")
    if figures.has("world_size", "threads"):
        yield "ranks", join(figures.show("world_size", "{}"), " with ", figures.count("threads", "thread"), " each")
    if story.hosts:
        yield "hosts", join(", ".join(story.hosts))
    yield "backend", join((config.get("launch") or {}).get("backend", "unknown"))
    if told := story.summary.get("baseline"):
        yield "baseline", join(f"{told['name']}, {moment(told['time'])}")
        yield f"{told['host_alone']} alone", join(figures.show("baseline/alone_tokens_per_s", "{:,.1f}"), " tok/s")
        yield "predicted", join(figures.show("baseline/predicted_tokens_per_s", "{:,.1f}"), " tok/s")
