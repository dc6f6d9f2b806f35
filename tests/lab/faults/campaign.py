"""Runs that faults strike at random moments, each to its end, and what must be true of every one of them.

``PYTHONPATH=tests python -m tests.lab.faults.campaign --runs 60 --lab NAME`` in a laboratory of three provisioned hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.lab.faults.faults import FAULTS, RUNS, Fault, Scene, wait_for
from tests.lab.laboratory import LabHost, Laboratory
from tests.lab.shipyard import Shipyard, wait_until_empty
from trainer.cluster.lock import HOST_LOCK, find_holder
from trainer.jobs import find_jobs
from trainer.paths import PROJECT_ROOT
from trainer.report.record import drop_undone, read_events

STEPS = 60
SETTINGS = {
    "train.steps": STEPS,
    "train.eval_every": 20,
    "train.compare_every": 20,
    "adapter.rank": 8,
    "speed.balance": "tokens",  # equal shares whatever else the machine does: only then are two runs equal bit by bit
    "checkpoint.every_steps": 10,
}
_START_S, _END_S, _MOST_RESUMES = 90.0, 240.0, 4


@dataclass
class Result:
    """One run: what struck where after which step, and what came of it."""

    fault: str
    num_hosts: int
    where: str = ""
    step: int = 0
    noticed_s: float | None = None
    again_s: float | None = None
    lost_steps: int = 0
    resumes: int = 0
    is_identical: bool | None = None
    problems: list[str] = field(default_factory=list)


class Campaign:
    """Runs of one kind on the hosts of a laboratory. ``reference`` are undisturbed ones, made when they are first needed."""

    def __init__(self, yard: Shipyard, backend: str = "mpi") -> None:
        self._yard = yard
        self._settings = {**SETTINGS, "launch.backend": backend}
        self._references: dict[int, Path] = {}

    def reference(self, num_hosts: int) -> Path:
        """Return the folder of the run that nothing disturbs."""
        if num_hosts not in self._references:
            runs = self._yard.runs()
            process = self._start(num_hosts, runs)
            assert process.wait(_END_S) == 0, (runs / "said").read_text()
            self._references[num_hosts] = (runs / "latest").resolve()
        return self._references[num_hosts]

    def strike(self, fault: Fault, num_hosts: int, seed: int) -> Result:
        """Make one run, let ``fault`` strike it at a random step, see it to its end, and judge it."""
        self.reference(num_hosts)
        chance, hosts, runs = random.Random(seed), self._yard.lab.hosts[:num_hosts], self._yard.runs()
        result = Result(fault.name, num_hosts, step=chance.randint(3, STEPS - 20))
        process = self._start(num_hosts, runs)
        metrics = Path()

        def has_come() -> bool:
            nonlocal metrics
            metrics = (runs / "latest").resolve() / "metrics.jsonl"
            return newest_step(metrics) >= result.step or process.poll() is not None

        if not wait_for(has_come, _START_S) or process.poll() is not None:
            process.kill()
            result.problems.append(f"the run did not come to step {result.step}: {(runs / 'said').read_text()[-2000:]}")
            return result
        scene = Scene(self._yard.lab, hosts, metrics.parent.name, process, chance)
        struck_at = time.time()
        result.where = fault.strike(scene)
        healer = threading.Thread(target=heal, args=(scene, fault.heals_after_s))
        healer.start()
        self._see_to_the_end(process, runs, result, healer, scene)
        heal(scene, 0)
        self._judge(result, hosts, runs, metrics, struck_at)
        return result

    def _start(self, num_hosts: int, runs: Path, *, resume: bool = False) -> subprocess.Popen[str]:
        settings = {key.replace(".", "__"): value for key, value in self._settings.items()}
        command = self._yard.command(num_hosts, **settings)
        if resume:
            command = [command[0], "train", "--resume"]
        runs.mkdir(parents=True, exist_ok=True)
        with (runs / "said").open("a") as said:
            return subprocess.Popen(
                self._yard.lab.control_argv(command),
                env={**self._yard.lab.control_env, "FLOTILLA_RUNS": str(runs)},
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                text=True,
            )

    def _see_to_the_end(
        self, process: subprocess.Popen[str], runs: Path, result: Result, healer: threading.Thread, scene: Scene
    ) -> None:
        """Wait for the run's end; one that has ended before its last step is resumed, as a person would."""
        while True:
            try:
                code = process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                result.problems.append(f"did not end within {_END_S:.0f} s: {(runs / 'said').read_text()[-2000:]}")
                return
            healer.join()
            heal(scene, 0)
            if code == 0 or result.resumes == _MOST_RESUMES:
                if code:
                    result.problems.append(f"exit code {code} in the end: {(runs / 'said').read_text()[-2000:]}")
                return
            result.resumes += 1
            wait_until_empty(scene.hosts)
            process = self._start(result.num_hosts, runs, resume=True)

    def _judge(self, result: Result, hosts: Sequence[LabHost], runs: Path, metrics: Path, struck_at: float) -> None:
        events = read_events(metrics)
        self._measure(result, events, struck_at)
        if result.problems:
            return
        whole = read_events(self.reference(result.num_hosts) / "metrics.jsonl")
        if consumed(events) != consumed(whole):
            result.problems.append("not the samples of the undisturbed run, each once")
        sizes = {event["world_size"] for event in events if event["event"] == "started"}
        if sizes == {result.num_hosts}:
            result.is_identical = same_result(metrics.parent, self.reference(result.num_hosts))
            if not result.is_identical:
                result.problems.append("the final parameters are not the undisturbed run's")
        if left := wait_until_empty(hosts):
            result.problems.append(f"processes are left: {left}")
        held = [host.name for host in hosts if find_holder(host.root / RUNS / HOST_LOCK)]
        if held or find_jobs(runs):
            result.problems.append(f"locks are left: {held or find_jobs(runs)}")

    def _measure(self, result: Result, events: Sequence[dict[str, Any]], struck_at: float) -> None:
        """Find out when the loss was noticed, and when there was the next step after it."""
        resumed = next((event for event in events if event["event"] == "resumed" and event["time"] > struck_at), None)
        if resumed is None:
            return
        before = [event["step"] for event in events if event["event"] == "step" and event["time"] < resumed["time"]]
        result.lost_steps = max(before, default=0) - resumed["step"]
        kinds = ("error", "notice", "ended")
        told = [event["time"] for event in events if event["event"] in kinds and struck_at < event["time"] <= resumed["time"]]
        result.noticed_s = min(told) - struck_at if told else None
        steps = [event["time"] for event in events if event["event"] == "step" and event["time"] > resumed["time"]]
        result.again_s = min(steps) - struck_at if steps else None


