"""What each command does on the control machine: the rooms put together. tasks.py only parses and calls this."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from trainer.cluster.inventory import DEFAULT_INVENTORY, load_inventory
from trainer.cluster.launch import NOT_YET, Inputs, JobError, execute, plan_run, prepare, read_plan
from trainer.cluster.nodes import over_management
from trainer.cluster.plan import Launch, RunPlan
from trainer.cluster.provision import Playbook, run_playbook
from trainer.cluster.rollcall import call_roll
from trainer.cluster.room import read_room
from trainer.cluster.several import execute_on, find_artifacts, guess_launch, plan_on, send_all
from trainer.cluster.supervise import Line, Outcome
from trainer.data.checked import check_data
from trainer.errors import EXIT_INTERRUPTED, EXIT_OK, FlotillaError, InputError
from trainer.events import Event
from trainer.measure.fit import MemoryPlan, find_here, plan_memory
from trainer.measure.forecast import foretell
from trainer.paths import PROJECT_ROOT, cache_dir, find_beside, runs_dir
from trainer.recipe import DEFAULT_RECIPE, load_config
from trainer.report.console import RunConsole, plain_text, render_answers, render_summary
from trainer.report.memory import render_memory
from trainer.report.page import try_page
from trainer.report.record import Record, describe_hosts

T = TypeVar("T")
WIDTH = 110  # of tables where there is no terminal to ask


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    inventory: str = DEFAULT_INVENTORY
    recipe: str = DEFAULT_RECIPE
    overrides: Sequence[str] = ()
    name: str = ""
    allow_slow_link: bool = False


def at_boundary(command: Callable[[], int]) -> int:
    """Return the exit code of ``command``; an error with a message for people is printed on standard error."""
    try:
        return command()
    except FlotillaError as error:
        _complain(str(error))
        return error.exit_code
    except JobError as failed:
        _complain(failed.outcome.message)
        return failed.outcome.exit_code
    except OSError as error:  # a full disk, a folder that may not be written
        _complain(f"{error.filename or 'writing'}: {error.strerror}; the run cannot go on here")
        return InputError.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def read_inputs(request: Request) -> Inputs:
    """Return cluster, configuration and data folder; raises `InputError` with the problems of all three together."""
    problems: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except InputError as error:
            problems.extend(error.problems)
            return None

    cluster = attempt(lambda: load_inventory(find_beside(request.inventory, PROJECT_ROOT)))
    config = attempt(lambda: load_config(request.recipe, request.overrides))
    name = attempt(lambda: _check_name(request.name) if request.name else _name_after(request.recipe))
    data = attempt(lambda: find_beside(config.data.path, PROJECT_ROOT)) if config else None
    if data:
        attempt(lambda: check_data(data, cache_dir(), remembers=False))
    if cluster is None or config is None or name is None or data is None or problems:
        raise InputError(problems)
    return Inputs(cluster=cluster, config=config, data=data, name=name)


def train(request: Request, dry_run: bool, runs: Path | None = None) -> int:
    """Train as requested and show the result; returns the exit code. ``runs`` is where the run's folder goes."""
    runs = runs or runs_dir()
    inputs = read_inputs(request)
    if dry_run:
        print(_guess_launch(inputs, runs).describe(), end="")
        return _foresee_memory(inputs)
    with RunConsole() as console:
        fleet = None if inputs.cluster.is_local else call_roll(inputs.cluster, request.allow_slow_link, console.say)
        model, fingerprints = prepare(inputs, console)
        rooms = {name: node.room for name, node in fleet.nodes.items()} if fleet else {}
        if memory := _plan_memory(inputs, rooms, model, fingerprints["data"]):
            console.show(render_memory(memory))
            memory.check()
        if fleet:
            send_all(fleet, find_artifacts(inputs, model, fingerprints), console.show_progress)
            launch = plan_on(fleet, inputs, model, fingerprints, runs)
        else:
            launch = plan_run(inputs, model, fingerprints, runs)
        console.say(f"run {launch.kept.run_dir}")
        forecast = foretell(fleet.cluster if fleet else inputs.cluster, inputs.config, fingerprints)
        if forecast:
            console.say(forecast.describe())
        record = Record(launch.kept.run_dir, forecast)
        watcher = Both(record, console)  # kept first: a closed terminal must not lose it
        watcher.on_event(describe_hosts(fleet.cluster if fleet else inputs.cluster))
        outcome = execute_on(fleet, launch, watcher) if fleet else execute(launch, watcher)
    summary = record.finish(outcome)
    if "loss_best" in summary:
        out = _stdout()
        out.print(render_summary(summary, inputs.config.style.name))
        if summary["answers"]:
            out.print(render_answers(summary["answers"]))
    try_page(launch.kept.run_dir, _complain)
    _say_farewell(launch, outcome)
    return outcome.exit_code


