"""Starting a job, reading its events, and ending it on every host.

The job gets a session of its own, so that Ctrl-C reaches only the supervisor. The first interruption asks the ranks to
stop at the next step (SIGUSR1, which mpirun forwards), the second ends them at once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

from trainer.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, ClusterError, StalledError
from trainer.events import Event, parse_event

_TAG = re.compile(r"^\[[^\]]*,(\d+)\]<(stdout|stderr)>: ?(.*)$")
_KILL_AFTER_S = 5.0


@dataclass(frozen=True)
class Line:
    """One line of a job's output; ``rank`` is None for the launcher's own."""

    rank: int | None
    text: str


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its exit code and, unless that is 0, what to tell the user (rank's own words first)."""

    exit_code: int
    message: str = ""


class Supervisor:
    """Runs one job to its end.

    ``on_event`` gets each event, ``on_line`` every other line of output, both in the caller's thread.
    ``start_timeout_s`` is how long the job may take until its ``started`` event; None for jobs without one.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None],
        on_line: Callable[[Line], None],
        start_timeout_s: float | None = None,
    ) -> None:
        self._on_event = on_event
        self._on_line = on_line
        self._deadline = time.monotonic() + start_timeout_s if start_timeout_s else None
        self._start_timeout_s = start_timeout_s
        self._interrupts = 0
        self._error: Event | None = None
        self._lines: queue.Queue[Line | None] = queue.Queue()

    def run(self, argv: Sequence[str], env: Mapping[str, str]) -> Outcome:
        """Start ``argv`` with ``env`` added to ours, and return when it and all of its output have ended."""
        process = subprocess.Popen(
            argv,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        previous = {number: signal.signal(number, self._interrupt(process)) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._follow(process)
            return self._judge(process.wait())
        finally:
            _kill(process)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _interrupt(self, process: subprocess.Popen[bytes]) -> Callable[[int, FrameType | None], None]:
        def handler(_number: int, _frame: FrameType | None) -> None:
            self._interrupts += 1
            if self._interrupts == 1:
                process.send_signal(signal.SIGUSR1 if self._deadline is None else signal.SIGTERM)
            else:
                threading.Thread(target=_kill, args=(process,), daemon=True).start()

        return handler

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Hand out lines until both streams have ended, or the job is late to start."""
        assert process.stdout is not None
        assert process.stderr is not None
        for stream in (process.stdout, process.stderr):
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()
        open_streams = 2
        while open_streams:
            try:
                line = self._lines.get(timeout=0.2)
            except queue.Empty:
                if self._deadline and time.monotonic() > self._deadline:
                    self._error = {"message": self._late_message(), "exit_code": ClusterError.exit_code}
                    _kill(process)
                    self._deadline = None
                continue
            if line is None:
                open_streams -= 1
            else:
                self._take(line)

    def _read(self, stream: IO[bytes]) -> None:
        for raw in stream:
            text = raw.decode("utf-8", "replace").rstrip("\r\n")
            tag = _TAG.match(text)
            self._lines.put(Line(int(tag[1]), tag[3]) if tag else Line(None, text))
        self._lines.put(None)

    def _take(self, line: Line) -> None:
        event = parse_event(line.text)
        if event is None:
            self._on_line(line)
            return
        if event["event"] == "started":
            self._deadline = None
        if event["event"] == "error" and self._error is None:
            self._error = event  # the first rank to fail knows why; the others only lost it
        self._on_event(event)

    def _judge(self, returncode: int) -> Outcome:
        if self._error is not None:
            return Outcome(self._error["exit_code"], self._error["message"])
        if self._interrupts:
            return Outcome(EXIT_INTERRUPTED, "interrupted")
        if returncode == 0:
            return Outcome(EXIT_OK)
        if returncode < 0 or returncode > 128:
            return Outcome(StalledError.exit_code, "a rank was killed from outside, for example for want of memory")
        return Outcome(EXIT_BUG, f"the job ended with exit code {returncode} and without a reason")

    def _late_message(self) -> str:
        return (
            f"not all ranks had started after {self._start_timeout_s:.0f} s; check that every host answers "
            "(ssh HOST true), or raise launch.start_timeout_s"
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and all that it started here: SIGTERM, which mpirun passes on to all hosts, then SIGKILL."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_AFTER_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
