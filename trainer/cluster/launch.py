"""From a recipe and an inventory to a finished run: prepare, plan, start, supervise, keep the results.

Everything that can be wrong with the input is found before the run's folder is made.
"""

from __future__ import annotations

import collections
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.cluster.inventory import Cluster
from trainer.cluster.openmpi import find_open_mpi
from trainer.cluster.outcome import Line, Outcome
from trainer.cluster.plan import PLAN_FILE, Launch, RunPlan, Tools, make_launch
from trainer.cluster.sessions import remove_sessions
from trainer.cluster.supervise import Supervisor
from trainer.config import RunConfig, render_toml
from trainer.errors import EXIT_BUG, InputError
from trainer.events import Event
from trainer.paths import PROJECT_ROOT, point_latest

_LAST_LINES = 30  # shown when preparing ends with a bug; it has no log
NOT_YET = "(found when the run starts)"


Attach = Callable[[Supervisor], None]


class Watcher(Protocol):
    """What follows a run: shows events to the user and keeps them."""

    def on_event(self, event: Event) -> None:
        """Take one event of any kind."""

    def on_line(self, line: Line) -> None:
        """Take a line of output that is no event."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """An earlier run to go on with, in its own folder, or in a new one if this ``is_branch``."""

    folder: Path
    plan: RunPlan
    is_branch: bool = False


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run needs, read and checked: see `trainer.request.read_inputs`."""

    cluster: Cluster
    config: RunConfig
    data: Path
    name: str
    again: Again | None = None


def plan_run(inputs: Inputs, model: Path, fingerprints: dict[str, str], runs: Path) -> Launch:
    """Return the launch for ``inputs``; pure but for looking which tools and run folders exist."""
    return make_launch(inputs.cluster, make_plan(inputs, model, fingerprints, runs), local_tools())


def local_tools() -> Tools:
    """Return what starts ranks on this machine; raises `ClusterError` without an Open MPI."""
    python = Path(sys.prefix).resolve() / "bin" / "python"
    return Tools(mpi=find_open_mpi(), python=python, project_root=PROJECT_ROOT, is_root=os.geteuid() == 0)


def make_plan(inputs: Inputs, model: Path, fingerprints: dict[str, str], runs: Path) -> RunPlan:
    """Return the plan of a run as this machine sees it, in a new folder of ``runs`` unless it goes on in an old one."""
    again = inputs.again
    return RunPlan(
        name=inputs.name,
        run_dir=again.folder if again and not again.is_branch else _free_folder(runs, inputs.name),
        world_size=inputs.cluster.world_size,
        model_path=model,
        data_path=inputs.data,
        fingerprints=fingerprints,
        config=inputs.config,
        inventory=str(inputs.cluster.source),
        resume_from=again.folder if again else None,
        attempt=again.plan.attempt + 1 if again and not again.is_branch else 1,
    )


def prepare(inputs: Inputs, watcher: Watcher) -> tuple[Path, dict[str, str]]:
    """Fetch the model and check the data with its tokenizer, in a process of its own that may import MLX.

    Returns the model's folder and the fingerprints of model and data; raises what the process reported.
    """
    prepared: list[Event] = []
    said: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)

    def on_event(event: Event) -> None:
        if event["event"] == "prepared":
            prepared.append(event)
        watcher.on_event(event)

    def on_line(line: Line) -> None:
        said.append(line.text)
        watcher.on_line(line)

    with tempfile.TemporaryDirectory(prefix="flotilla-") as scratch:
        recipe = Path(scratch) / "config.toml"
        recipe.write_text(render_toml(inputs.config), "utf-8")
        command = [sys.executable, "-P", "-m", "trainer", "prepare", "--config", str(recipe), "--data", str(inputs.data)]
        outcome = Supervisor(on_event, on_line).run(command, {"PYTHONPATH": str(PROJECT_ROOT)})
    if outcome.exit_code:
        last_words = said if outcome.exit_code == EXIT_BUG else ()
        raise JobError(Outcome(outcome.exit_code, "\n".join([outcome.message, *last_words])))
    return Path(prepared[0]["model"]), prepared[0]["fingerprints"]


class JobError(Exception):
    """A process of ours ended with an error that it has explained; carries the `Outcome`."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def execute(launch: Launch, watcher: Watcher, attach: Attach = lambda _: None) -> Outcome:
    """Make the run's folder, start the ranks on this machine and follow them to the end.

    ``attach`` is given the supervisor before it starts.
    """
    make_folder(launch)
    supervisor = make_supervisor(launch, watcher)
    attach(supervisor)
    try:
        return supervisor.run(launch.argv, launch.env)
    finally:
        remove_sessions(launch.plan.file)


def make_supervisor(launch: Launch, watcher: Watcher) -> Supervisor:
    """Return what follows a run, as patient as its configuration says."""
    settings = launch.plan.config.launch
    return Supervisor(watcher.on_event, watcher.on_line, settings.start_timeout_s, settings.silence_s)


def make_folder(launch: Launch) -> None:
    """Make this machine's folder of a run, with its files; ``plan.json`` there has this machine's paths."""
    folder = launch.kept.run_dir
    (folder / "logs").mkdir(parents=True, exist_ok=launch.kept.attempt > 1)
    for name, text in {**launch.files, PLAN_FILE: launch.kept.render()}.items():
        scratch = folder / f".{name}"
        scratch.write_text(text, "utf-8")
        os.replace(scratch, folder / name)
    point_latest(folder)


def read_plan(run_dir: Path) -> RunPlan:
    """Return the plan of an earlier run; raises `InputError` if the folder holds none."""
    try:
        return RunPlan.parse((run_dir / PLAN_FILE).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{run_dir}: there is no run here; ./inv train makes one") from error
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(f"{run_dir}/plan.json: cannot be read by this version: {error}") from error


def _free_folder(runs: Path, name: str) -> Path:
    """Return ``runs/<time>-<name>``, with a number behind it if that exists."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    candidates = (runs / (stem if n == 1 else f"{stem}-{n}") for n in range(1, 1000))
    return next(path for path in candidates if not path.exists())
