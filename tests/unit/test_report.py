"""What is shown and kept of a run: exact lines without a terminal, a screen with one, files that any reader understands."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainer.cluster.outcome import Line, Outcome
from trainer.events import Event
from trainer.report.console import RunConsole, describe_step, plain_text, render_answers, render_summary
from trainer.report.record import Record, drop_undone, read_events, summarise, to_json

HOSTILE = "[bold]aye[/x] [/] [link=x]\\[red] :skull: {x} \x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J\x08\x00\x9b31m\x7f\rend"
HARMLESS = "[bold]aye[/x] [/] [link=x]\\[red] :skull: {x} red31mend"
ESCAPES = re.compile(r"\x1b\[(\??)(\d*)([A-Za-z])|\x1b")


def event(kind: str, **fields: object) -> Event:
    return {"event": kind, "rank": 0, "time": 1.0, **fields}


def step(number: int, **fields: object) -> Event:
    """A step of 2 s on two ranks, 100 and 50 tokens/s."""
    timing = {"step_s": 2.0, "comm_s": 0.2, "wait_s": 0.1, "tokens": 300, "rank_tokens_per_s": [100.0, 50.0]}
    return event(
        "step", step=number, **{"loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-4, "supervised": 90, **timing, **fields}
    )


def planned(steps: int, **fields: object) -> Event:
    counts = {"rows": {"train": 320, "valid": 40, "test": 72}, "trainable": 610_000, "parameters": 134_500_000}
    return event("planned", **{"steps": steps, "epochs": 1.0, **counts, **fields})


def answered(when: str, reply: str = "Aye.", share: float | None = 0.5) -> Event:
    demo = [{"prompt": "Tea?", "reply": reply}, {"prompt": "Exam?", "reply": f"{when}: {reply}"}]
    return event("answered", when=when, demo=demo, test=[], share_in_style=share)


STARTED = event("started", world_size=2, threads=1, software={"python": "3.11", "mlx": "0.32.4"})
DONE = event(
    "done",
    stopped=False,
    steps=40,
    loss_before=3.0,
    loss_best=2.25,
    best_step=30,
    loss_last=2.4,
    tokens_per_s=151.4,
    supervised_tokens_per_s=40.0,
    comm_share=0.012,
    wait_share=0.25,
    train_s=3725.4,
    peak_memory_mib=[812.3, 1024.0],
)
FIGURES = "loss 2.500  150 tok/s (100 + 50)  comm 10.0%"


def show_plainly(*events: Event, clock: Callable[[], float] = lambda: 0.0) -> list[str]:
    """The lines that a run without a terminal prints."""
    file = io.StringIO()
    with RunConsole(Console(file=file, width=40, force_terminal=False), clock) as console:
        for each in events:
            console.on_event(each)
    return file.getvalue().splitlines()


class Screen:
    """A file that is a terminal: it keeps what a person would see."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.seen: list[list[str]] = []
        self._row = 0
        self._column = 0

    def write(self, text: str) -> int:
        rest = 0
        for match in ESCAPES.finditer(text):
            self._print(text[rest : match.start()])
            self._command(match)
            rest = match.end()
        self._print(text[rest:])
        self.seen.append([line.rstrip() for line in self.lines if line.strip()])
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    def _print(self, text: str) -> None:
        for char in text:
            if char == "\n":
                self._row, self._column = self._row + 1, 0
                self.lines += [""] * (self._row + 1 - len(self.lines))
            elif char == "\r":
                self._column = 0
            else:
                assert char.isprintable(), f"{char!r} commands the terminal"
                line = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = line[: self._column] + char + line[self._column + 1 :]
                self._column += 1

    def _command(self, match: re.Match[str]) -> None:
        private, number, letter = match.groups()
        if letter == "A":
            self._row -= int(number or 1)
        elif letter == "K":
            assert number == "2"
            self.lines[self._row] = ""
        else:
            assert letter == "m" or (private and number == "25"), f"{match[0]!r} is neither a colour nor the cursor"


def show_on_terminal(*events: Event) -> Screen:
    screen = Screen()
    console = Console(file=screen, width=100, force_terminal=True, _environ={"TERM": "xterm"})  # type: ignore[arg-type]
    with RunConsole(console, lambda: 0.0) as display:
        for each in events:
            display.on_event(each)
            display._progress.refresh()
    return screen


