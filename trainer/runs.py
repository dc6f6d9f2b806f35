"""Runs from the control machine: new ones, and those that go on where they were interrupted or lost."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.cluster.inventory import Cluster
from trainer.cluster.launch import NOT_YET, Again, Attach, Inputs, Watcher, execute, plan_run
from trainer.cluster.nodes import Fleet, muster
from trainer.cluster.outcome import Line, Outcome
from trainer.cluster.plan import Launch
from trainer.cluster.presence import by_link_of, find_absent
from trainer.cluster.rollcall import call_roll
from trainer.cluster.room import read_room
from trainer.cluster.several import bring_back, execute_on, find_artifacts, guess_launch, notice, plan_on, send_all
from trainer.data.checked import check_data
from trainer.errors import EXIT_INTERRUPTED, EXIT_OK, StalledError
from trainer.events import Event
from trainer.jobs import Claim
from trainer.measure.fit import MemoryPlan, find_here, plan_memory
from trainer.measure.forecast import foretell
from trainer.onward import Onward
from trainer.paths import cache_dir, runs_dir
from trainer.receipt import prepare_once
from trainer.report.console import RunConsole, plain_text, render_answers, render_summary
from trainer.report.memory import render_memory
from trainer.report.page import try_page
from trainer.report.record import Record, describe_hosts
from trainer.request import Request, compare_content, read_inputs, refuse

WIDTH = 110  # of tables where there is no terminal to ask


def train(request: Request, dry_run: bool, runs: Path | None = None) -> int:
    """Train as requested and show the result; returns the exit code. ``runs`` is where the run's folder goes."""
    runs = runs or runs_dir()
    inputs = read_inputs(request)
    if dry_run:
        print(_guess_launch(inputs, runs).describe(), end="")
        return _foresee_memory(inputs)
    with Claim(inputs.cluster, runs) as claim, RunConsole() as console:
        voyage = Voyage(inputs, request.allow_slow_link, console, runs)
        launch = voyage.launch
        claim.name(launch.kept.run_dir)
        console.say(f"run {launch.kept.run_dir}")
        forecast = foretell(voyage.cluster, inputs.config, launch.kept.fingerprints)
        if forecast:
            console.say(forecast.describe())
        record = Record(launch.kept.run_dir, forecast)
        outcome = voyage.make(record)
    summary = record.finish(outcome)
    if "loss_best" in summary:
        out = stdout()
        out.print(render_summary(summary, inputs.config.style.name))
        if summary["answers"]:
            out.print(render_answers(summary["answers"]))
    try_page(launch.kept.run_dir, complain)
    _say_farewell(launch, outcome)
    return outcome.exit_code


class Voyage:
    """One run from its first start to its end, on the hosts that are there at each start."""

    def __init__(self, inputs: Inputs, allow_slow_link: bool, console: RunConsole, runs: Path) -> None:
        """Ask the hosts, fetch and deliver what the ranks need, and plan; nothing is started yet."""
        self._inputs, self._allow_slow_link, self._console, self._runs = inputs, allow_slow_link, console, runs
        self._fleet = None if inputs.cluster.is_local else call_roll(inputs.cluster, allow_slow_link, console.say)
        self._model, self._fingerprints = prepare_once(inputs, console)
        rooms = {name: node.room for name, node in self._fleet.nodes.items()} if self._fleet else {}
        if memory := _plan_memory(inputs, rooms, self._model, self._fingerprints["data"]):
            console.show(render_memory(memory))
            memory.check()
        if (again := inputs.again) and (changed := compare_content(again, self._fingerprints)):
            refuse(changed, again)
        self._is_under_way = False
        self._sailed: Fleet | None = None  # the hosts that have trained together last
        self.launch = self._plan(inputs)

    @property
    def cluster(self) -> Cluster:
        """The hosts of the next start, or of the one that is under way."""
        return self._fleet.cluster if self._fleet else self._inputs.cluster

    def make(self, record: Record) -> Outcome:
        """Run to the end, through losses if the recipe says so; all is told to ``record`` and on the console."""
        settings = self._inputs.config.launch
        absent = by_link_of(self._fleet) if self._fleet else find_absent
        self._onward = Onward(self._inputs.cluster, settings, lambda text: notice(self._watcher, text), absent=absent)
        self._watcher = Both(record, self._console, self._onward)  # kept first: a closed terminal must not lose it
        unreachable: Mapping[str, str] = {}
        try:
            outcome = self._onward.follow(self._start)
            unreachable = outcome.unreachable
            return outcome
        finally:
            if self._fleet and self._is_under_way:
                bring_back((self._sailed or self._fleet).cluster, self.launch, self._watcher, unreachable)

    def _start(self, cluster: Cluster, attach: Attach) -> Outcome:
        if self._is_under_way:
            self._go_on_with(cluster)
        self._is_under_way = True
        self._watcher.on_event(describe_hosts(self.cluster))
        if self._fleet:
            outcome = execute_on(self._fleet, self.launch, self._watcher, attach)
            self._sailed = self._fleet if self._onward.has_started else self._sailed
            return outcome
        return execute(self.launch, self._watcher, attach)

    def _go_on_with(self, cluster: Cluster) -> None:
        """Plan the next start, from the last checkpoint, on the hosts that are left or back."""
        if self._fleet:
            self._fleet = muster(cluster, self._allow_slow_link, self._console.say)
        earlier = Again(folder=self.launch.kept.run_dir, plan=self.launch.kept)
        self.launch = self._plan(dataclasses.replace(self._inputs, cluster=cluster, again=earlier))

    def _plan(self, inputs: Inputs) -> Launch:
        if not self._fleet:
            return plan_run(inputs, self._model, self._fingerprints, self._runs)
        artifacts = find_artifacts(inputs, self._model, self._fingerprints)
        send_all(self._fleet, artifacts, self._console.show_progress)
        return plan_on(self._fleet, inputs, self._model, self._fingerprints, self._runs)


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
    stdout().print(render_memory(memory))
    memory.check()
    return EXIT_OK


def _guess_launch(inputs: Inputs, runs: Path) -> Launch:
    """Return the launch as far as it is known without asking any host or fetching anything."""
    unknown = {"model": NOT_YET, "data": NOT_YET}
    if inputs.cluster.is_local:
        return plan_run(inputs, Path(NOT_YET), unknown, runs)
    return guess_launch(inputs, Path(NOT_YET), unknown, runs)


def stdout() -> Console:
    """Return where results go."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


class Both:
    """Hands everything to several watchers in turn."""

    def __init__(self, *watchers: Watcher) -> None:
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
    can_go_on = outcome.exit_code in (EXIT_INTERRUPTED, StalledError.exit_code)
    onward = f"\nit goes on with: ./inv train --resume {run_dir.name}" if can_go_on else ""
    complain(f"{outcome.message}\nlogs: {run_dir / 'logs'}{onward}")


def complain(text: str) -> None:
    """Print on standard error what others may have written, without the control characters that it may hold."""
    print(plain_text(text).plain, file=sys.stderr)
