"""Starting a job, reading its events, and ending it on every host.

The job gets a session of its own, so that Ctrl-C reaches only the supervisor. The first interruption asks the ranks to
stop at the next step (SIGUSR1, which mpirun forwards), the second ends them at once. Before the ranks have started
there is no step to wait for, and the first one ends them. A job on another machine gets words instead of signals: see
`trainer.cluster.lead`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from trainer.cluster.interruptions import taken_by
from trainer.cluster.lines import LineBuffer
from trainer.cluster.outcome import Evidence, Line, Outcome
from trainer.cluster.processes import kill_session
from trainer.errors import ClusterError, StalledError
from trainer.events import Event, parse_event

_TAG = re.compile(r"^\[[^\]]*,(\d+)\]<(stdout|stderr)>: ?(.*)$")
_KILL_AFTER_S = 5.0
_OBEY_WITHIN_S = 0.5  # a launcher that was told to kill
_TICK_S = 0.1
_SLEPT_S = 2.0  # between two looks: this machine was asleep, or stopped
_WAKE_S = 30.0  # until its network is there again, and others have sent what they could not
_PARTING_S = 60.0  # of ranks that have told of their end
STOP, END, KILL = "stop", "end", "kill"  # the words to `lead`
_CHUNK_BYTES = 65536
_LAST_READS = 64  # a pipe holds 64 KiB, a few reads; only something that outlives the launcher can write more


class Supervisor:
    """Runs one job to its end.

    ``on_event`` gets each event, ``on_line`` every other line of output, both in the caller's thread; what they raise
    ends the job. ``start_timeout_s`` is how long the job may take until its ``started`` event; None for jobs without one.
    ``silence_s`` is how long a host may be silent that has once sent a heartbeat.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None],
        on_line: Callable[[Line], None],
        start_timeout_s: float | None = None,
        silence_s: float | None = None,
    ) -> None:
        self._on_event = on_event
        self._on_line = on_line
        self._start_timeout_s = start_timeout_s
        self._silence_s = silence_s
        self._beats: dict[str, float] = {}  # host to when it was heard last, by our own clock
        self._looked_at, self._looked_at_wall = math.inf, math.inf
        self._kill_at = math.inf  # finite once the job has been told to end
        self._interrupts = 0
        self._answered = False
        self._process: subprocess.Popen[bytes] | None = None
        self._is_loss_known = False
        self._evidence = Evidence(is_led=False, must_start=start_timeout_s is not None)

    def run(self, argv: Sequence[str], env: Mapping[str, str], order: str | None = None) -> Outcome:
        """Start ``argv`` with ``env`` added to ours, and return when it has ended; nothing of it stays on this machine.

        With an ``order``, a line of text, ``argv`` is the way to a `lead` on another machine, which carries it out.
        Interruptions are handled only in the main thread, the only one that Python gives signals to.
        """
        self._evidence = Evidence(is_led=order is not None, must_start=self._start_timeout_s is not None)
        with taken_by(self._interrupt):
            try:
                process = _start(argv, env, order)
            except OSError as error:
                return Outcome(ClusterError.exit_code, f"{argv[0]}: cannot be started: {error.strerror}")
            try:
                self._process = process
                if self._interrupts:
                    self._end(process)  # the interruption came while the process was being made
                self._follow(process)
                outcome = self._evidence.judge(process.wait())
                if self._evidence.has_started and outcome.exit_code == StalledError.exit_code:
                    self._announce_loss(outcome.message)
                return outcome
            finally:
                _kill(process)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        self._evidence.was_interrupted = True
        if self._process is None:
            return
        if self._interrupts == 1 and self._evidence.has_started:
            _tell(self._process, STOP)
        else:
            self._end(self._process)

    def stop(self) -> None:
        """Ask the ranks to stop after the step, as the first interruption does."""
        if self._process is not None:
            _tell(self._process, STOP)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Tell the launcher to end all ranks on all hosts, and note when to kill it."""
        self._evidence.is_ended = True
        _tell(process, END)
        self._kill_at = min(self._kill_at, time.monotonic() + _patience(process))

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Hand out lines until the launcher has ended.

        What it wrote is in the pipes by then. A process that outlives it may hold their other end open for ever, so
        their end is not waited for.
        """
        late_at = time.monotonic() + (self._start_timeout_s or math.inf)
        with selectors.DefaultSelector() as streams:
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                streams.register(stream, selectors.EVENT_READ, LineBuffer())
            stdout = process.stdout
            while process.poll() is None:
                self._read(streams, stdout, _TICK_S)
                self._answer_interruption()
                self._watch_time(process, late_at)
            self._answer_interruption()
            for _ in range(_LAST_READS):
                if not self._read(streams, stdout, 0):
                    break
            for key in list(streams.get_map().values()):
                self._take_all(key.data.close(), key.fileobj is stdout)

    def _read(self, streams: selectors.BaseSelector, stdout: object, timeout_s: float) -> bool:
        """Hand out the lines that arrive within ``timeout_s``; returns whether there was anything to read."""
        ready = streams.select(timeout_s)
        for key, _ in ready:
            chunk = os.read(key.fd, _CHUNK_BYTES)
            if not chunk:
                streams.unregister(key.fileobj)
            self._take_all(key.data.add(chunk) if chunk else key.data.close(), key.fileobj is stdout)
        return bool(ready)

    def _answer_interruption(self) -> None:
        """Say once what the first interruption does; not in the signal's handler, which may come amid anything."""
        if self._interrupts and not self._answered:
            self._answered = True
            text = (
                "stopping after what is under way, the adapter is kept; Ctrl-C again ends at once"
                if self._evidence.has_started
                else "stopping"
            )
            self._notice(text)

    def _watch_time(self, process: subprocess.Popen[bytes], late_at: float) -> None:
        """End a job that is late to start, kill one that was told to end and has not."""
        now = time.monotonic()
        if now > late_at and not self._evidence.has_started and self._kill_at == math.inf:
            self._evidence.blame(self._late_message(), ClusterError.exit_code)
            self._end(process)
        self._listen(process, now)
        if now > self._kill_at:
            self._evidence.is_ended = True
            kill_session(process.pid)

    def _listen(self, process: subprocess.Popen[bytes], now: float) -> None:
        """End the job of a host that has fallen silent. While we slept ourselves, nobody was heard: that does not count."""
        wall = time.time()  # the other clock may stand still in a sleep
        slept_s = max(now - self._looked_at, wall - self._looked_at_wall)
        if slept_s > _SLEPT_S:
            self._beats = dict.fromkeys(self._beats, now + min(slept_s, _WAKE_S))
        self._looked_at, self._looked_at_wall = now, wall
        limit_s = self._silence_s or math.inf
        silent_s = {host: now - heard_at for host, heard_at in sorted(self._beats.items())}
        if any(seconds > limit_s for seconds in silent_s.values()) and not self._evidence.is_ended:
            silent = [host for host, seconds in silent_s.items() if seconds > limit_s / 2]  # all of them, if the head hangs
            message = f"no sign of life from {' and '.join(silent)} for {self._silence_s:.0f} s"
            self._evidence.miss(silent, message)
            self._evidence.is_ended = True
            self._announce_loss(message)
            _tell(process, KILL)  # a launcher that is asked to end waits for the host that is silent
            self._kill_at = now + _OBEY_WITHIN_S  # it may be on that host itself

    def _announce_loss(self, message: str) -> None:
        """Say at once that something is lost: to end all ranks and to ask all hosts takes seconds."""
        if not self._is_loss_known:
            self._is_loss_known = True
            self._notice(f"{message}; ending what is left of the run")

    def _notice(self, text: str) -> None:
        self._on_event({"event": "notice", "rank": 0, "time": time.time(), "text": text})

    def _take_all(self, lines: Sequence[bytes], from_stdout: bool) -> None:
        for raw in lines:
            text = raw.decode("utf-8", "replace").rstrip("\r\n")
            tag = _TAG.match(text)
            line = Line(int(tag[1]), tag[3]) if tag else Line(None, text)
            event = parse_event(line.text) if from_stdout else None
            self._evidence.hear_line(line, is_event=event is not None)
            if event is None:
                self._on_line(line)
            else:
                self._take(event)

    def _take(self, event: Event) -> None:
        if event["event"] == "error" and self._evidence.error is None and not self._evidence.is_ended:
            self._kill_at = time.monotonic() + _KILL_AFTER_S  # it aborts the job; should that not end it, we do
        self._evidence.hear_event(event)
        if event["event"] == "heartbeat":
            self._beats[str(event.get("host"))] = time.monotonic()
            return
        if event["event"] == "done":
            self._silence_s = None
            self._kill_at = min(self._kill_at, time.monotonic() + _PARTING_S)
        self._on_event(event)

    def _late_message(self) -> str:
        return (
            f"not all ranks had started after {self._start_timeout_s:.0f} s; check that every host answers "
            "(ssh HOST true), or raise launch.start_timeout_s"
        )


def _start(argv: Sequence[str], env: Mapping[str, str], order: str | None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        argv,
        bufsize=0,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL if order is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    if order is not None:
        _tell(process, order)
    return process


def _tell(process: subprocess.Popen[bytes], word: str) -> None:
    """Tell a launcher to stop, to end or to be killed: by a signal, or by a line to who leads it on another machine."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{word}\n".encode())
    elif word == KILL:
        kill_session(process.pid)
    else:
        process.send_signal(signal.SIGUSR1 if word == STOP else signal.SIGTERM)


def _patience(process: subprocess.Popen[bytes]) -> float:
    """Return how long a launcher that was told to end may take; one on another machine kills by itself before that."""
    return _KILL_AFTER_S * (1 if process.stdin is None else 2)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and all that it started here: SIGTERM, which mpirun passes on to all hosts, then SIGKILL."""
    if process.poll() is None:
        _tell(process, END)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_patience(process))
    kill_session(process.pid)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
