"""An all-reduce whose result is known, between two readings of every host's byte counters."""

from __future__ import annotations

import time

import mlx.core as mx

from trainer.comm.group import Comm, to_floats
from trainer.comm.traffic import tell_traffic
from trainer.events import Events

_NUM_ROUNDS = 4
_MIB = 1024 * 1024
_FLOAT_BYTES = 4


def probe(comm: Comm, events: Events, network: str, size_mib: float) -> None:
    """Reduce ``size_mib`` MiB, the ranks and rounds together, and emit a ``reduced`` event on rank 0; a collective."""
    if comm.rank == 0:
        events.emit("started", world_size=comm.size, threads=1, software={})
    length = max(1, int(size_mib * _MIB / _FLOAT_BYTES / comm.size / _NUM_ROUNDS))
    comm.all_sum(mx.ones(16))  # connections are made at the first use
    tell_traffic(comm, events, network, "start")
    comm.all_gather(None)
    started = time.perf_counter()
    totals = [comm.all_sum(mx.full(length, float(comm.rank + 1 + turn))) for turn in range(_NUM_ROUNDS)]
    seconds = time.perf_counter() - started
    right = [sum(rank + 1.0 + turn for rank in range(comm.size)) for turn in range(_NUM_ROUNDS)]
    seen = [to_floats(mx.stack([mx.min(total), mx.max(total)])) for total in totals]
    correct = comm.all_gather(seen == [[value, value] for value in right])
    tell_traffic(comm, events, network, "end")
    if comm.rank == 0:
        events.emit("reduced", world_size=comm.size, correct=all(correct), seconds=seconds)
