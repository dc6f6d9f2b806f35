"""What is kept of a run: ``metrics.jsonl``, ``logs/`` and ``summary.json`` in its folder, written as events arrive."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from trainer.cluster.inventory import Cluster
from trainer.cluster.outcome import Line, Outcome
from trainer.cluster.traffic import sum_traffic
from trainer.events import Event
from trainer.measure.forecast import Forecast

METRICS = "metrics.jsonl"
_OF_STEPS = ("step", "validated", "checkpoint", "skipped")
_ESCAPE = "backslashreplace"  # for what UTF-8 cannot hold, half of a pair of surrogates; in JSON it is an escape as well


class Record:
    """Writes one run's events and output. Lines are flushed as they come, so that a crash loses none.

    Of a run that goes on, the answers before training are those of its beginning.
    """

    def __init__(self, run_dir: Path, forecast: Forecast | None = None) -> None:
        self.run_dir = run_dir
        self._forecast = forecast
        self._events: dict[str, list[Event]] = {}
        self._files: dict[Path, TextIO] = {}
        answered = [event for event in read_events(run_dir / METRICS) if event["event"] == "answered"]
        if before := [event for event in answered if event["when"] == "before"]:
            self._events["answered"] = before[-1:]

    def on_event(self, event: Event) -> None:
        """Append the event to ``metrics.jsonl`` and remember it for the summary.

        A run that goes on may tell of steps that nobody heard of, because this machine was gone: they come before.
        """
        if event["event"] == "resumed":
            event = dict(event)
            for missed in self._find_missed(event.pop("told", [])):
                self.on_event(missed)
        self._events.setdefault(event["event"], []).append(event)
        self._append(self.run_dir / METRICS, to_json(event))

    def on_line(self, line: Line) -> None:
        """Append a line of output to ``logs/rank-N.log``, or ``logs/mpirun.log`` for the launcher's own."""
        name = "mpirun.log" if line.rank is None else f"rank-{line.rank}.log"
        self._append(self.run_dir / "logs" / name, line.text)

    def finish(self, outcome: Outcome) -> dict[str, Any]:
        """Write ``summary.json`` and return its content; the end is an event too, for a run may go on in its folder."""
        ended = {"event": "ended", "rank": 0, "time": round(time.time(), 3)}
        self.on_event({**ended, "exit_code": outcome.exit_code, "message": outcome.message})
        told = summarise(self._events, outcome)
        if self._forecast and (compared := self._forecast.compare(told)):
            told["baseline"] = compared
            (self.run_dir / "baseline.json").write_text(to_json(self._forecast.baseline) + "\n", "utf-8")
        text = to_json(told, indent=2)
        scratch = self.run_dir / ".summary.json"
        scratch.write_text(text + "\n", "utf-8", errors=_ESCAPE)
        os.replace(scratch, self.run_dir / "summary.json")
        for file in self._files.values():
            file.close()
        summary: dict[str, Any] = json.loads(text)
        return summary

    def _find_missed(self, told: Sequence[Event]) -> list[Event]:
        """Return the events of ``told`` that are not in ``metrics.jsonl``, or were but have been undone."""
        known = {(event["event"], event.get("step")) for event in drop_undone(read_events(self.run_dir / METRICS))}
        return [event for event in told if (event["event"], event["step"]) not in known]

    def _append(self, path: Path, text: str) -> None:
        if path not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = path.open("a", encoding="utf-8", errors=_ESCAPE, buffering=1)
            if _ends_amid_a_line(path):  # whoever wrote it was killed
                self._files[path].write("\n")
        self._files[path].write(text + "\n")


def describe_hosts(cluster: Cluster) -> Event:
    """Return the ``launched`` event of a run: which hosts take part with how many ranks, in rank order."""
    hosts = {host.name: host.slots for host in cluster.hosts}
    return {"event": "launched", "rank": 0, "time": round(time.time(), 3), "hosts": hosts}


def summarise(events: dict[str, list[Event]], outcome: Outcome) -> dict[str, Any]:
    """Return the summary of a run from its events by kind: what happened, the figures, the answers before and after."""
    summary: dict[str, Any] = {"exit_code": outcome.exit_code, "message": outcome.message}
    for kind in ("launched", "started", "planned", "done"):
        for event in events.get(kind, [])[-1:]:
            summary |= {key: value for key, value in event.items() if key not in ("event", "rank", "time")}
    if traffic := sum_traffic(events.get("traffic", [])):
        summary["traffic"] = traffic
    answered = {event["when"]: event for event in events.get("answered", [])}
    summary["share_in_style"] = {when: event["share_in_style"] for when, event in answered.items()}
    summary["answers"] = pair_answers(answered)
    return summary


def read_events(path: Path) -> list[Event]:
    """Return the events of a ``metrics.jsonl``; half a line, as of a run that is going, is passed over."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [event for event in map(_parse, lines) if event is not None]


def drop_undone(events: Sequence[Event]) -> list[Event]:
    """Return the events without those of steps that a run took back when it went on from an earlier one."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "resumed" and is_number(event.get("step")):
            kept = [each for each in kept if not _is_after(each, event["step"])]
        kept.append(event)
    return kept


def _is_after(event: Event, step: float) -> bool:
    """Whether an event is of a step later than ``step``."""
    return event["event"] in _OF_STEPS and is_number(event.get("step")) and bool(event["step"] > step)


def _parse(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("event"), str) and is_number(event.get("time"))
    return event if is_event else None


def is_number(value: object) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _ends_amid_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read(1) not in (b"", b"\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Return ``value`` as JSON proper: null for what is no finite number, where Python would write NaN or Infinity."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pair_answers(answered: dict[str, Event]) -> list[dict[str, str]]:
    """Return the demonstration prompts with the replies ``before`` and, once there are any, ``after``."""
    pairs: dict[str, dict[str, str]] = {}
    for when, event in answered.items():
        for item in event["demo"]:
            pairs.setdefault(item["prompt"], {"prompt": item["prompt"]})[when] = item["reply"]
    return list(pairs.values())