def heal(scene: Scene, after_s: float | None) -> None:
    """Undo the fault after a while; None leaves that to the end of the run."""
    if after_s is None:
        return
    time.sleep(after_s)
    while scene.undo:
        with suppress(IndexError):
            scene.undo.pop()()


def newest_step(metrics: Path) -> int:
    """Return the last step that a run has told of."""
    return max((event["step"] for event in read_events(metrics) if event["event"] == "step"), default=0)


def consumed(events: Sequence[dict[str, Any]]) -> dict[int, tuple[int, int]]:
    """Return how many tokens each step took, those learned from apart; of steps that were taken back, nothing."""
    kept = [event for event in drop_undone(events) if event["event"] == "step"]
    assert len({event["step"] for event in kept}) == len(kept)
    return {event["step"]: (event["tokens"], event["supervised"]) for event in kept}


def same_result(run: Path, reference: Path) -> bool:
    """Whether two runs ended with the same parameters, bit by bit: the last ones and the best ones."""
    names = ("adapter/adapters.safetensors", "checkpoints/last/adapters.safetensors")
    return all((run / name).is_file() and (run / name).read_bytes() == (reference / name).read_bytes() for name in names)


def render_table(results: Sequence[Result]) -> str:
    """Return what happened as Markdown: a line for each fault."""
    lines = [
        "| fault | runs | ended well | bit-identical | noticed after (median, worst) | training again | steps done twice |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(result.fault for result in results):
        own = [result for result in results if result.fault == name]
        compared = [result.is_identical for result in own if result.is_identical is not None]
        lost = [result.lost_steps for result in own]
        lines.append(
            f"| {name} | {len(own)} | {sum(not result.problems for result in own)} | {sum(compared)} of {len(compared)} | "
            f"{_spread([r.noticed_s for r in own])} | {_spread([r.again_s for r in own])} | {median(lost):.0f}, {max(lost)} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.1f} s, {max(known):.1f} s" if known else "never stopped"


def main() -> int:
    """Make the whole campaign; returns 1 if any run was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first run, to go on with a campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of the faults to make")
    parser.add_argument("--backend", choices=["mpi", "ring"], default="mpi", help="what adds the gradients up")
    parser.add_argument("--lab", default=os.environ.get("FLOTILLA_LAB", "lab"), help="a provisioned laboratory of three hosts")
    parser.add_argument("--results", type=Path, help="a file for one line of JSON a run")
    parser.add_argument("--table", type=Path, help="a file for the table")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would their runs
    faults = [fault for fault in FAULTS if options.only in fault.name]
    results = []
    with tempfile.TemporaryDirectory(prefix="flotilla-campaign-") as folder:
        campaign = Campaign(Shipyard(Laboratory.attach(options.lab), Path(folder)), options.backend)
        for number in range(options.first, options.first + options.runs):
            result = campaign.strike(faults[number % len(faults)], 2 + number // len(faults) % 2, options.seed + number)
            results.append(result)
            print(json.dumps(vars(result)), file=sys.stderr, flush=True)
            if options.results:
                with options.results.open("a") as file:
                    file.write(json.dumps(vars(result)) + "\n")
    table = render_table(results)
    print(table)
    if options.table:
        options.table.write_text(table)
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    sys.exit(main())
