"""Events: how a rank tells the control machine what happens, one JSON object a line on standard output.

mpirun carries the lines, the supervisor parses them, `report` shows them and keeps them in ``metrics.jsonl``.
Everything else that appears on a rank's output is only logged. Each event has its kind, ``rank`` and ``time``; a number
may be NaN or infinite, which JSON proper does not know. The kinds, with their fields:

=========== ==========================================================================================
notice      text: something slow is about to happen, such as converting a model
progress    phase, done, total: how far a long phase without steps has come, on rank 0
prepared    model (its folder), fingerprints: what the control machine fetched and checked before the launch
fetched     model (its folder): all that `python -m trainer fetch` tells
launched    hosts (name to ranks, in rank order): the control machine's own, as it starts a run
heartbeat   host, idle_s: every second from each host; kept by the supervisor, not in metrics.jsonl
started     world_size, threads, software (versions): all ranks have connected and agree
planned     steps, epochs, rows, tokens, trainable, parameters, selective_head, packed, trunk: once, before the first step
step        step, loss, learning_rate, grad_norm, tokens, supervised, step_s, comm_s, wait_s, rank_tokens_per_s
validated   step, loss, best: the mean over all supervised tokens of the validation split
answered    when ("before" or "after"), demo and test (prompts with replies), share_in_style
traffic     when ("start" or "end" of the steps), host, network, fast (interfaces), counters: one rank on each host
reduced     world_size, correct, seconds: the result of `python -m trainer allreduce`
measured    what ("host", "job", "link", "all_reduce") and its figures: see trainer.measure.baseline
rehearsed   world_size, step_s, comm_s (lists, one number a step)
checkpoint  step, size_bytes, seconds (to write it), path: on the disk of rank 0's host
resumed     step, attempt, path: the run goes on after that step. told: events of the steps before it, which the control
            machine may not have heard; `trainer.report.record` puts them into metrics.jsonl instead
skipped     step, loss, grad_norm, ranks (whose share was not finite), samples (counted from 1): a step that was not applied
saved       what, path: an adapter is on disk
done        the summary: steps, losses, throughput, peak memory
error       message, exit_code: this rank ends
ended       exit_code, message: the control machine's own, as a run's summary is written
=========== ==========================================================================================
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

Event = dict[str, Any]
_COMMON: dict[str, tuple[type, ...]] = {"event": (str,), "rank": (int,), "time": (int, float)}
_ERROR: dict[str, tuple[type, ...]] = {"message": (str,), "exit_code": (int,)}


class Events:
    """Writes events of one rank. ``stream`` and ``clock`` (seconds since the epoch) can be given by tests."""

    def __init__(self, rank: int = 0, stream: TextIO | None = None, clock: Callable[[], float] = time.time) -> None:
        self.rank = rank
        self._stream = stream or sys.stdout
        self._clock = clock
        self._lock = threading.Lock()

    def make(self, kind: str, **fields: Any) -> Event:
        """Return an event of this rank, of now."""
        return {"event": kind, "rank": self.rank, "time": round(self._clock(), 3), **fields}

    def emit(self, kind: str, **fields: Any) -> None:
        """Make an event and write it."""
        self.write(self.make(kind, **fields))

    def write(self, event: Event) -> None:
        """Write an event and flush, so that it leaves the process even if that is its last act."""
        line = json.dumps(event)
        with self._lock:  # heartbeats come from a thread of their own
            self._stream.write(line + "\n")
            self._stream.flush()


def parse_event(line: str) -> Event | None:
    """Return the event that a line holds, or None if it is any other text, half an event included."""
    if not line.startswith('{"event": '):
        return None
    try:
        event: Event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    fields = {**_COMMON, **_ERROR} if event["event"] == "error" else _COMMON
    return event if all(type(event.get(name)) in types for name, types in fields.items()) else None
