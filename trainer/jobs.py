"""The runs that are going on, seen from another terminal: which hosts they have, how far they are, and how to end them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.cluster.call import ask
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.lock import Lock, find_holder
from trainer.cluster.plan import PLAN_FILE
from trainer.cluster.ssh import on_all
from trainer.errors import ClusterError, InputError
from trainer.report.story import Story, ago, read_story

_LOCKS = ".locks"
_STOP_PATIENCE_S = 60.0
_TICK_S = 0.1
_UNTOLD = (InputError, LookupError, TypeError, ValueError)  # a run that has just begun, or of another version


class Claim:
    """A process's hold on the hosts of a cluster, one run at a time on each, until the block or the process ends."""

    def __init__(self, cluster: Cluster, runs: Path) -> None:
        self._locks = {host.name: Lock(lock_file(host, runs)) for host in cluster.hosts}

    def __enter__(self) -> Claim:
        """Raises `ClusterError` if one of the hosts is taken."""
        for name, lock in self._locks.items():
            if not lock.take(_about_us("")):
                self._release()
                holder = find_holder(lock.path) or {}
                raise ClusterError(f"{name} is busy: {describe_holder(holder)}; ./inv status tells more, ./inv stop ends it")
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def name(self, run: Path) -> None:
        """Write down which run it is, as soon as it has a folder."""
        for lock in self._locks.values():
            lock.tell(_about_us(str(run)))

    def _release(self) -> None:
        """Let go, and leave nothing behind, not even an empty folder where there was none."""
        for lock in self._locks.values():
            lock.remove()
            with contextlib.suppress(OSError):
                lock.path.parent.rmdir()
                lock.path.parent.parent.rmdir()


def lock_file(host: Host, runs: Path) -> Path:
    """Return the file that stands for a host, beside the runs."""
    name = "here" if host.is_local else f"{host.management}-{host.port or 22}"
    return runs / _LOCKS / "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in name)


def describe_holder(holder: dict[str, Any]) -> str:
    """Return in words who holds a lock."""
    run = Path(str(holder.get("run") or "")).name or "that is being prepared"
    since = holder.get("since")
    told = f", for {_minutes(ago(since))}" if isinstance(since, (int, float)) else ""
    return f"the run {run} has it (process {holder.get('pid', '?')} on {holder.get('host', '?')}{told})"


def find_jobs(runs: Path) -> list[dict[str, Any]]:
    """Return the runs that this machine's processes have going on, each once."""
    held = [find_holder(path) for path in sorted((runs / _LOCKS).glob("*"))]
    return list({holder["pid"]: holder for holder in held if holder and "pid" in holder}.values())


def show_status(runs: Path, cluster: Cluster | None) -> Iterator[str]:
    """Yield lines about what is going on; with a ``cluster`` its hosts are asked as well what others have started there."""
    jobs = find_jobs(runs)
    for job in jobs:
        yield from _show_job(job)
    if not jobs:
        yield "nothing is running from here"
        with contextlib.suppress(*_UNTOLD):
            yield from _show_latest(read_story((runs / "latest").resolve()))
    if cluster and not cluster.is_local:
        for name, told in on_all(cluster.hosts, lambda host: _ask_holder(host, cluster)).items():
            yield f"{name}: {told}"


def _show_job(job: dict[str, Any]) -> Iterator[str]:
    yield f"run {job.get('run') or '(being prepared)'}"
    yield f"  process {job['pid']} on {job.get('host')}, for {_minutes(ago(job.get('since', time.time())))}"
    if job.get("run"):
        with contextlib.suppress(*_UNTOLD):  # it may have just begun
            yield from _show_story(read_story(Path(job["run"])))


def _show_story(story: Story) -> Iterator[str]:
    hosts = ", ".join(f"{name} ({ranks})" for name, ranks in story.hosts.items())
    if hosts:
        yield f"  hosts (ranks): {hosts}"
    planned = story.of("planned")
    if story.steps:
        last = story.steps[-1]
        of = f" of {planned[-1]['steps']}" if planned else ""
        rate = f"{last.tokens / last.step_s:.0f} tokens/s" if last.step_s else "?"
        yield f"  step {last.step}{of}, {ago(last.time):.0f} s ago: loss {last.loss:.3f}, {rate}"
    if kept := story.of("checkpoint"):
        yield f"  the newest checkpoint is of step {kept[-1]['step']}, {_minutes(ago(kept[-1]['time']))} ago"


def _show_latest(story: Story) -> Iterator[str]:
    if story.state == "done":
        yield f"the latest run, {story.folder.name}, has ended well"
        return
    yield f"the latest run, {story.folder.name}, is {story.state}: ./inv train --resume goes on with it"
    yield from _show_story(story)


def _ask_holder(host: Host, cluster: Cluster) -> str:
    try:
        holder = ask(host, cluster.root, {"verb": "holder", "folder": str(cluster.root / "runs")})["holder"]
    except ClusterError as error:
        return str(error)
    return "free" if holder is None else describe_holder(holder)


def stop_jobs(runs: Path, run: str, cluster: Cluster | None, *, at_once: bool, say: Callable[[str], None]) -> int:
    """Ask the run named ``run``, or all that are going on from here, to stop after the step, and wait until they have.

    ``at_once`` does not wait for the step. With a ``cluster``, and if nothing is going on from here, ranks are ended on its
    hosts, as of a run that nobody leads any more. Returns how many were stopped.
    """
    jobs = [job for job in find_jobs(runs) if not run or Path(str(job.get("run"))).name == Path(run).name]
    for job in jobs:
        for _ in range(2 if at_once else 1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(job["pid"], signal.SIGTERM)
            time.sleep(_TICK_S if at_once else 0)
        say(f"{Path(str(job.get('run') or 'a run that was being prepared')).name}: " + _wait_for(job, runs))
    num_swept = sum(_sweep(cluster, run, say)) if cluster and not cluster.is_local and not jobs else 0
    return len(jobs) + num_swept


def _wait_for(job: dict[str, Any], runs: Path) -> str:
    give_up_at = time.monotonic() + _STOP_PATIENCE_S
    while any(other["pid"] == job["pid"] for other in find_jobs(runs)):
        if time.monotonic() > give_up_at:
            return f"has not stopped after {_STOP_PATIENCE_S:.0f} s; ./inv stop --now ends it at once"
        time.sleep(_TICK_S)
    return "has stopped; ./inv train --resume goes on with it"


def _sweep(cluster: Cluster, run: str, say: Callable[[str], None]) -> Sequence[int]:
    """End on each host the ranks that hold its lock, of ``run`` or, if that is empty, of any; returns how many had some."""

    def end(host: Host) -> int:
        try:
            holder = ask(host, cluster.root, {"verb": "holder", "folder": str(cluster.root / "runs")})["holder"]
            if holder is None or (run and Path(str(holder["run"])).name != Path(run).name):
                return 0
            plan = str(Path(str(holder["run"])) / PLAN_FILE)
            ended = ask(host, cluster.root, {"verb": "sweep", "plan": plan, "remove": ""})["ended"]
        except (ClusterError, KeyError) as error:
            say(f"{host.name}: {error}")
            return 0
        say(f"{host.name}: ended {ended} processes of {Path(str(holder['run'])).name}")
        return 1

    return list(on_all(cluster.hosts, end).values())


def _about_us(run: str) -> dict[str, Any]:
    return {"run": run, "pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