def test_plain_run() -> None:
    """A whole run without a terminal is a dozen lines, none of them wrapped."""
    times = iter([0.0, 9.9, 10.0, 15.0])
    lines = show_plainly(
        event("notice", text="model: converted once, kept in the cache"),
        STARTED,
        planned(4),
        answered("before", share=0.0),
        event("validated", step=0, loss=3.0, best=True),
        *(step(number) for number in (1, 2, 3, 4)),
        event("validated", step=4, loss=2.25, best=True),
        event("saved", what="best", path="/runs/x/adapter"),
        answered("after", share=0.875),
        DONE,
        clock=lambda: next(times),
    )
    assert lines == [
        "model: converted once, kept in the cache",
        "2 ranks connected and agreed, 1 thread each, MLX 0.32.4",
        "4 steps (1 epoch of 320 samples); 0.61 of 134 million parameters are trained",
        "answers before training: 0% of the replies are in style",
        "step 0: validation loss 3.0000",
        f"step 1/4  {FIGURES}  0:00:06 left",
        f"step 3/4  {FIGURES}  0:00:02 left",
        f"step 4/4  {FIGURES}  0:00:00 left",
        "step 4: validation loss 2.2500, the best so far",
        "answers after training: 88% of the replies are in style",
    ]


def test_plain_lines_are_rare() -> None:
    """A step is told at most every ten seconds, the first and the last one always."""
    seconds = itertools.count(0, 0.5)
    lines = show_plainly(planned(100), *(step(number) for number in range(1, 101)), clock=lambda: next(seconds))
    assert [line.split("  ")[0] for line in lines[1:]] == [f"step {n}/100" for n in (1, 21, 41, 61, 81, 100)]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"epochs": 0.05}, "4 steps (0.05 epochs of 320 samples); 0.61 of 134 million parameters are trained"),
        ({"epochs": 2.5}, "4 steps (2.5 epochs of 320 samples); 0.61 of 134 million parameters are trained"),
        ({"epochs": 120.2}, "4 steps (120 epochs of 320 samples); 0.61 of 134 million parameters are trained"),
        (
            {"steps": 1, "rows": {"train": 1}, "trainable": 12_345_678, "parameters": 70e9},
            "1 step (1 epoch of 1 sample); 12.35 of 70000 million parameters are trained",
        ),
    ],
)
def test_planned(fields: dict[str, Any], line: str) -> None:
    """What will happen is told in numbers that people read."""
    assert show_plainly(planned(**{"steps": 4, **fields})) == [line]


def test_figures_are_means() -> None:
    """Rates are means over the last ten steps, the loss is the last step's, and the time left follows from the mean."""
    slow = [step(number, step_s=100.0) for number in range(1, 6)]
    quick = [step(number, step_s=1.0, comm_s=0.5, tokens=number, loss=2.0) for number in range(6, 16)]
    lines = show_plainly(planned(20), *slow, *quick, step(20, step_s=1.0, comm_s=0.5, tokens=16, loss=1.5))
    assert lines[-1] == "step 20/20  loss 1.500  12 tok/s (100 + 50)  comm 50.0%  0:00:00 left"


def test_first_step_of_no_time() -> None:
    """A clock too coarse for a step is no division by zero."""
    event = step(1, step_s=0.0)
    assert describe_step(event, [event], 3) == "loss 2.500  0 tok/s (100 + 50)  comm 0.0%  ? left"


def test_loss_that_is_no_number() -> None:
    """A diverging run is shown as it is."""
    lines = show_plainly(planned(1), event("validated", step=0, loss=math.nan, best=False), step(1, loss=math.inf))
    assert lines[1:] == [
        "step 0: validation loss nan",
        "step 1/1  loss inf  150 tok/s (100 + 50)  comm 10.0%  0:00:00 left",
    ]


@pytest.mark.parametrize("kind", ["saved", "error", "done", "prepared", "unheard-of", "", "summary", "__class__", "\x00"])
def test_silent_events(kind: str) -> None:
    """Events that nobody needs to see, from a newer trainer too, pass without a word."""
    assert show_plainly(event(kind)) == []


