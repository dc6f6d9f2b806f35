"""Runs and baselines on the laboratory's hosts, started as a person at the control machine would."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support import write_tiny_data, write_tiny_model

from tests.lab.laboratory import LabHost, Laboratory
from trainer.paths import PROJECT_ROOT

SETTINGS = {
    "schedule.warmup_steps": 0,
    "style.markers": "[]",
    "style.demo_prompts": "[]",
    "adapter.num_layers": 3,
    "adapter.rank": 256,
    "train.steps": 10,
    "train.eval_every": 5,
}
SOON_S = 15.0


@dataclass(frozen=True)
class Trained:
    """How a run ended: exit code, what it said, and its folder on the control machine (if it got that far)."""

    code: int
    said: str
    folder: Path | None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of one kind."""
        assert self.folder is not None, self.said
        events = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [event for event in events if event["event"] == kind]

    @property
    def curve(self) -> list[float]:
        """The losses of all steps and validations."""
        return [event["loss"] for kind in ("step", "validated") for event in self.of(kind)]

    @property
    def summary(self) -> dict[str, Any]:
        assert self.folder is not None, self.said
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary


class Shipyard:
    """Starts runs on the laboratory's hosts, as a person at the control machine would."""

    def __init__(self, lab: Laboratory, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.model = write_tiny_model(folder / "model", hidden_size=64)
        self.data = write_tiny_data(folder / "data")
        self._count = 0

    def command(self, num_hosts: int, *options: str, task: str = "train", **settings: Any) -> list[str]:
        chosen = {"model.source": self.model, "data.path": self.data, **SETTINGS}
        chosen |= {key.replace("__", "."): value for key, value in settings.items()}
        laid_over = [word for key, value in chosen.items() for word in ("-o", f"{key}={value}")]
        program = str(Path(sys.prefix) / "bin" / "invoke")
        return [program, task, "-i", str(self.inventory(num_hosts)), *laid_over, *options]

    def inventory(self, num_hosts: int) -> Path:
        """Return an inventory of the first ``num_hosts`` hosts; 0 is this machine alone."""
        if num_hosts == 0:
            return PROJECT_ROOT / "inventory" / "hosts.yml"
        table = yaml.safe_load(self.lab.inventory.read_text())
        hosts = table["all"]["children"]["cluster"]["hosts"]
        table["all"]["children"]["cluster"]["hosts"] = dict(list(hosts.items())[:num_hosts])
        path = self.folder / f"hosts-{num_hosts}.yml"
        path.write_text(yaml.safe_dump(table, sort_keys=False))
        return path

    def runs(self) -> Path:
        """Return a folder of its own for the next run."""
        self._count += 1
        return self.folder / f"runs-{self._count}"

    def read_counters(self, hosts: Sequence[LabHost]) -> dict[str, int]:
        """Return what each interface has carried on all hosts together, read from the kernel and not from a run."""
        folder = "/sys/class/net/{}/statistics/{}_bytes"
        names = {name: [folder.format(name, way) for way in ("rx", "tx")] for name in ("tb0", "wifi0")}
        return {
            name: sum(sum(map(int, host.run(["cat", *paths]).stdout.split())) for host in hosts)
            for name, paths in names.items()
        }

    def train(self, num_hosts: int, *options: str, **settings: Any) -> Trained:
        """Train to the end."""
        runs = self.runs()
        done = self.lab.control(
            self.command(num_hosts, *options, **settings), env={"FLOTILLA_RUNS": str(runs)}, check=False, cwd=PROJECT_ROOT
        )
        return finished(done.returncode, done.stdout + done.stderr, runs)

    def train_and(
        self, act: Callable[[subprocess.Popen[str], Path], None], num_hosts: int, *when: str, **settings: Any
    ) -> Trained:
        """Train, and call ``act`` with process and folder at each line that contains one of ``when``, in their order."""
        runs = self.runs()
        command = self.lab.control_argv(self.command(num_hosts, **settings))
        env = {**self.lab.control_env, "FLOTILLA_RUNS": str(runs)}
        pipe, awaited, said = subprocess.PIPE, list(when), ""
        with subprocess.Popen(command, env=env, cwd=PROJECT_ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said += line
                if awaited and awaited[0] in line:
                    awaited.pop(0)
                    act(process, (runs / "latest").resolve())
            code = process.wait(60)
        return finished(code, said, runs)

    def disturb(self, act: Callable[[subprocess.Popen[str], Path], None], num_hosts: int) -> Trained:
        """Start a run too long to end, which does not go on after a loss, and call ``act`` once it has made a step."""
        endless = {"train__steps": 100_000, "train__eval_every": 0, "launch__on_loss": "stop"}
        return self.train_and(act, num_hosts, "step 1/", **endless)


def finished(code: int, said: str, runs: Path) -> Trained:
    folder = (runs / "latest").resolve() if (runs / "latest").exists() else None
    return Trained(code, said, folder)


def processes(hosts: Sequence[LabHost]) -> list[str]:
    """Return what still belongs to any run on the hosts: ranks, mpirun, its daemons, whoever leads it."""
    lines = []
    for host in hosts:
        shown = host.run(["ps", "-eo", "args"]).stdout.splitlines()
        signs = ("-m trainer", "mpirun", "prted")
        lines += [f"{host.name}: {line}" for line in shown if any(sign in line for sign in signs)]
    return lines


def wait_until_empty(hosts: Sequence[LabHost]) -> list[str]:
    """Return `processes` as soon as there are none, or what is left after a while."""
    give_up_at = time.monotonic() + SOON_S
    while (left := processes(hosts)) and time.monotonic() < give_up_at:
        time.sleep(0.2)
    return left
