"""What a person sees while a run goes on: a progress display on a terminal, plain lines at intervals otherwise.

Everything here goes to standard error; standard output is for results.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from trainer.cluster.outcome import Line
from trainer.events import Event

PLAIN_INTERVAL_S = 10.0
_AVERAGED_STEPS = 10
_NOT_TEXT = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links, the clipboard
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # every other control character but tab and newline
)


class RunConsole:
    """Shows the events of one run as they come. A context manager: the display is gone when the block ends."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True)
        self._clock = clock
        self._recent: list[Event] = []
        self._said_at = -PLAIN_INTERVAL_S
        self._num_steps = 0
        self._phases_said: set[str] = set()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_interactive,
        )
        self._task = self._progress.add_task("preparing", total=None, figures="")

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
        self.console.print(plain_text(text), soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Print a table above the progress display."""
        self.console.print(what)

    def show_progress(self, phase: str, done: int, total: int) -> None:
        """Show how far the sending of files has come, in MiB; a line for each file set where there is no terminal."""
        if not self.console.is_interactive and phase not in self._phases_said:
            self.say(f"{phase} ({total} MiB)")
        self._phases_said.add(phase)
        self._progress.update(self._task, description="sending", figures=f"{phase}: {done} of {total} MiB")

    def _show_notice(self, event: Event) -> None:
        self.say(event["text"])

    def _show_progress(self, event: Event) -> None:
        done, total = event["done"], event["total"]
        figures = f"{event['phase']} {done} of {total}" if done < total else ""
        self._progress.update(self._task, figures=figures)

    def _show_started(self, event: Event) -> None:
        if "mlx" in event["software"]:  # a job that trains nothing has nothing to agree on
            threads = _count(event["threads"], "thread")
            self.say(
                f"{_count(event['world_size'], 'rank')} connected and agreed, {threads} each, MLX {event['software']['mlx']}"
            )
        self._phase("loading")

    def _show_planned(self, event: Event) -> None:
        self._num_steps = event["steps"]
        epochs, rows = _count(_short(event["epochs"]), "epoch"), _count(event["rows"]["train"], "sample")
        self.say(
            f"{_count(event['steps'], 'step')} ({epochs} of {rows}); "
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

    def _show_resumed(self, event: Event) -> None:
        self._recent = []
        if event["step"]:
            self.say(f"goes on after step {event['step']} of {self._num_steps}")
        self._phase("training" if event["step"] else "answering")

    def _show_step(self, event: Event) -> None:
        self._recent = [*self._recent[1 - _AVERAGED_STEPS :], event]
        figures = describe_step(event, self._recent, self._num_steps)
        self._progress.update(
            self._task, completed=event["step"], total=self._num_steps, description="training", figures=figures
        )
        now = self._clock()
        last = event["step"] == self._num_steps
        if not self.console.is_interactive and (last or now - self._said_at >= PLAIN_INTERVAL_S):
            self._said_at = now
            self.say(f"step {event['step']}/{self._num_steps}  {figures}")

    def _phase(self, name: str) -> None:
        self._progress.update(self._task, description=name)


def plain_text(text: str) -> Text:
    """Return ``text`` as a terminal may show it: no markup, and no control characters that would command the terminal."""
    return Text(_NOT_TEXT.sub("", text))


def describe_step(event: Event, recent: list[Event], num_steps: int) -> str:
    """Return a line of figures: loss, tokens/s in total and per rank, communication's share, time left.

    Rates are means over the ``recent`` steps, ``event`` the last of them.
    """
    seconds = sum(e["step_s"] for e in recent) or math.inf
    total = sum(e["tokens"] for e in recent) / seconds
    ranks = [sum(column) / len(recent) for column in zip(*(e["rank_tokens_per_s"] for e in recent), strict=True)]
    share = sum(e["comm_s"] for e in recent) / seconds
    left = "?" if math.isinf(seconds) else _duration((num_steps - event["step"]) * seconds / len(recent))
    each = " + ".join(f"{rate:.0f}" for rate in ranks)
    return f"loss {event['loss']:.3f}  {total:.0f} tok/s ({each})  comm {share:.1%}  {left} left"


def render_summary(summary: dict[str, Any], style: str) -> Table:
    """Return the table shown at the end of a run: the figures that tell whether it was worth it.

    A run that ended early lacks some of them; their rows are left out.
    """
    table = Table(show_header=False, title="result", title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column()
    for name, text in _summary_rows(summary, style):
        table.add_row(plain_text(name), text)
    return table


def _summary_rows(summary: dict[str, Any], style: str) -> Iterator[tuple[str, str]]:
    get = {key: value for key, value in summary.items() if value is not None}.get
    before, best = get("loss_before"), get("loss_best")
    if before is not None and best is not None:
        change = (best - before) / before if before else 0.0
        yield "validation loss", f"{before:.4f} → {best:.4f}  ({change:+.0%}, best at step {get('best_step', '?')})"
    shares = [get("share_in_style", {}).get(when) for when in ("before", "after")]
    if None not in shares:
        yield f"replies in {style or 'the'} style", " → ".join(f"{share:.0%}" for share in shares)
    if rate := get("tokens_per_s"):
        yield "throughput", f"{rate:.0f} tokens/s, {get('supervised_tokens_per_s', 0):.0f} of them learned from"
        yield "communication", f"{get('comm_share', 0):.1%} of the time, waiting for the slowest {get('wait_share', 0):.1%}"
    if (traffic := get("traffic")) and traffic["share"] is not None:
        yield "traffic", f"{traffic['share']:.1%} of {traffic['bytes'] / 1e6:.0f} MB over {traffic['network']}"
    if baseline := get("baseline"):
        alone, foretold = baseline["host_alone"], f"{baseline['predicted_speedup']:.2f} predicted"
        yield "speed-up", f"{baseline['measured_speedup']:.2f} times {alone} alone, {foretold}"
    if (seconds := get("train_s")) is not None:
        yield "training time", f"{_duration(seconds)} for {_count(get('steps', 0), 'step')}"
    if memory := get("peak_memory_mib"):
        yield "peak memory", ", ".join(f"{mib:.0f} MiB" for mib in memory) + " (by rank)"


def render_answers(answers: list[dict[str, str]]) -> Table:
    """Return the demonstration prompts with their answers before and after training, side by side."""
    table = Table(title="answers", title_justify="left", title_style="bold", show_lines=True, expand=True)
    for name, ratio in (("prompt", 2), ("before", 4), ("after", 4)):
        table.add_column(name, ratio=ratio)
    for pair in answers:
        table.add_row(*(plain_text(pair.get(name, "")) for name in ("prompt", "before", "after")))
    return table


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _short(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"


def _count(number: int | str, noun: str) -> str:
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"