def test_output_lines_are_not_shown() -> None:
    """Other output of ranks and launcher goes to the logs only."""
    file = io.StringIO()
    RunConsole(Console(file=file)).on_line(Line(0, "Traceback"))
    assert file.getvalue() == ""


def test_terminal_shows_a_bar() -> None:
    """On a terminal steps are a bar that moves in its place, below the lines that stay; in the end the bar is gone."""
    screen = show_on_terminal(STARTED, planned(40), *(step(number) for number in range(1, 41)))
    said = [
        "2 ranks connected and agreed, 1 thread each, MLX 0.32.4",
        "40 steps (1 epoch of 320 samples); 0.61 of 134 million parameters are trained",
    ]
    bars = [line for lines in screen.seen for line in lines if line not in said]
    bars = list(dict.fromkeys(bars))
    assert f"training ━━━━━━━━━━━━━━━━━━━━━━━━ 40/40 {FIGURES}  0:00:00 left" in bars
    assert [bar.split("left")[0][-8:].strip() for bar in bars if " 20/40 " in bar] == ["0:00:40"]
    assert len([bar for bar in bars if bar.startswith("training")]) == 40
    assert max(len(lines) for lines in screen.seen) == 3
    assert [line for line in screen.lines if line] == said


def test_terminal_phases() -> None:
    """While there are no steps the display says what is being done."""
    screen = show_on_terminal(
        STARTED,
        planned(4),
        answered("before"),
        event("validated", step=0, loss=3.0, best=True),
        step(4),
        event("validated", step=4, loss=2.0, best=True),
        answered("after"),
    )
    words = [lines[-1].split(" ")[0] for lines in screen.seen if lines and "━" in lines[-1]]
    shown = [word for word, _ in itertools.groupby(words)]
    assert shown == ["preparing", "loading", "answering", "validating", "training", "answering", "done"]


def test_dumb_terminal() -> None:
    """A terminal that cannot move its cursor gets the plain lines."""
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, _environ={"TERM": "dumb"})
    with RunConsole(console, lambda: 0.0) as display:
        display.on_event(planned(2))
        display.on_event(step(1))
    assert file.getvalue().splitlines()[1:] == [f"step 1/2  {FIGURES}  0:00:02 left"]


def test_display_ends_with_an_exception() -> None:
    """An exception inside the block leaves no display behind."""
    screen = Screen()
    console = Console(file=screen, width=100, force_terminal=True, _environ={"TERM": "xterm"})  # type: ignore[arg-type]
    console.print("said")
    with pytest.raises(KeyError), RunConsole(console) as display:
        display.on_event(event("started"))
    assert [line for line in screen.lines if line] == ["said"]


def test_plain_text() -> None:
    """Control characters and their sequences go; newlines, tabs and all that can be read stay."""
    assert plain_text(HOSTILE).plain == HARMLESS
    assert plain_text("a\tb\nc  é 🏴‍☠️ “x”").plain == "a\tb\nc  é 🏴‍☠️ “x”"
    assert plain_text("\x1b[38;5;1mx\x1b[0K\x1b[?25l\x1b]8;;http://x\x1b\\y\x1b]8;;\x1b\\\x1b(B\x1bc").plain == "xy(Bc"
    assert plain_text("\x1b]52;c;unterminated\n").plain == "]52;c;unterminated\n"
    assert plain_text("\x1b" * 100_000 + "[").plain == "["


def test_messages_are_literal() -> None:
    """Markup and control characters in a message are neither interpreted nor passed on, with a terminal or without."""
    assert show_plainly(event("notice", text=HOSTILE)) == [HARMLESS]
    screen = show_on_terminal(event("notice", text=HOSTILE))
    assert [line for line in screen.lines if line] == [HARMLESS]


def render(thing: Any, width: int = 100) -> list[str]:
    """What a table looks like on a terminal."""
    screen = Screen()
    Console(file=screen, width=width, force_terminal=True, _environ={"TERM": "xterm"}).print(thing)  # type: ignore[arg-type]
    return [line.rstrip() for line in screen.lines if line]


