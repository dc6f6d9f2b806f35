"""What each host's interfaces carry while the ranks work: told as events, so that nobody has to believe which link was used."""

from __future__ import annotations

import socket

from trainer.comm.group import Comm
from trainer.events import Events
from trainer.interfaces import find_on_network, list_interfaces, outward, read_counters


def tell_traffic(comm: Comm, events: Events, network: str, when: str) -> None:
    """Emit a ``traffic`` event with this host's counters, on the first rank of each host; ``when`` is "start" or "end".

    ``network`` (CIDR) is the one that the gradients should take; without one, on a single host, nothing is told.
    """
    if not network or not comm.is_first_on_host:
        return
    interfaces = list_interfaces()
    events.emit(
        "traffic",
        when=when,
        host=socket.gethostname(),
        network=network,
        fast=find_on_network(network, interfaces),
        counters=outward(read_counters(), interfaces),
    )
