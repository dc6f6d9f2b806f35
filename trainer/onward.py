"""A run through its losses: what is done when a rank or a host is lost, as ``launch.on_loss`` says, and when one is back."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from trainer.cluster.inventory import Cluster
from trainer.cluster.launch import Attach
from trainer.cluster.outcome import Line, Outcome
from trainer.cluster.presence import find_absent, tell_absent, without
from trainer.cluster.supervise import Supervisor
from trainer.config import LaunchConfig
from trainer.errors import EXIT_INTERRUPTED, ClusterError, StalledError
from trainer.events import Event

_MOST_FRUITLESS = 3  # losses in a row without a new step between them: something else is wrong
_MOST_REFUSED = 10  # starts in a row that came to nothing: a host that has just come back may not be ready for some seconds
_LOOK_EVERY_S = 2.0
_LOOK_FOR_THE_LOST_EVERY_S = 10.0

Start = Callable[[Cluster, Attach], Outcome]
Absent = Callable[[Cluster, Mapping[str, str]], Mapping[str, str]]


class Onward:
    """Keeps a run on the hosts of ``whole`` going. It must be one of the run's watchers; ``say`` is told what is done."""

    def __init__(
        self,
        whole: Cluster,
        settings: LaunchConfig,
        say: Callable[[str], None],
        *,
        absent: Absent = find_absent,
        rest: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._whole, self._settings, self._say = whole, settings, say
        self._absent, self._rest, self._clock = absent, rest, clock
        self._supervisor: Supervisor | None = None
        self._newest_step = 0
        self._has_started = False  # in this attempt
        self._was_stopped = False
        self._are_back = threading.Event()
        self._is_recalled = False

    def on_event(self, event: Event) -> None:
        """Take note of how far the run is; at a checkpoint it makes room for hosts that are back."""
        if event["event"] == "started":
            self._has_started = True
        if event["event"] == "step":
            self._newest_step = max(self._newest_step, event["step"])
        if event["event"] == "done":
            self._was_stopped = bool(event.get("stopped"))
        if event["event"] == "checkpoint" and self._are_back.is_set() and self._supervisor and not self._is_recalled:
            self._is_recalled = True
            self._supervisor.stop()

    def on_line(self, line: Line) -> None:
        """Take other output, which says nothing here."""

    def follow(self, start: Start) -> Outcome:
        """Have the run started by ``start`` as often as it takes; returns how it ended.

        Raises the `ClusterError` of the first start; those of later ones are losses.
        """
        cluster, fruitless, refused, has_run = self._whole, 0, 0, False
        while True:
            before = self._newest_step
            outcome = self._attempt(start, cluster, is_first=not has_run)
            if self._is_recalled and self._was_stopped and not outcome.exit_code:
                self._say("the run goes on with the hosts that are back")
            elif not self._is_loss(outcome, is_first=not has_run) or self._settings.on_loss == "stop":
                return outcome
            else:
                refused = 0 if self._has_started else refused + 1
                if self._has_started:
                    fruitless = 0 if self._newest_step > before else fruitless + 1
                if fruitless == _MOST_FRUITLESS or refused == _MOST_REFUSED:
                    return dataclasses.replace(outcome, message=f"{outcome.message} (again and again without a step between)")
                if refused:
                    self._rest(_LOOK_EVERY_S)
            has_run = True
            with _interruptions_raised():
                try:
                    found = self._gather(outcome)
                except KeyboardInterrupt:
                    return Outcome(EXIT_INTERRUPTED, "interrupted while hosts were awaited")
            if found is None:
                return dataclasses.replace(outcome, message=f"{outcome.message}; the hosts that are missing did not come back")
            cluster = found

    def _attempt(self, start: Start, cluster: Cluster, *, is_first: bool) -> Outcome:
        self._has_started = self._was_stopped = self._is_recalled = False
        self._are_back.clear()
        ended = threading.Event()
        is_short = len(cluster.hosts) < len(self._whole.hosts)
        lookout = threading.Thread(target=self._look_out, args=(ended, len(cluster.hosts)), name="lookout", daemon=True)
        if is_short:
            lookout.start()
        try:
            return start(cluster, self._attach)
        except ClusterError as error:
            if is_first:
                raise
            return Outcome(StalledError.exit_code, str(error))
        finally:
            ended.set()
            self._supervisor = None

    def _attach(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def _look_out(self, ended: threading.Event, num_hosts: int) -> None:
        """Wait until more hosts could take part than do."""
        while not ended.wait(_LOOK_FOR_THE_LOST_EVERY_S):
            if len(self._whole.hosts) - len(self._absent(self._whole, {})) > num_hosts:
                self._are_back.set()
                return

    def _is_loss(self, outcome: Outcome, *, is_first: bool) -> bool:
        """Whether the run may go on; a later attempt that does not even start is one more sign of the same loss."""
        never_started = not is_first and not self._has_started and outcome.exit_code == ClusterError.exit_code
        return outcome.exit_code == StalledError.exit_code or never_started

    def _gather(self, outcome: Outcome) -> Cluster | None:
        """Return the hosts to go on with as soon as there are enough of them, None if they do not come in time."""
        settings, give_up_at, has_told = self._settings, self._clock() + self._settings.wait_s, False
        known = outcome.unreachable  # a moment ago
        while True:
            absent = self._absent(self._whole, known)
            present = without(self._whole, absent)
            why = "; ".join(part for part in (outcome.message, tell_absent(absent)) if part)
            if not absent or (settings.on_loss == "continue" and len(present.hosts) >= settings.min_hosts):
                of = f"{len(present.hosts)} of {len(self._whole.hosts)} hosts" if absent else "all hosts"
                self._say(f"{why}: going on from the last checkpoint with {of}" if why else f"going on with {of}")
                return present
            if self._clock() >= give_up_at:
                return None
            if not has_told:
                self._say(f"{why}: waiting for up to {settings.wait_s:.0f} s")
            has_told, known = True, {}
            self._rest(_LOOK_EVERY_S)


@contextlib.contextmanager
def _interruptions_raised() -> Iterator[None]:
    """Let SIGTERM and SIGINT raise KeyboardInterrupt: nothing is running that would have to be asked to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