@pytest.mark.parametrize("reply", [HOSTILE, "[bold]", "[/x]", "[", "\\[/]", "", "\x1b[2J" * 500])
def test_answers_are_literal(reply: str) -> None:
    """What a model answers is shown letter by letter, whatever markup or escape sequences it makes up."""
    pair = {"prompt": reply, "before": reply, "after": reply}
    [*_, row, _] = render(render_answers([pair]), width=400)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [plain_text(reply).plain] * 3


def test_answers_without_after() -> None:
    """A run that was stopped has answers from before only."""
    assert render(render_answers([{"prompt": "Tea?", "before": "Boil water."}]), width=60) == [
        "answers",
        "┏━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┓",
        "┃ prompt     ┃ before               ┃ after                ┃",
        "┡━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━┩",
        "│ Tea?       │ Boil water.          │                      │",
        "└────────────┴──────────────────────┴──────────────────────┘",
    ]


def rows(summary: dict[str, Any], style: str = "pirate") -> list[list[str]]:
    """The cells of the summary's table."""
    lines = render(render_summary(summary, style), width=200)[1:]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


SUMMARY = {
    **{key: value for key, value in DONE.items() if key not in ("event", "rank", "time")},
    "share_in_style": {"before": 0.0, "after": 0.875},
}


def test_summary_table() -> None:
    """The summary tells in six rows whether the run was worth it."""
    assert rows(SUMMARY) == [
        ["validation loss", "3.0000 → 2.2500  (-25%, best at step 30)"],
        ["replies in pirate style", "0% → 88%"],
        ["throughput", "151 tokens/s, 40 of them learned from"],
        ["communication", "1.2% of the time, waiting for the slowest 25.0%"],
        ["training time", "1:02:05 for 40 steps"],
        ["peak memory", "812 MiB, 1024 MiB (by rank)"],
    ]


def test_summary_of_several_hosts() -> None:
    """A run over a network tells which share of all bytes took it; one that carried nothing has no such row."""
    traffic = {"network": "10.99.0.0/24", "share": 0.99962, "bytes": 123_456_789, "hosts": {}}
    assert ["traffic", "100.0% of 123 MB over 10.99.0.0/24"] in rows({**SUMMARY, "traffic": traffic})
    assert rows({**SUMMARY, "traffic": {**traffic, "share": None}}) == rows(SUMMARY)


def test_summary_style_is_literal() -> None:
    """The style's name is the user's text, not markup; without one the row has no name to show."""
    assert rows(SUMMARY, HOSTILE)[1] == [f"replies in {HARMLESS} style", "0% → 88%"]
    assert rows(SUMMARY, "")[1] == ["replies in the style", "0% → 88%"]


