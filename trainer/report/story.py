"""What happened in a run, read back from its folder: ``metrics.jsonl``, ``summary.json``, ``config.toml``, ``baseline.json``.

The folder may be that of a run that is still going, that failed, or that an older version wrote: what is missing is left out.
"""

from __future__ import annotations

import json
import math
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.cluster.outcome import Outcome
from trainer.cluster.plan import PLAN_FILE
from trainer.errors import EXIT_INTERRUPTED, InputError
from trainer.events import Event
from trainer.measure.store import find_matching, read_baseline
from trainer.report.record import drop_undone, is_number, read_events, summarise

State = Literal["done", "failed", "interrupted", "unfinished"]
_NUMBERS = ("step", "loss", "learning_rate", "grad_norm", "tokens", "supervised", "step_s", "comm_s", "wait_s")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step as rank 0 told it; a number that was not finite is NaN. ``time`` is in seconds since the epoch."""

    time: float
    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: float
    supervised: float
    step_s: float
    comm_s: float
    wait_s: float
    rank_tokens_per_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Story:
    """One run. ``summary`` is ``summary.json``; ``so_far`` has the same figures, as far as the events tell them.

    ``steps`` are in order, each once: of a step that was done again after a resume, the last one. ``hosts`` maps names to
    numbers of ranks, in rank order; empty where that was not told. ``told_at`` is when the last event came. Of ``events``,
    which are all, ``counted`` are those that no resume has undone.
    """

    folder: Path
    state: State
    summary: Mapping[str, Any]
    so_far: Mapping[str, Any]
    events: Sequence[Event]
    counted: Sequence[Event]
    steps: Sequence[Step]
    config: Mapping[str, Any]
    hosts: Mapping[str, int]
    baseline: Mapping[str, Any] | None
    began_at: float
    told_at: float

    def of(self, kind: str) -> list[Event]:
        """Return the events of one kind in order, those that count."""
        return [event for event in self.counted if event["event"] == kind]


def read_story(folder: Path) -> Story:
    """Return what happened in the run of ``folder``; raises `InputError` if there is none."""
    if not (folder / PLAN_FILE).is_file():
        raise InputError(f"{folder}: there is no run here; ./inv train makes one")
    events = read_events(folder / "metrics.jsonl")
    counted = drop_undone(events)
    steps = list({step.step: step for step in map(_read_step, counted) if step}.values())
    summary = _read_summary(folder) if _has_ended(events) else None
    so_far = _summarise_so_far(counted, steps)
    config = _read_config(folder / "config.toml")
    hosts = _read_hosts(events)
    told = [event["time"] for event in events if event["event"] not in ("launched", "ended")]  # by the head's clock, not ours
    times = told or [(folder / PLAN_FILE).stat().st_mtime]
    return Story(
        folder=folder,
        state="unfinished" if summary is None else _judge(summary),
        summary=so_far if summary is None else summary,
        so_far=so_far,
        events=events,
        counted=counted,
        steps=sorted(steps, key=lambda step: step.step),
        config=config,
        hosts=hosts,
        baseline=_find_baseline(folder, config, hosts),
        began_at=times[0],
        told_at=times[-1],
    )


def _read_step(event: Event) -> Step | None:
    if event["event"] != "step" or not isinstance(event.get("step"), int):
        return None
    numbers = {name: _number(event.get(name)) for name in _NUMBERS}
    rates = event.get("rank_tokens_per_s")
    ranks = tuple(map(_number, rates)) if isinstance(rates, list) else ()
    return Step(**{**numbers, "step": event["step"]}, time=float(event["time"]), rank_tokens_per_s=ranks)


def _read_summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: is no summary of a run ({error})") from error
    if not isinstance(summary, dict):
        raise InputError(f"{path}: is no summary of a run")
    return summary


def _has_ended(events: Sequence[Event]) -> bool:
    """Whether nothing came after the end that was told last: else the run goes on in its folder."""
    return not any(event["event"] == "ended" for event in events) or events[-1]["event"] == "ended"


def _judge(summary: Mapping[str, Any]) -> State:
    if summary.get("exit_code") == 0:
        return "done"
    return "interrupted" if summary.get("exit_code") == EXIT_INTERRUPTED else "failed"


def _summarise_so_far(events: Sequence[Event], steps: Sequence[Step]) -> dict[str, Any]:
    """Return the figures of ``summary.json`` as far as the events tell them: what the ranks would say now."""
    kinds: dict[str, list[Event]] = {}
    for event in events:
        kinds.setdefault(event["event"], []).append(event)
    try:
        told = summarise(kinds, Outcome(0))
    except (LookupError, TypeError, AttributeError):  # events of another form than ours
        told = {}
    summary = {key: value for key, value in told.items() if key not in ("exit_code", "message", "steps")}
    losses = [(_number(event.get("loss")), event.get("step")) for event in kinds.get("validated", [])]
    if losses:
        best, best_step = min(losses, key=lambda pair: (math.isnan(pair[0]), pair[0]))
        summary |= {"loss_before": losses[0][0], "loss_best": best, "best_step": best_step, "loss_last": losses[-1][0]}
    seconds = math.fsum(step.step_s for step in steps)
    if seconds > 0:
        summary |= {
            "steps": len(steps),
            "train_s": seconds,
            "tokens_per_s": sum(step.tokens for step in steps) / seconds,
            "supervised_tokens_per_s": sum(step.supervised for step in steps) / seconds,
            "comm_share": sum(step.comm_s for step in steps) / seconds,
            "wait_share": sum(step.wait_s for step in steps) / seconds,
        }
    return summary


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _read_hosts(events: Sequence[Event]) -> dict[str, int]:
    launched = [event["hosts"] for event in events if event["event"] == "launched" and isinstance(event.get("hosts"), dict)]
    return {str(name): int(ranks) for name, ranks in launched[-1].items() if is_number(ranks)} if launched else {}


def _find_baseline(folder: Path, config: Mapping[str, Any], hosts: Mapping[str, int]) -> Mapping[str, Any] | None:
    """Return the baseline that the run was compared with, else the newest stored one that fits it."""
    try:
        if (folder / "baseline.json").is_file():
            return read_baseline(folder / "baseline.json")
        prints = json.loads((folder / PLAN_FILE).read_text("utf-8"))["fingerprints"]
        return find_matching(prints, config, set(hosts)) if hosts and config else None
    except (InputError, OSError, ValueError, LookupError, TypeError):
        return None


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and is_number(value) else math.nan


def ago(moment: float, now: float | None = None) -> float:
    """Return how many seconds ago ``moment`` was, never negative."""
    return max(0.0, (time.time() if now is None else now) - moment)
