"""What each command does on the control machine: the rooms put together. tasks.py only parses and calls this."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from trainer.cluster.inventory import load_inventory
from trainer.cluster.launch import JobError, read_plan
from trainer.cluster.nodes import over_management
from trainer.cluster.plan import RunPlan
from trainer.cluster.provision import Playbook, run_playbook
from trainer.cluster.rollcall import call_roll
from trainer.cluster.several import find_artifacts, send_all
from trainer.errors import EXIT_INTERRUPTED, EXIT_OK, FlotillaError, InputError
from trainer.jobs import show_status, stop_jobs
from trainer.paths import PROJECT_ROOT, find_beside, runs_dir
from trainer.receipt import prepare_once
from trainer.report.console import RunConsole
from trainer.report.page import try_page
from trainer.request import Request, read_inputs
from trainer.runs import complain, stdout, train

__all__ = ["Request", "at_boundary", "train"]


def at_boundary(command: Callable[[], int]) -> int:
    """Return the exit code of ``command``; an error with a message for people is printed on standard error."""
    try:
        return command()
    except FlotillaError as error:
        complain(str(error))
        return error.exit_code
    except JobError as failed:
        complain(failed.outcome.message)
        return failed.outcome.exit_code
    except OSError as error:  # a full disk, a folder that may not be written
        complain(f"{error.filename or 'writing'}: {error.strerror}; the run cannot go on here")
        return InputError.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


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
        stdout().print(render_changes(compare(*map(load_baseline, compared))))
        return EXIT_OK
    inputs = read_inputs(request)
    with RunConsole() as console:
        fleet = None if inputs.cluster.is_local else call_roll(inputs.cluster, True, console.say)
        model, fingerprints = prepare_once(inputs, console)
        if fleet:
            send_all(fleet, find_artifacts(inputs, model, fingerprints), console.show_progress)
        subject = Subject(
            inputs=inputs, model=model, fingerprints=fingerprints, fleet=fleet, recipe=request.recipe, is_quick=is_quick
        )
        measured = take_baseline(subject, console)
    folder = save_baseline(measured)
    stdout().print(render_baseline(measured))
    print(f"baseline {folder}", file=sys.stderr)
    try_page(folder, complain)
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
    stdout().print(render_rehearsals(found))
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


def play(playbook: Playbook) -> int:
    """Run a playbook on the hosts of an inventory; returns the exit code."""
    return run_playbook(playbook)


def doctor(inventory: str, *, as_json: bool) -> int:
    """Examine the hosts of an inventory and print what is wrong; returns 0, or 3 if something is."""
    from trainer.cluster.doctor import run

    return run(find_beside(inventory, PROJECT_ROOT), as_json=as_json)


def status(inventory: str) -> int:
    """Show the runs that are going on, and with an inventory what its hosts are busy with; returns the exit code."""
    cluster = load_inventory(find_beside(inventory, PROJECT_ROOT)) if inventory else None
    for line in show_status(runs_dir(), cluster):
        print(line)
    return EXIT_OK


def stop(run: str, inventory: str, *, now: bool) -> int:
    """End the runs that are going on, cleanly; returns the exit code, that of bad input if there are none."""
    cluster = load_inventory(find_beside(inventory, PROJECT_ROOT)) if inventory else None
    if not stop_jobs(runs_dir(), run, cluster, at_once=now, say=print):
        raise InputError(f"{run or 'nothing'}: is not running from here; ./inv status -i INVENTORY asks the hosts")
    return EXIT_OK


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
