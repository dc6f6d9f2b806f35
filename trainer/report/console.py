"""What a person sees while a run goes on: a progress display on a terminal, plain lines at intervals otherwise.

Everything here goes to standard error; standard output is for results.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from trainer.cluster.supervise import Line
from trainer.events import Event

PLAIN_INTERVAL_S = 10.0
_AVERAGED_STEPS = 10


class RunConsole:
    """Shows the events of one run as they come. A context manager: the display is gone when the block ends."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True)
        self._clock = clock
        self._recent: list[Event] = []
        self._said_at = -PLAIN_INTERVAL_S
        self._num_steps = 0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None, figures="")

    def __enter__(self) -> RunConsole:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_event(self, event: Event) -> None:
        """Show one event; kinds that nobody needs to see pass silently."""
        show = getattr(self, f"_show_{event['event']}", None)
        if show is not None:
            show(event)

    def on_line(self, line: Line) -> None:
        """Take other output: it goes to the logs only."""

    def say(self, text: str) -> None:
        """Print a line above the progress display."""
        self.console.print(Text(text), soft_wrap=True)

    def _show_progress(self, event: Event) -> None:
        self.say(event["text"])

    def _show_started(self, event: Event) -> None:
        threads = event["threads"]
        self.say(
            f"{_count(event['world_size'], 'rank')} connected and agreed, {_count(threads, 'thread')} each, "
            f"MLX {event['software']['mlx']}"
        )
        self._phase("loading")

    def _show_planned(self, event: Event) -> None:
        self._num_steps = event["steps"]
        rows = event["rows"]
        self.say(
            f"{event['steps']} steps ({event['epochs']:.2g} epochs of {rows['train']} samples); "
            f"{event['trainable'] / 1e6:.2f} of {event['parameters'] / 1e6:.0f} million parameters are trained"
        )
        self._phase("answering")

    def _show_answered(self, event: Event) -> None:
        share = "" if event["share_in_style"] is None else f": {event['share_in_style']:.0%} of the replies are in style"
        self.say(f"answers {event['when']} training{share}")
        self._phase("validating" if event["when"] == "before" else "done")

    def _show_validated(self, event: Event) -> None:
        best = "" if not event["best"] or not event["step"] else ", the best so far"
        self.say(f"step {event['step']}: validation loss {event['loss']:.4f}{best}")
        self._phase("answering" if event["step"] == self._num_steps else "training")

    def _show_step(self, event: Event) -> None:
        self._recent = [*self._recent[1 - _AVERAGED_STEPS :], event]
        figures = describe_step(event, self._recent, self._num_steps)
        self._progress.update(
            self._task, completed=event["step"], total=self._num_steps, description="training", figures=figures
        )
        now = self._clock()
        last = event["step"] == self._num_steps
        if not self.console.is_terminal and (last or now - self._said_at >= PLAIN_INTERVAL_S):
            self._said_at = now
            self.say(f"step {event['step']}/{self._num_steps}  {figures}")

    def _phase(self, name: str) -> None:
        self._progress.update(self._task, description=name)


def describe_step(event: Event, recent: list[Event], num_steps: int) -> str:
    """Return a line of figures: loss, tokens/s in total and per rank, communication's share, time left.

    Rates are means over the ``recent`` steps, ``event`` the last of them.
    """
    seconds = sum(e["step_s"] for e in recent)
    total = sum(e["tokens"] for e in recent) / seconds
    ranks = [sum(column) / len(recent) for column in zip(*(e["rank_tokens_per_s"] for e in recent), strict=True)]
    share = sum(e["comm_s"] for e in recent) / seconds
    left = timedelta(seconds=round((num_steps - event["step"]) * seconds / len(recent)))
    each = " + ".join(f"{rate:.0f}" for rate in ranks)
    return f"loss {event['loss']:.3f}  {total:.0f} tok/s ({each})  comm {share:.1%}  {left} left"


def render_summary(summary: dict[str, Any], style: str) -> Table:
    """Return the table shown at the end of a run: the figures that tell whether it was worth it."""
    table = Table(show_header=False, title="result", title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column()
    before, best = summary["loss_before"], summary["loss_best"]
    change = (best - before) / before if before else 0.0
    table.add_row("validation loss", f"{before:.4f} → {best:.4f}  ({change:+.0%}, best at step {summary['best_step']})")
    shares = summary["share_in_style"]
    if shares.get("before") is not None and shares.get("after") is not None:
        table.add_row(f"replies in {style or 'the'} style", f"{shares['before']:.0%} → {shares['after']:.0%}")
    rate, supervised = summary["tokens_per_s"], summary["supervised_tokens_per_s"]
    table.add_row("throughput", f"{rate:.0f} tokens/s, {supervised:.0f} of them learned from")
    table.add_row(
        "communication", f"{summary['comm_share']:.1%} of the time, waiting for the slowest {summary['wait_share']:.1%}"
    )
    table.add_row(
        "training time", str(timedelta(seconds=round(summary["train_s"]))) + f" for {_count(summary['steps'], 'step')}"
    )
    table.add_row("peak memory", ", ".join(f"{mib:.0f} MiB" for mib in summary["peak_memory_mib"]) + " (by rank)")
    return table


def render_answers(answers: list[dict[str, str]]) -> Table:
    """Return the demonstration prompts with their answers before and after training, side by side."""
    table = Table(title="answers", title_justify="left", title_style="bold", show_lines=True, expand=True)
    for name, ratio in (("prompt", 2), ("before", 4), ("after", 4)):
        table.add_column(name, ratio=ratio)
    for pair in answers:
        table.add_row(Text(pair["prompt"]), Text(pair.get("before", "")), Text(pair.get("after", "")))
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
