"""A run without computing: real all-reduces of the real size, between them the ranks wait as long as they would compute."""

from __future__ import annotations

import time
from collections.abc import Sequence

import mlx.core as mx

from trainer.comm.group import Comm, to_floats
from trainer.events import Events


def rehearse(comm: Comm, events: Events, seconds: Sequence[Sequence[float]], payload_bytes: int, fixed_s: float) -> None:
    """Play the schedule ``seconds`` [steps, ranks] and emit ``rehearsed`` with each step's times on rank 0; a collective.

    The first step makes the connections and is not counted.
    """
    if comm.rank == 0:
        events.emit("started", world_size=comm.size, threads=1, software={})
    vector = mx.zeros(max(1, payload_bytes // 4))
    mx.eval(vector)
    comm.all_sum(vector)
    step_s, comm_s = [], []
    for number, step in enumerate(seconds, 1):
        comm.rest()
        started = time.perf_counter()
        time.sleep(step[comm.rank] + fixed_s)
        arrived = time.perf_counter()
        comm.all_sum(vector)
        ended = time.perf_counter()
        step_s.append(ended - started)
        comm_s.append(ended - arrived)
        if comm.rank == 0:
            events.emit("progress", phase="rehearsal", done=number, total=len(seconds))
    least = [min(times) for times in zip(*comm.all_gather(comm_s), strict=True)]  # the last to arrive waits for nobody
    mean = to_floats(comm.all_sum(mx.array(step_s)) / comm.size)
    if comm.rank == 0:
        events.emit("rehearsed", world_size=comm.size, step_s=mean, comm_s=least)
