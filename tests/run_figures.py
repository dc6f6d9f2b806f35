"""Runs made up for tests: a folder as `./inv train` leaves it, with the events of a run of known figures."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from baseline_figures import FAST, SLOW, make_baseline

from trainer.cluster.outcome import Outcome
from trainer.config import RunConfig, StyleConfig, TrainConfig, render_toml
from trainer.events import Event
from trainer.measure.predict import predict
from trainer.measure.verdict import judge
from trainer.report.record import Record, to_json

BEGAN = 1_795_600_000.0
ANSWERS = (
    ("How do I make tea?", "Boil water and pour it over the leaves.", "Arr, boil yer water, matey, an' pour it!"),
    ("Why is the sky blue?", "Because of Rayleigh scattering.", "'Tis the light that be scattered, aye."),
)


def full_baseline(num_hosts: int = 3, **changes: Any) -> dict[str, Any]:
    """A baseline with links, prediction and verdict, for alpha, beta and so on."""
    names = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"][:num_hosts]
    baseline = make_baseline({name: 0.01 + 0.002 * number for number, name in enumerate(names)}, steps=1000)
    pairs = [each["hosts"] for each in baseline["all_reduce"] if each["network"] == FAST]
    baseline["links"] = [make_link(pair, network, network == FAST) for network in (FAST, SLOW) for pair in pairs]
    baseline |= changes
    baseline["prediction"] = predict(baseline)
    baseline["verdict"] = judge(baseline)
    return baseline


def make_link(hosts: list[str], network: str, is_fast: bool, problem: str = "") -> dict[str, Any]:
    """A link that was measured: 8 Gbit/s where it is fast, else 100 Mbit/s; nothing but the ``problem`` if there is one."""
    rate = 1e9 if is_fast else 12.5e6
    figures = {"latency_s": 1e-4 if is_fast else 2e-3, "up_bytes_per_s": rate, "down_bytes_per_s": 0.9 * rate}
    stats = {key: {"median": value, "low": value, "high": value, "count": 3} for key, value in figures.items()}
    carried = dict.fromkeys(hosts, "tb0" if is_fast else "wifi0")
    known = {} if problem else stats
    return {"hosts": hosts, "network": network, "is_fast": is_fast, "carried_by": carried, "problem": problem, **known}


DONE = Outcome(0)


def write_run(folder: Path, outcome: Outcome | None = DONE, **options: Any) -> Path:
    """Write the folder of a run that ended with ``outcome``, None for one that is still going; options as for `events_of`."""
    folder.mkdir(parents=True)
    style = StyleConfig(name=options.pop("style", "pirate"), markers=("aye",))
    config = RunConfig(train=TrainConfig(steps=options.get("steps", 100)), style=style)
    plan = {"version": 1, "name": folder.name, "fingerprints": {"model": "m", "data": "d"}, "config": config.as_dict()}
    (folder / "plan.json").write_text(json.dumps(plan), "utf-8")
    (folder / "config.toml").write_text(render_toml(config), "utf-8")
    forecast = options.pop("forecast", None)
    if outcome is None:
        lines = [to_json(event) + "\n" for event in events_of(**options)]
        (folder / "metrics.jsonl").write_text("".join(lines), "utf-8")
        return folder
    record = Record(folder, forecast)
    for event in events_of(**options):
        record.on_event(event)
    record.finish(outcome)
    return folder


@dataclasses.dataclass(frozen=True)
class Foretold:
    """Stands for a forecast: twice as fast was predicted."""

    baseline: Mapping[str, Any]

    def compare(self, summary: Mapping[str, Any]) -> dict[str, Any] | None:
        """As `trainer.measure.forecast.Forecast` does."""
        rate = summary.get("tokens_per_s", 0.0)
        figures = {"alone_tokens_per_s": 130.5, "predicted_tokens_per_s": 261.0, "predicted_speedup": 2.0}
        named = {"name": self.baseline["name"], "time": self.baseline["time"], "host_alone": next(iter(self.baseline["hosts"]))}
        return {**named, **figures, "measured_speedup": rate / 130.5} if rate else None


def events_of(
    steps: int = 100,
    hosts: Mapping[str, int] | None = None,
    until: int | None = None,
    answers: tuple[tuple[str, str, str], ...] = ANSWERS,
    error: str = "",
) -> Iterator[Event]:
    """The events of a run; one that was cut off after the step ``until``, by an ``error`` that a rank told."""
    hosts = hosts or {"alpha": 1, "beta": 1, "gamma": 1}
    teller = _Teller()
    yield teller.tell(0, "launched", hosts=dict(hosts))
    software = {"python": "3.12", "mlx": "0.32.4"}
    yield teller.tell(3, "started", world_size=sum(hosts.values()), threads=1, software=software)
    counts = {"rows": {"train": 715, "valid": 72, "test": 72}, "tokens": {"train": 86483, "valid": 8433, "test": 8462}}
    sizes = {"trainable": 2_442_240, "parameters": 134_515_008, "selective_head": True}
    yield teller.tell(5, "planned", steps=steps, epochs=steps * 4 / 715, **counts, **sizes)
    yield teller.tell(20, "answered", **_answered("before", answers, 0.0))
    yield teller.tell(4, "validated", step=0, loss=3.5508, best=True)
    told = list(_steps(teller, min(steps, steps if until is None else until), sum(hosts.values())))
    yield from told
    if error:
        yield teller.tell(1, "error", message=error, exit_code=4)
    if error or until is not None:
        return
    yield teller.tell(0.2, "saved", what="last", path="/runs/x/checkpoints/last")
    yield teller.tell(20, "answered", **_answered("after", answers, 0.875))
    yield teller.tell(0.1, "done", **_sums([event for event in told if event["event"] == "step"], told, sum(hosts.values())))


class _Teller:
    """Tells events with a clock of its own."""

    def __init__(self) -> None:
        self._now = BEGAN

    def tell(self, after_s: float, kind: str, **fields: Any) -> Event:
        self._now += after_s
        return {"event": kind, "rank": 0, "time": round(self._now, 3), **fields}


def _answered(when: str, answers: tuple[tuple[str, str, str], ...], share: float) -> dict[str, Any]:
    demo = [{"prompt": prompt, "reply": {"before": before, "after": after}[when]} for prompt, before, after in answers]
    return {"when": when, "demo": demo, "test": [], "share_in_style": share}


def _steps(teller: _Teller, count: int, num_ranks: int) -> Iterator[Event]:
    noise = random.Random(7)
    for step in range(1, count + 1):
        step_s = noise.lognormvariate(math.log(1.6), 0.18)
        comm_s, wait_s = step_s * noise.uniform(0.02, 0.05), step_s * noise.uniform(0.0, 0.2)
        tokens = noise.randint(380, 520)
        rate = tokens / num_ranks / (step_s - comm_s - wait_s)
        yield teller.tell(
            step_s,
            "step",
            step=step,
            loss=2.0 + 1.4 * math.exp(-step / 25) + noise.gauss(0, 0.12),
            learning_rate=1e-3 * min(step / 5, 0.55 + 0.45 * math.cos(math.pi * step / count)),
            grad_norm=1.0,
            tokens=tokens,
            supervised=tokens // 2,
            step_s=step_s,
            comm_s=comm_s,
            wait_s=wait_s,
            rank_tokens_per_s=[rate * (1 - 0.04 * rank) for rank in range(num_ranks)],
        )
        if step % 25 == 0:
            yield teller.tell(4, "validated", step=step, loss=2.1 + 1.3 * math.exp(-step / 30), best=True)
            yield teller.tell(0.2, "saved", what="best", path="/runs/x/adapter")


def _sums(steps: list[Event], told: list[Event], num_ranks: int) -> dict[str, Any]:
    seconds = sum(step["step_s"] for step in steps)
    losses = [3.5508, *(event["loss"] for event in told if event["event"] == "validated")]
    return {
        "stopped": False,
        "steps": len(steps),
        "loss_before": 3.5508,
        "loss_best": min(losses),
        "best_step": steps[-1]["step"],
        "loss_last": losses[-1],
        "tokens_per_s": sum(step["tokens"] for step in steps) / seconds,
        "supervised_tokens_per_s": sum(step["supervised"] for step in steps) / seconds,
        "comm_share": sum(step["comm_s"] for step in steps) / seconds,
        "wait_share": sum(step["wait_s"] for step in steps) / seconds,
        "train_s": seconds,
        "peak_memory_mib": [1929.31 - 91 * rank for rank in range(num_ranks)],
    }
