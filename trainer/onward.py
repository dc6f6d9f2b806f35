"""A run through its losses: what is done when a rank or a host is lost, as ``launch.on_loss`` says, and when one is back."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from types import FrameType

from trainer.cluster.interruptions import taken_by
from trainer.cluster.inventory import Cluster
from trainer.cluster.launch import Attach
from trainer.cluster.outcome import Line, Outcome
from trainer.cluster.presence import Absent, find_absent, tell_absent, without
from trainer.cluster.supervise import Supervisor
from trainer.config import LaunchConfig
from trainer.errors import EXIT_INTERRUPTED, ClusterError, StalledError
from trainer.events import Event

_MOST_FRUITLESS = 3  # losses in a row without a new step between them: something else is wrong
_MOST_REFUSED = 10  # starts in a row that came to nothing: a host that has just come back may not be ready for some seconds
_MOST_WITH_NEWCOMERS = 3  # of these, before those who have just come back are left out for good
_LOOK_EVERY_S = 2.0
_LOOK_FOR_THE_LOST_EVERY_S = 10.0

Start = Callable[[Cluster, Attach], Outcome]


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
        self.has_started = False  # in this attempt
        self._was_stopped = False
        self._are_back = threading.Event()
        self._is_recalled = False
        self._is_called_off = False  # by Ctrl-C or its kin, while no supervisor was there to take it
        self._proven: Cluster | None = None  # the hosts that have made a step together last
        self._fruitless = 0  # losses in a row without a new step between them
        self._refused = 0  # starts in a row that came to nothing

    def on_event(self, event: Event) -> None:
        """Take note of how far the run is; at a checkpoint it makes room for hosts that are back."""
        if event["event"] == "started":
            self.has_started = True
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
        with taken_by(self._call_off):
            return self._follow(start)

    def _follow(self, start: Start) -> Outcome:
        cluster: Cluster | None = self._whole
        is_first = True
        while cluster:
            before = self._newest_step
            outcome = self._attempt(start, cluster, is_first=is_first)
            has_progressed = self._newest_step > before
            self._proven = cluster if has_progressed else self._proven
            if self._is_recalled and self._was_stopped and not outcome.exit_code:
                self._say("the run goes on with the hosts that are back")
            elif not self._is_loss(outcome, cluster, is_first=is_first) or self._settings.on_loss == "stop":
                return outcome
            elif self._is_again_and_again(outcome, has_progressed=has_progressed):
                return dataclasses.replace(outcome, message=f"{outcome.message} (again and again without a step between)")
            is_first = False
            cluster = self._choose_next(cluster, outcome)
        return self._give_up(outcome)

    def _is_again_and_again(self, outcome: Outcome, *, has_progressed: bool) -> bool:
        """Count a loss; returns whether there are too many without a step between."""
        if self.has_started and outcome.exit_code == StalledError.exit_code:
            self._refused, self._fruitless = 0, 0 if has_progressed else self._fruitless + 1
        else:
            self._refused += 1
        return self._fruitless == _MOST_FRUITLESS or self._refused == _MOST_REFUSED

    def _choose_next(self, cluster: Cluster, outcome: Outcome) -> Cluster | None:
        """Return the hosts to go on with after those of ``cluster``, None if the run cannot or is not to go on."""
        if self._refused == _MOST_WITH_NEWCOMERS and self._leave_out_newcomers(cluster, outcome):
            self._refused = 0
        if self._refused:
            self._rest(_LOOK_EVERY_S)
        found = None if self._is_called_off else self._gather(outcome)
        return None if self._is_called_off else found

    def _give_up(self, outcome: Outcome) -> Outcome:
        """Return how a run has ended that was to go on after ``outcome``."""
        if self._is_called_off:
            message = "; ".join(filter(None, ("interrupted between two starts", outcome.message)))
            return dataclasses.replace(outcome, exit_code=EXIT_INTERRUPTED, message=message)
        message = "; ".join(filter(None, (outcome.message, "the hosts that are missing did not come back")))
        return dataclasses.replace(outcome, exit_code=outcome.exit_code or StalledError.exit_code, message=message)

    def _call_off(self, _number: int, _frame: FrameType | None) -> None:
        self._is_called_off = True

    def _leave_out_newcomers(self, cluster: Cluster, outcome: Outcome) -> bool:
        """Do without the hosts of ``cluster`` that have come back and cannot take part; returns whether there are any."""
        proven = {host.name for host in self._proven.hosts} if self._proven else set()
        newcomers = {host.name: "" for host in cluster.hosts if host.name not in proven}
        if not proven or not newcomers:
            return False
        self._whole = without(self._whole, newcomers)
        self._say(f"{outcome.message}: going on without {' and '.join(newcomers)}")
        return True

    def _attempt(self, start: Start, cluster: Cluster, *, is_first: bool) -> Outcome:
        self.has_started = self._was_stopped = self._is_recalled = False
        self._are_back.clear()
        ended = threading.Event()
        is_short = len(cluster.hosts) < len(self._whole.hosts)
        lookout = threading.Thread(target=self._look_out, args=(ended, len(cluster.hosts)), name="lookout", daemon=True)
        if is_short:
            lookout.start()
        try:
            return start(cluster, self._attach)
        except _CalledOff:
            return Outcome(EXIT_INTERRUPTED, "interrupted")
        except ClusterError as error:
            if is_first:
                raise
            return Outcome(StalledError.exit_code, str(error))
        finally:
            ended.set()
            self._supervisor = None

    def _attach(self, supervisor: Supervisor) -> None:
        if self._is_called_off:
            raise _CalledOff
        self._supervisor = supervisor

    def _look_out(self, ended: threading.Event, num_hosts: int) -> None:
        """Look again and again whether more hosts could take part than do: one that is back may go before it is called."""
        while not ended.wait(_LOOK_FOR_THE_LOST_EVERY_S):
            if len(self._whole.hosts) - len(self._absent(self._whole, {})) > num_hosts:
                self._are_back.set()
            else:
                self._are_back.clear()

    def _is_loss(self, outcome: Outcome, cluster: Cluster, *, is_first: bool) -> bool:
        """Whether the run may go on; a later attempt that comes to nothing is one more sign of the same loss.

        Hosts that are back may also be refused after the start: for want of disk, for example.
        """
        has_newcomers = self._proven is not None and len(cluster.hosts) > len(self._proven.hosts)
        came_to_nothing = not is_first and (not self.has_started or has_newcomers)
        return outcome.exit_code == StalledError.exit_code or (came_to_nothing and outcome.exit_code == ClusterError.exit_code)

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
            if self._clock() >= give_up_at or self._is_called_off:
                return None
            if not has_told:
                self._say(f"{why}: waiting for up to {settings.wait_s:.0f} s")
            has_told, known = True, {}
            self._rest(_LOOK_EVERY_S)


class _CalledOff(Exception):  # noqa: N818 - no error: somebody wants the run to end
    """Raised in place of a start."""
