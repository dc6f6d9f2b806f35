"""What ranks measure of the links between their hosts: sockets, all-reduces by MPI, and by MLX's ring.

One set of hosts works at a time while the others rest, so that nothing but the link is measured. Each set's first rank emits
the ``measured`` events.
"""

from __future__ import annotations

import gc
import ipaddress
import itertools
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.comm.group import Comm
from trainer.comm.ring import sweep_by_ring
from trainer.comm.sockets import QUICK_STREAM_S, STREAM_S, probe_pair
from trainer.comm.sweep import BUDGET_S, QUICK_BUDGET_S, QUICK_SIZES, SIZES, sweep
from trainer.events import Events
from trainer.interfaces import list_interfaces

_LOOPBACK = "127.0.0.1"


class LinkMeasurement:
    """Measures between all hosts of the world. All methods are collectives.

    ``network`` (CIDR) is the one that this job's MPI uses, empty on one machine; ``payload_bytes`` is what a step reduces.
    """

    def __init__(self, comm: Comm, events: Events, network: str, payload_bytes: int, *, is_quick: bool) -> None:
        self.comm, self.events, self.network = comm, events, network
        self.sizes = sorted({*(QUICK_SIZES if is_quick else SIZES), payload_bytes})
        self.budget_s = QUICK_BUDGET_S if is_quick else BUDGET_S
        self.stream_s = QUICK_STREAM_S if is_quick else STREAM_S
        self.hosts: dict[str, list[int]] = {}  # name to ranks, in rank order
        for rank, name in enumerate(comm.all_gather(socket.gethostname())):
            self.hosts.setdefault(name, []).append(rank)
        self.addresses: list[dict[str, str]] = comm.all_gather(_own_addresses())  # by rank: network to address

    def by_sockets(self) -> None:
        """Measure latency and bandwidth of every pair of hosts on every network that both are on."""
        pairs = list(itertools.combinations(self.hosts, 2))
        for number, (pair, network, addresses) in enumerate(shared := list(self._shared(pairs)), 1):
            own = self._enter([self.hosts[name][:1] for name in pair])
            figures = probe_pair(own, addresses, self.stream_s) if own else None
            if figures:
                self._tell("link", hosts=pair, network=network, addresses=addresses, **figures)
            self._leave("links", number, len(shared))

    def by_mpi(self) -> None:
        """Measure all-reduces of every set of hosts on the job's network: single hosts with several ranks, pairs, and more."""
        sets = list(self._sets())
        for number, names in enumerate(sets, 1):
            own = self._enter([self.hosts[name] for name in names])
            if own:
                found = sweep(own, self.sizes, self.budget_s)
                self._tell_sweep(own, names, self.network, "mpi", found)
            del own
            self._leave("all-reduce, mpi", number, len(sets))

    def by_ring(self) -> None:
        """Measure all-reduces over MLX's ring, of every set of hosts on every network that all of them are on."""
        ways = [(names, network) for names in self._sets() for network in self._common(names)]
        for number, (names, network) in enumerate(ways, 1):
            own = self._enter([self.hosts[name] for name in names])
            if own:
                address = _LOOPBACK if len(names) == 1 else self.addresses[self.comm.rank][network]
                found = sweep_by_ring(own, address, self.sizes, self.budget_s)
                self._tell_sweep(own, names, network, "ring", found)
            self._leave("all-reduce, ring", number, len(ways))

    def _sets(self) -> Iterator[tuple[str, ...]]:
        """Yield the sets of hosts: one with several ranks, every pair, then the first three, four and so on."""
        names = list(self.hosts)
        yield from ((name,) for name in names if len(self.hosts[name]) > 1)
        yield from itertools.combinations(names, 2)
        yield from (tuple(names[:count]) for count in range(3, len(names) + 1))

    def _shared(self, pairs: Sequence[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], str, tuple[str, str]]]:
        for pair in pairs:
            for network in self._common(pair):
                first, second = (self.addresses[self.hosts[name][0]][network] for name in pair)
                yield pair, network, (first, second)

    def _common(self, names: Sequence[str]) -> list[str]:
        """Return the networks that all of ``names`` are on with addresses of their own."""
        if len(names) == 1:
            return [""]
        known = [self.addresses[self.hosts[name][0]] for name in names]
        networks = [network for network in known[0] if all(network in each for each in known)]
        return [network for network in networks if len({each[network] for each in known}) == len(names)]

    def _enter(self, ranks: Sequence[Sequence[int]]) -> Comm | None:
        return self.comm.split([rank for own in ranks for rank in own])

    def _leave(self, phase: str, done: int, total: int) -> None:
        gc.collect()  # the smaller world must not outlive MPI
        self.comm.rest()
        if self.comm.rank == 0:
            self.events.emit("progress", phase=phase, done=done, total=total)

    def _tell_sweep(self, own: Comm, names: Sequence[str], network: str, backend: str, found: Any) -> None:
        if own.rank == 0:
            told = {"problem": found} if isinstance(found, str) else {"sweep": found}
            self._tell("all_reduce", hosts=names, network=network, backend=backend, **told)

    def _tell(self, what: str, **fields: Any) -> None:
        self.events.emit("measured", what=what, **fields)


def _own_addresses() -> dict[str, str]:
    """Return this host's IPv4 addresses by network, of interfaces that are up and lead out."""
    found: dict[str, str] = {}
    for interface in list_interfaces():
        for text in interface.addresses:
            own = ipaddress.ip_interface(text)
            if interface.is_up and not interface.is_loopback and own.version == 4 and own.network.prefixlen < 32:
                found.setdefault(str(own.network), str(own.ip))
    return found