def _plan_memory(inputs: Inputs, rooms: Mapping[str, Mapping[str, Any]], model: Path, digest: str) -> MemoryPlan | None:
    """Return the memory plan of a run; without ``rooms``, on this machine alone."""
    here = {host.name: read_room() for host in inputs.cluster.hosts if host.is_local}
    return plan_memory(inputs.cluster, {**here, **rooms}, inputs.config, model, digest, inputs.data)


def _foresee_memory(inputs: Inputs) -> int:
    """Print the memory plan of a dry run, as far as it is known without fetching anything; returns the exit code."""
    model = find_here(inputs.config.model)
    digest = check_data(inputs.data, cache_dir(), remembers=False)
    memory = _plan_memory(inputs, {}, model, digest) if model else None
    if memory is None:
        print("\n# memory\nnot known yet: ./inv train fetches the model, tokenises the data and tells before it starts")
        return EXIT_OK
    print()
    _stdout().print(render_memory(memory))
    memory.check()
    return EXIT_OK


def report(run: str, is_baseline: bool) -> int:
    """Make the page of a run or of a baseline and print where it is; returns the exit code."""
    from trainer.report.page import find_reported, write_page

    print(write_page(find_reported(run, is_baseline)))
    return EXIT_OK


def baseline(request: Request, *, is_quick: bool, compared: tuple[str, str] = ("", "")) -> int:
    """Measure what the hosts can do, show and store it; returns the exit code.

    With the names of stored baselines in ``compared``, the second one by default the latest, show what differs between them
    instead.
    """
    from trainer.measure.baseline import Subject, take_baseline
    from trainer.measure.compare import compare
    from trainer.measure.store import load_baseline, save_baseline
    from trainer.report.baseline import render_baseline, render_changes

    if compared[0]:
        _stdout().print(render_changes(compare(*map(load_baseline, compared))))
        return EXIT_OK
    inputs = read_inputs(request)
    with RunConsole() as console:
        fleet = None if inputs.cluster.is_local else call_roll(inputs.cluster, True, console.say)
        model, fingerprints = prepare(inputs, console)
        if fleet:
            send_all(fleet, find_artifacts(inputs, model, fingerprints), console.show_progress)
        subject = Subject(
            inputs=inputs, model=model, fingerprints=fingerprints, fleet=fleet, recipe=request.recipe, is_quick=is_quick
        )
        measured = take_baseline(subject, console)
    folder = save_baseline(measured)
    _stdout().print(render_baseline(measured))
    print(f"baseline {folder}", file=sys.stderr)
    try_page(folder, _complain)
    return EXIT_OK


def rehearse(inventory: str, baseline: str, counts: str, *, steps: int, backend: str, slow_link: bool) -> int:
    """Rehearse a run on some of an inventory's hosts, next to its prediction; returns the exit code."""
    from trainer.cluster.several import send_code
    from trainer.measure.rehearsal import rehearse as play_through
    from trainer.measure.store import load_baseline
    from trainer.report.baseline import render_rehearsals

    measured = load_baseline(baseline)
    cluster = load_inventory(find_beside(inventory, PROJECT_ROOT))
    sizes = _read_counts(counts, len(cluster.hosts))
    with RunConsole() as console:
        fleet = None if cluster.is_local else call_roll(cluster, slow_link, console.say)
        if fleet:
            fleet = over_management(fleet) if slow_link else fleet
            send_code(fleet, console.show_progress)
        chosen = fleet.cluster if fleet else cluster
        found = [play_through(measured, chosen, fleet, count, steps, backend, console) for count in sizes]
    _stdout().print(render_rehearsals(found))
    return EXIT_OK


def _read_counts(text: str, most: int) -> list[int]:
    """Return the numbers of hosts in "2,4,8"; all hosts for nothing."""
    try:
        counts = [int(word) for word in text.split(",")] if text else [most]
    except ValueError as error:
        raise InputError(f"--hosts {text}: give numbers of hosts, such as 2,4") from error
    if wrong := [count for count in counts if not 1 <= count <= most]:
        raise InputError(f"--hosts {text}: the inventory has {most} hosts, not {max(wrong)}")
    return counts


