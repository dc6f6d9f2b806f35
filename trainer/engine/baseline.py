"""What the ranks of a baseline do: their hosts first, then the links between them."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.cluster.plan import RunPlan
from trainer.comm.group import Comm
from trainer.comm.links import LinkMeasurement
from trainer.engine.measure import HostMeasurement
from trainer.events import Events


def measure(
    plan: RunPlan, comm: Comm, events: Events, threads: int, what: Sequence[str], payload_bytes: int, *, is_quick: bool
) -> None:
    """Measure ``what`` (of "hosts", "links", "mpi", "ring") and emit ``measured`` events; a collective."""
    if "hosts" in what:
        payload_bytes = HostMeasurement(plan, comm, events, is_quick=is_quick).execute(threads)
    elif comm.rank == 0:
        events.emit("started", world_size=comm.size, threads=threads, software={})
    if comm.size == 1:
        return
    links = LinkMeasurement(comm, events, plan.network, payload_bytes, is_quick=is_quick)
    if "links" in what:
        links.by_sockets()
    if "mpi" in what:
        links.by_mpi()
    if "ring" in what:
        links.by_ring()
