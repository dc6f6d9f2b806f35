"""On the head of a cluster: running mpirun for a control machine that is at the other end of an ssh connection.

The first line of standard input is the order, ``{"argv": […], "env": {…}}`` as JSON. After it come single words: "stop"
asks the ranks to stop after the step, "end" ends them at once, "kill" does so without mpirun, which waits for hosts that
are silent. When the connection is gone, nobody can say any of it: the ranks are asked to stop, so that they keep what they
have learned, and ended if they do not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from trainer.cluster.lines import LineBuffer
from trainer.cluster.processes import kill_session
from trainer.cluster.supervise import END, KILL, STOP

_LOST_GRACE_S = 10.0  # between "stop" and "end" when the control machine is gone
_KILL_AFTER_S = 5.0
_TICK_S = 0.1
_CHUNK_BYTES = 65536
_LAST_READS = 64
_NOT_FOUND = 127
_LARGEST_CODE = 254  # 255 is how ssh says that it failed itself
_STDIN, _STDOUT, _STDERR = 0, 1, 2


def lead() -> int:
    """Carry out the order on standard input; returns mpirun's exit code, that of a shell if a signal ended it."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the end of the connection is seen on standard input
    try:
        return _Job().run()
    except OSError as error:
        print(f"{error.filename}: cannot be started: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND


class _Job:
    """One mpirun: what it says goes out, what is said to it comes in."""

    def __init__(self) -> None:
        self._words = LineBuffer()
        self._order: dict[str, Any] | None = None
        self._end_at = math.inf
        self._kill_at = math.inf
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        order = self._read_order()
        if order is None:
            return 0
        with _start(order["argv"], order["env"]) as process, selectors.DefaultSelector() as streams:
            self._process = process
            try:
                self._follow(process, streams)
                code = process.wait()
            finally:
                kill_session(process.pid)
        return 128 - code if code < 0 else min(code, _LARGEST_CODE)

    def _read_order(self) -> Mapping[str, Any] | None:
        """Return the first line; None if the control machine is gone before it has said one."""
        while chunk := os.read(_STDIN, _CHUNK_BYTES):
            if lines := self._words.add(chunk):
                order: dict[str, Any] = json.loads(lines[0])
                return order
        return None

    def _follow(self, process: subprocess.Popen[bytes], streams: selectors.BaseSelector) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        targets = {process.stdout.fileno(): _STDOUT, process.stderr.fileno(): _STDERR}
        for source in (_STDIN, *targets):
            streams.register(source, selectors.EVENT_READ)
        while process.poll() is None:
            self._pass_on(streams, targets, _TICK_S)
            self._watch_time(process)
        for _ in range(_LAST_READS):  # what it wrote is in the pipes by then; their end may never come
            if not self._pass_on(streams, targets, 0):
                break

    def _pass_on(self, streams: selectors.BaseSelector, targets: Mapping[int, int], timeout_s: float) -> bool:
        """Read what there is within ``timeout_s``; returns whether it was something of the job's."""
        ready = [key.fd for key, _ in streams.select(timeout_s)]
        for source in ready:
            chunk = os.read(source, _CHUNK_BYTES)
            if not chunk:
                streams.unregister(source)
            if source == _STDIN:
                self._obey(chunk)
            else:
                self._write(targets[source], chunk)
        return any(source != _STDIN for source in ready)

    def _obey(self, chunk: bytes) -> None:
        if not chunk:
            self._lose()
        for word in self._words.add(chunk):
            if word.decode() == STOP:
                self._send(signal.SIGUSR1)
            if word.decode() == END:
                self._end_at = time.monotonic()
            if word.decode() == KILL:
                self._end_at = self._kill_at = 0.0

    def _write(self, target: int, data: bytes) -> None:
        """Write all of ``data``; if nobody reads any more, the job is asked to stop but its output is still taken."""
        try:
            while data:
                data = data[os.write(target, data) :]
        except OSError:
            self._lose()

    def _lose(self) -> None:
        """The control machine is gone."""
        if self._end_at == math.inf:
            self._end_at = time.monotonic() + _LOST_GRACE_S
            self._send(signal.SIGUSR1)

    def _watch_time(self, process: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        if now >= self._end_at and self._kill_at == math.inf:
            self._send(signal.SIGTERM)
            self._kill_at = now + _KILL_AFTER_S
        if now > self._kill_at:
            kill_session(process.pid)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def _start(argv: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    environment = {**os.environ, **env}
    return subprocess.Popen(
        argv,
        bufsize=0,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
    )