@pytest.mark.parametrize("missing", [*SUMMARY, "all"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_summary_with_missing_pieces(missing: str, how: str) -> None:
    """Whatever a run that ended early lacks, the other rows are shown and nothing is raised."""
    lacking = list(SUMMARY) if missing == "all" else [missing]
    gaps: dict[str, Any] = {} if how == "absent" else dict.fromkeys(lacking)
    shown = rows({key: value for key, value in SUMMARY.items() if key not in lacking} | gaps)
    names = [name for name, _ in shown]
    without = {
        "loss_before": ["validation loss"],
        "loss_best": ["validation loss"],
        "share_in_style": ["replies in pirate style"],
        "tokens_per_s": ["throughput", "communication"],
        "train_s": ["training time"],
        "peak_memory_mib": ["peak memory"],
        "all": [name for name, _ in rows(SUMMARY)],
    }
    assert names == [name for name, _ in rows(SUMMARY) if name not in without.get(missing, [])]


@pytest.mark.parametrize("shares", [{}, {"before": 0.5}, {"before": None, "after": None}, {"before": None, "after": 0.5}])
def test_summary_without_shares(shares: dict[str, float | None]) -> None:
    """Without a share on both sides there is nothing to compare."""
    assert "replies" not in str(rows({**SUMMARY, "share_in_style": shares}))


def test_summary_of_a_loss_of_zero() -> None:
    """A loss of zero before training is no division by zero."""
    assert rows({"loss_before": 0.0, "loss_best": 0.0})[0][1] == "0.0000 → 0.0000  (+0%, best at step ?)"


def read_strictly(text: str) -> Any:
    """JSON as every other reader takes it: NaN and Infinity are errors."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_files_of_a_run(tmp_path: Path) -> None:
    """Events go to metrics.jsonl, each rank's lines to its log, the launcher's own to mpirun.log, the whole to summary.json."""
    record = Record(tmp_path)
    record.on_event(STARTED)
    record.on_line(Line(None, "a warning"))
    record.on_line(Line(1, "ü 🏴‍☠️\t\x1b[31m"))
    record.on_event(answered("before"))
    record.on_line(Line(11, "x"))
    record.on_line(Line(1, ""))
    record.on_event(DONE)
    summary = record.finish(Outcome(0))
    files = {str(path.relative_to(tmp_path)): path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()}
    *told, ended = [read_strictly(line) for line in files.pop("metrics.jsonl").splitlines()]
    assert told == [STARTED, answered("before"), DONE]
    assert (ended["event"], ended["exit_code"], ended["message"]) == ("ended", 0, "")
    assert read_strictly(files.pop("summary.json")) == summary
    assert files == {
        "logs/mpirun.log": "a warning\n",
        "logs/rank-1.log": "ü 🏴‍☠️\t\x1b[31m\n\n",
        "logs/rank-11.log": "x\n",
    }


def test_nothing_is_lost_in_a_crash(tmp_path: Path) -> None:
    """Each line is in its file before the next one comes."""
    record = Record(tmp_path)
    for number in (1, 2, 3):
        record.on_event(step(number))
        record.on_line(Line(0, str(number)))
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == number
        assert (tmp_path / "logs/rank-0.log").read_text().splitlines()[-1] == str(number)
    record.finish(Outcome(0))


def test_a_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    """A second record in the same folder, after a resume, adds to the files of the first."""
    for number in (1, 2):
        record = Record(tmp_path)
        record.on_event(step(number))
        record.on_line(Line(0, str(number)))
        record.finish(Outcome(0))
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event.get("step", event["event"]) for event in told] == [1, "ended", 2, "ended"]
    assert (tmp_path / "logs/rank-0.log").read_text() == "1\n2\n"


def test_steps_that_nobody_heard_of(tmp_path: Path) -> None:
    """What a resumed run tells of steps that are missing, or were taken back, comes before; what is known is not repeated."""
    again = {**STARTED, "event": "resumed", "step": 1}
    record = Record(tmp_path)
    for event in (step(1), step(2), step(3), again, step(2)):
        record.on_event(event)
    second, third, fourth = ({**step(number), "loss": 9.0} for number in (2, 3, 4))
    told = [second, third, {**third, "event": "validated"}, fourth]
    record.on_event({**again, "step": 4, "told": told})
    record.finish(Outcome(0))
    events = read_events(tmp_path / "metrics.jsonl")[:-1]
    assert events == [step(1), step(2), step(3), again, step(2), *told[1:], {**again, "step": 4}]
    assert [event for event in drop_undone(events) if event["event"] == "step"] == [step(1), step(2), third, fourth]


def test_summary_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """summary.json appears by a rename: a reader finds the old one or the new one, never half of one."""
    replaced: list[tuple[str, str, Any]] = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        replaced.append((source.name, target.name, read_strictly(source.read_text("utf-8"))["exit_code"]))
        assert read_strictly(target.read_text("utf-8")) == "the old one"
        replace(source, target)

    (tmp_path / "summary.json").write_text('"the old one"')
    monkeypatch.setattr(os, "replace", watch)
    Record(tmp_path).finish(Outcome(4, "diverged"))
    assert replaced == [(".summary.json", "summary.json", 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "summary.json"]


def finish(folder: Path, outcome: Outcome, *events: Event) -> dict[str, Any]:
    """The summary of a run of these events: what is returned, which is what the file holds."""
    record = Record(folder)
    for each in events:
        record.on_event(each)
    summary = record.finish(outcome)
    assert read_strictly((folder / "summary.json").read_text("utf-8")) == summary
    assert render(render_summary(summary, "pirate"))
    return summary


def test_run_without_events(tmp_path: Path) -> None:
    """A launcher that failed at once leaves a summary that says so."""
    assert finish(tmp_path, Outcome(3, "not all ranks had started")) == {
        "exit_code": 3,
        "message": "not all ranks had started",
        "share_in_style": {},
        "answers": [],
    }


def test_run_that_fails_before_it_starts(tmp_path: Path) -> None:
    """An error before all ranks have connected leaves the same."""
    error = event("error", message="the hosts do not agree", exit_code=3)
    assert finish(tmp_path, Outcome(3, "the hosts do not agree"), error) == {
        "exit_code": 3,
        "message": "the hosts do not agree",
        "share_in_style": {},
        "answers": [],
    }


def test_run_that_fails_in_training(tmp_path: Path) -> None:
    """A run that diverges has what was planned and the answers before."""
    error = event("error", message="step 7: the loss is nan", exit_code=4)
    events = (STARTED, planned(40), answered("before"), step(1, loss=math.nan), error)
    assert finish(tmp_path, Outcome(4, "step 7: the loss is nan"), *events) == {
        "exit_code": 4,
        "message": "step 7: the loss is nan",
        "world_size": 2,
        "threads": 1,
        "software": {"python": "3.11", "mlx": "0.32.4"},
        "steps": 40,
        "epochs": 1.0,
        "rows": {"train": 320, "valid": 40, "test": 72},
        "trainable": 610_000,
        "parameters": 134_500_000,
        "share_in_style": {"before": 0.5},
        "answers": [{"prompt": "Tea?", "before": "Aye."}, {"prompt": "Exam?", "before": "before: Aye."}],
    }
    metrics = [read_strictly(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in metrics if line["event"] == "step"] == [None]


def test_run_without_a_finite_loss(tmp_path: Path) -> None:
    """What has no value yet, NaN or infinity in the trainer, is null in the files, which stay JSON."""
    done = {**DONE, "stopped": True, "loss_before": math.nan, "loss_best": math.inf, "loss_last": -math.inf, "best_step": 0}
    summary = finish(tmp_path, Outcome(130, "interrupted"), STARTED, planned(40), done)
    assert [summary[key] for key in ("loss_before", "loss_best", "loss_last")] == [None, None, None]
    assert [name for name, _ in rows(summary)] == ["throughput", "communication", "training time", "peak memory"]


def test_run_to_the_end(tmp_path: Path) -> None:
    """A whole run's summary has figures, shares and both answers to each prompt; the steps are those that were done."""
    stopped_early = {**DONE, "steps": 12}
    summary = finish(tmp_path, Outcome(0), STARTED, planned(40), answered("before"), answered("after", "Arr."), stopped_early)
    assert (summary["exit_code"], summary["message"], summary["steps"], summary["loss_best"]) == (0, "", 12, 2.25)
    assert summary["share_in_style"] == {"before": 0.5, "after": 0.5}
    assert summary["answers"] == [
        {"prompt": "Tea?", "before": "Aye.", "after": "Arr."},
        {"prompt": "Exam?", "before": "before: Aye.", "after": "after: Arr."},
    ]


def test_broken_characters(tmp_path: Path) -> None:
    """Half of a pair of surrogates, which no file can hold, is written as an escape instead of ending the run."""
    broken = "caf\udce9 \ud83c"
    record = Record(tmp_path)
    record.on_event(answered("before", reply=broken))
    record.on_line(Line(0, broken))
    summary = record.finish(Outcome(70, broken))
    assert summary["message"] == broken
    assert read_strictly((tmp_path / "summary.json").read_text("utf-8")) == summary
    assert read_strictly((tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()[0])["demo"][0]["reply"] == broken
    assert (tmp_path / "logs/rank-0.log").read_text("utf-8") == "caf\\udce9 \\ud83c\n"


def test_json_of_everything() -> None:
    """Only numbers that are not finite change; texts, lists, tables and their order stay."""
    value = {"b": [1, 2.5, True, None, "NaN ü"], "a": {"x": (math.nan, math.inf)}, "n": -math.inf}
    assert to_json(value) == '{"b": [1, 2.5, true, null, "NaN ü"], "a": {"x": [null, null]}, "n": null}'


def test_summarise_takes_the_last() -> None:
    """Of events that come twice, as after a restart, the last one counts."""
    events = {"started": [STARTED, {**STARTED, "world_size": 3}], "answered": [answered("after"), answered("after", "Arr.")]}
    summary = summarise(events, Outcome(0))
    assert summary["world_size"] == 3
    assert summary["answers"][0] == {"prompt": "Tea?", "after": "Arr."}
