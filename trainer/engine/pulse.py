"""A rank's sign of life, and its own watchdog: a thread that runs also while the rank waits in a collective.

Ranks whose peer is gone wait for ever: no backend notices. So each ends itself when nothing has gone on for far longer than it
should. What the whole host has to say goes to the supervisor as heartbeats, whose absence tells of a host that is gone.
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from trainer.errors import StalledError
from trainer.events import Events

BEAT_S = 1.0
_REMEMBERED = 32  # steps
_FAR_LONGER = 10.0  # times a step's usual length; and what other phases may take of ``stall_s``
_OF_STEPS = ("step", "skipped")
_BETWEEN_STEPS = ("checkpoint", "notice", "saved")  # what comes next is a step all the same


class Pulse:
    """Beats while its block lasts. ``stall_s`` is what a step may take at least; ``is_heard`` ranks tell of their host.

    ``end`` is what ends the process, ``clock`` counts seconds.
    """

    def __init__(
        self,
        events: Events,
        stall_s: float,
        *,
        is_heard: bool,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events, self._stall_s, self._is_heard = events, stall_s, is_heard
        self._end, self._clock = end, clock
        self._host = socket.gethostname()
        self._kind, self._since = "", clock()
        self._history: deque[float] = deque(maxlen=_REMEMBERED)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def note(self, kind: str) -> None:
        """Take note of progress: an event of ``kind``."""
        now = self._clock()
        if kind in _OF_STEPS and self._kind in _OF_STEPS:
            self._history.append(now - self._since)
        self._since = now
        if kind not in _BETWEEN_STEPS:
            self._kind = kind

    @property
    def limit_s(self) -> float:
        """How long may pass until the next sign of progress: a phase without steps has no history to go by."""
        if self._kind in _OF_STEPS and self._history:
            return max(self._stall_s, _FAR_LONGER * statistics.median(self._history))
        return _FAR_LONGER * self._stall_s

    def check(self) -> None:
        """End the process if it has stalled."""
        idle_s = self._clock() - self._since
        if idle_s > self.limit_s:
            message = f"rank {self._events.rank} on {self._host} has made no progress for {idle_s:.0f} s"
            self._events.emit("error", message=message, exit_code=StalledError.exit_code)
            self._end(StalledError.exit_code)

    def _beat(self) -> None:
        """Beat at once, then every second: only a host that has been heard can be missed."""
        while True:
            if self._is_heard:
                self._events.emit("heartbeat", host=self._host, idle_s=round(self._clock() - self._since, 1))
            self.check()
            if self._ended.wait(BEAT_S):
                return