def _guess_launch(inputs: Inputs, runs: Path) -> Launch:
    """Return the launch as far as it is known without asking any host or fetching anything."""
    unknown = {"model": NOT_YET, "data": NOT_YET}
    if inputs.cluster.is_local:
        return plan_run(inputs, Path(NOT_YET), unknown, runs)
    return guess_launch(inputs, Path(NOT_YET), unknown, runs)


def play(playbook: Playbook) -> int:
    """Run a playbook on the hosts of an inventory; returns the exit code."""
    return run_playbook(playbook)


def doctor(inventory: str, *, as_json: bool) -> int:
    """Examine the hosts of an inventory and print what is wrong; returns 0, or 3 if something is."""
    from trainer.cluster.doctor import run

    return run(find_beside(inventory, PROJECT_ROOT), as_json=as_json)


def chat(run: str, *, base: bool, model: str, prompts: list[str], system: str, max_tokens: int, temperature: str) -> int:
    """Talk to the result of a run, to its base model, or to any model folder; returns the exit code."""
    command = [sys.executable, "-P", "-m", "trainer", "chat", "--max-tokens", str(max_tokens), "--temperature", temperature]
    if model:
        command += ["--model", str(_check_model(model))]
    else:
        plan = find_run(run)
        command += ["--model", str(plan.model_path)]
        command += [] if base else ["--adapter", str(find_adapter(plan))]
        command += ["--trust-remote-code"] if plan.config.model.trust_remote_code else []
    for prompt in prompts:
        command += [f"--prompt={prompt}"]
    if system:
        command += ["--system", system]
    with subprocess.Popen(command) as process:
        while True:  # Ctrl-C is the conversation's: it cuts an answer short there
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()


def fuse(run: str, out: str) -> int:
    """Write base model and adapter of a run as one model, by mlx_lm's own fuse; returns the exit code."""
    plan = find_run(run)
    target = Path(out).expanduser() if out else plan.run_dir / "fused"
    if target.exists():
        raise InputError(f"{target}: exists already; give another folder with --out, or remove it first")
    partial = target.with_name(f".{target.name}-{os.getpid()}")
    command = [sys.executable, "-P", "-m", "mlx_lm", "fuse", "--model", str(plan.model_path)]
    command += ["--adapter-path", str(find_adapter(plan)), "--save-path", str(partial)]
    try:
        code = subprocess.run(command, check=False).returncode
        if code == EXIT_OK:
            os.rename(partial, target)
            print(target)
        return code
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_model(model: str) -> Path:
    folder = find_beside(model)
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {model}: there is no model here (no config.json); give a model's folder")
    return folder


def find_run(run: str) -> RunPlan:
    """Return the plan of a run given as folder, as name in ``runs/``, or as nothing for the latest."""
    plan = read_plan(find_beside(run, runs_dir()) if run else runs_dir() / "latest")
    if not (plan.model_path / "config.json").is_file():
        raise InputError(f"{plan.model_path}: the run's base model is gone; ./inv train makes or fetches it again")
    return plan


def find_adapter(plan: RunPlan) -> Path:
    """Return the adapter's folder of a run; raises `InputError` while there is none."""
    folder = plan.run_dir / "adapter"
    if not (folder / "adapters.safetensors").is_file():
        raise InputError(f"{plan.run_dir}: the run has no adapter yet; `--base` talks to the base model")
    return folder


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"--name {json.dumps(name)}: use up to 64 letters, digits, '-', '_' and '.'; it names a folder")
    return name


def _name_after(recipe: str) -> str:
    """Return a run's name made of its recipe's, with what a folder should not have in its name left out."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(recipe).stem).strip("-")[:64] or "run"


def _stdout() -> Console:
    """Return where results go."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


class Both:
    """Hands everything to several watchers in turn."""

    def __init__(self, *watchers: RunConsole | Record) -> None:
        self._watchers = watchers

    def on_event(self, event: Event) -> None:
        """Pass an event on."""
        for watcher in self._watchers:
            watcher.on_event(event)

    def on_line(self, line: Line) -> None:
        """Pass a line on."""
        for watcher in self._watchers:
            watcher.on_line(line)


def _say_farewell(launch: Launch, outcome: Outcome) -> None:
    """Say on standard error how the run ended and what to do next."""
    run_dir = launch.kept.run_dir
    if outcome.exit_code == EXIT_OK:
        print(f"run {run_dir}\ntalk to it: ./inv chat", file=sys.stderr)
        return
    _complain(f"{outcome.message}\nlogs: {run_dir / 'logs'}")


def _complain(text: str) -> None:
    """Print on standard error what others may have written, without the control characters that it may hold."""
    print(plain_text(text).plain, file=sys.stderr)
