"""Events on the wire: what a rank writes is what the supervisor reads, and nothing else passes for an event."""

from __future__ import annotations

import io
import json
import math
import random

import pytest

from trainer.events import Event, Events, parse_event

GOOD = '{"event": "step", "rank": 1, "time": 12.5, "loss": 2.25}'


def emit(kind: str, **fields: object) -> str:
    """The line that a rank writes, at a fixed time."""
    stream = io.StringIO()
    Events(rank=1, stream=stream, clock=lambda: 12.34567).emit(kind, **fields)
    return stream.getvalue()


def test_one_line_per_event() -> None:
    """An event is one line of JSON that begins with its kind; rank and time (in ms) follow, then the fields in order."""
    assert emit("step", loss=2.25, note="a\nb\u2028ü") == (
        '{"event": "step", "rank": 1, "time": 12.346, "loss": 2.25, "note": "a\\nb\\u2028\\u00fc"}\n'
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"message": "quotes \" and ', [bold], \x1b[31m, \x00, 'ahoy' 🏴‍☠️", "exit_code": 4},
        {"demo": [{"prompt": "p\n", "reply": "}\n{"}], "share_in_style": None},
        {"half": "\ud83c", "deep": {"a": [[[1.5e-300]]]}, "large": 2**70},
        {"pad": "x" * 1_000_000},
    ],
    ids=["none", "hostile text", "lists", "odd values", "1 MB"],
)
def test_round_trip(fields: Event) -> None:
    """Whatever fields an event has, the other side reads the same ones."""
    line = emit("answered", **fields)
    assert line.count("\n") == 1
    assert parse_event(line) == {"event": "answered", "rank": 1, "time": 12.346, **fields}


def test_numbers_that_are_none() -> None:
    """NaN and infinity, the loss of a run that diverges, arrive as such."""
    event = parse_event(emit("validated", loss=math.nan, best=math.inf, worst=-math.inf))
    assert event is not None
    assert math.isnan(event.pop("loss"))
    assert event == {"event": "validated", "rank": 1, "time": 12.346, "best": math.inf, "worst": -math.inf}


def test_flushed_at_once() -> None:
    """An event leaves the process before emit returns, though the stream is buffered."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(raw, 1 << 20), "utf-8")
    Events(stream=stream, clock=lambda: 0.0).emit("started")
    assert raw.getvalue() == b'{"event": "started", "rank": 0, "time": 0.0}\n'


@pytest.mark.parametrize("end", range(len(GOOD)))
def test_half_a_line(end: int) -> None:
    """An event cut off anywhere, as when a rank is killed, is no event."""
    assert parse_event(GOOD) is not None
    assert parse_event(GOOD[:end]) is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "{}",
        "null",
        "Loading: 100%|████| 3/3",
        ' {"event": "step", "rank": 0, "time": 1}',
        'x{"event": "step", "rank": 0, "time": 1}',
        '{"rank": 0, "event": "step", "time": 1}',
        '{"event": ',
        '{"event": }',
        '{"event": nonsense',
        '{"event": "step"} and more',
        '{"event": "step", "rank": 0, "time": 1}{"event": "step", "rank": 0, "time": 1}',
        '{"event": "step", "rank": 0, "time": 1',
        '{"event": "step", "rank": 0, "time": 1, "loss": 0x10}',
        '{"event": "st\x00ep", "rank": 0, "time": 1}',
        '{"event": ' + "[" * 200_000,
        '{"event": ' + '{"event": ' * 200_000,
        '{"event": ' + "9" * 10_000 + "}",
        '{"event": "step"}',
        '{"event": "step", "rank": 0}',
        '{"event": "step", "time": 1}',
        '{"event": "step", "rank": "0", "time": 1}',
        '{"event": "step", "rank": true, "time": 1}',
        '{"event": "step", "rank": 0, "time": "now"}',
        '{"event": null, "rank": 0, "time": 1}',
        '{"event": 5, "rank": 0, "time": 1}',
        '{"event": ["step"], "rank": 0, "time": 1}',
        '{"event": {"step": 1}, "rank": 0, "time": 1}',
        '{"event": "step", "rank": 0, "time": 1, "event": 7}',
        '{"event": "error", "rank": 0, "time": 1}',
        '{"event": "error", "rank": 0, "time": 1, "message": "lost"}',
        '{"event": "error", "rank": 0, "time": 1, "exit_code": 4}',
        '{"event": "error", "rank": 0, "time": 1, "message": null, "exit_code": 4}',
        '{"event": "error", "rank": 0, "time": 1, "message": "lost", "exit_code": "4"}',
        '{"event": "error", "rank": 0, "time": 1, "message": "lost", "exit_code": true}',
    ],
    ids=lambda line: repr(line[:60]),
)
def test_other_text(line: str) -> None:
    """Text that is not JSON, not an object, or lacks what every event has is no event, and never an exception."""
    assert parse_event(line) is None


def test_damaged_lines() -> None:
    """A good line with any few characters changed, as when two ranks' output mixes, is an event or none, never an exception."""
    dice = random.Random(0)
    for _ in range(3000):
        chars = list(GOOD)
        for _ in range(dice.randint(1, 4)):
            chars[dice.randrange(10, len(chars))] = dice.choice('{}[]",:\\ 0e-\x00\ud800é')
        event = parse_event("".join(chars))
        assert event is None or json.dumps(event)
