"""How a job ended, from what was heard of it: its ranks' own words before the launcher's, and those before an exit code."""

from __future__ import annotations

import re
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.cluster.ssh import SSH_FAILED
from trainer.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, ClusterError, StalledError
from trainer.events import Event

_PEER = re.compile(r"^\s*Peer host:\s+(\S+)|^\s*Remote daemon:.* on node (\S+)")  # of a rank, or of mpirun, that lost another
_BROKEN_OFF = "MPI_ERRORS_ARE_FATAL"
_QUOTED_LINES = 20


@dataclass(frozen=True)
class Line:
    """One line of a job's output; ``rank`` is None for the launcher's own."""

    rank: int | None
    text: str


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its exit code and, unless that is 0, what to tell the user (rank's own words first).

    ``silent`` are the hosts, by the names they call themselves, that had given no sign of life for too long; ``unreachable``
    those of the inventory that did not answer after the end, each with what ssh said.
    """

    exit_code: int
    message: str = ""
    silent: tuple[str, ...] = ()
    unreachable: Mapping[str, str] = field(default_factory=dict)


class Evidence:
    """What has been heard of one job. ``is_led`` means over ssh; ``must_start`` that its ranks tell when they have started."""

    def __init__(self, *, is_led: bool, must_start: bool) -> None:
        self.has_started = False
        self.was_interrupted = False
        self.is_ended = False  # by us; errors after that are of our making
        self.was_alive = False  # heartbeats were heard
        self.error: Event | None = None
        self._silent: tuple[str, ...] = ()
        self._is_led, self._must_start = is_led, must_start
        self._is_done = False  # the ranks have told of their end, whether it was the last step's or a stop's
        self._is_finished = False
        self._rank_spoke = False
        self._lost: str | None = None  # the host whose rank another one has lost, "" if it is not known
        self._launcher_said: deque[str] = deque(maxlen=_QUOTED_LINES)

    def hear_line(self, line: Line, *, is_event: bool) -> None:
        """Take a line of output, also one that carries an event."""
        self._rank_spoke |= line.rank is not None
        if peer := _PEER.match(line.text):
            self._lost = peer[1] or peer[2]
        elif _BROKEN_OFF in line.text:
            self._lost = self._lost or ""
        if line.rank is None and not is_event:
            self._launcher_said.append(line.text)

    def hear_event(self, event: Event) -> None:
        """Take an event of any kind."""
        kind = event["event"]
        self.was_alive |= kind == "heartbeat"
        self.has_started |= kind == "started"
        if kind == "done":
            self._is_done = True
            self._is_finished = not event.get("stopped", True)  # the interruption came too late to stop anything
        if kind == "error" and not self.is_ended:
            self._hear_error(event)

    def miss(self, hosts: Sequence[str], message: str) -> None:
        """Take note that ``hosts`` have fallen silent."""
        self._silent = tuple(hosts)
        self.blame(message, StalledError.exit_code)

    def blame(self, message: str, exit_code: int) -> None:
        """Give the supervisor's own reason for ending the job, unless a rank has given one."""
        self.error = self.error or {"message": message, "exit_code": exit_code}

    def judge(self, returncode: int) -> Outcome:
        """Return how the job ended whose launcher ended with ``returncode`` (negative: by that signal)."""
        if self.error is not None:
            return self._judge_error(self.error)
        if self.was_interrupted and not (self._is_finished and returncode == 0):
            return Outcome(EXIT_INTERRUPTED, "interrupted")
        if self._ended_well(returncode):
            return Outcome(EXIT_OK)
        if self._is_led and returncode == SSH_FAILED:
            return self._judge_connection()
        if returncode < 0 or 128 < returncode < 128 + signal.NSIG:
            return Outcome(StalledError.exit_code, _describe_signal(-returncode if returncode < 0 else returncode - 128))
        return self._judge_launcher(returncode)

    def _judge_error(self, error: Event) -> Outcome:
        if self.was_interrupted and _is_loss(error):  # somebody wants it to end: it is not to go on by itself
            return Outcome(EXIT_INTERRUPTED, f"interrupted; {error['message']}", self._silent)
        return Outcome(error["exit_code"] or EXIT_BUG, error["message"], self._silent)

    def _ended_well(self, returncode: int) -> bool:
        """Whether the ranks came to their end; mpirun ends with 0 also when another host than its own loses power."""
        if self._is_done:
            return returncode == 0 or self.is_ended  # ranks that could not part from each other were killed
        return returncode == 0 and not self.was_alive and (self.has_started or not self._must_start)

    def _judge_launcher(self, returncode: int) -> Outcome:
        if self._lost is not None:
            where = f" on {self._lost}" if self._lost else ""
            return Outcome(
                StalledError.exit_code, f"the connection to a rank{where} broke off: it was killed, or its host is gone"
            )
        if self._must_start and not self.has_started and not self._rank_spoke:
            said = "\n".join([f"the ranks could not be started (exit code {returncode})", *self._launcher_said])
            return Outcome(ClusterError.exit_code, said)
        if self.was_alive:  # ranks say why they end; mpirun that gets SIGTERM does not
            return Outcome(StalledError.exit_code, f"mpirun ended with exit code {returncode}: somebody or something ended it")
        return Outcome(EXIT_BUG, f"the job ended with exit code {returncode} and without a reason")

    def _judge_connection(self) -> Outcome:
        said = "\n".join(self._launcher_said)
        if not self.has_started:
            return Outcome(ClusterError.exit_code, f"the head of the cluster cannot be reached: {said}")
        return Outcome(StalledError.exit_code, f"the connection to the head of the cluster broke off: {said}")

    def _hear_error(self, error: Event) -> None:
        """Keep the cause: the first rank to fail knows why. Others only lost it, but may be heard before it."""
        if self.error is None or (_is_loss(self.error) and not _is_loss(error)):
            self.error = error


def _is_loss(error: Event) -> bool:
    return bool(error["exit_code"] == StalledError.exit_code)


def _describe_signal(number: int) -> str:
    if number in (signal.SIGKILL, signal.SIGTERM):
        return "a rank was killed from outside, for example for want of memory"
    return f"a rank crashed ({signal.strsignal(number)}); its last words are in its log"
