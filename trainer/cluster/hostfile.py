"""The launcher's list of hosts, in the forms that launchers read."""

from __future__ import annotations

from trainer.cluster.inventory import Cluster


def render_open_mpi(cluster: Cluster) -> str:
    """Return Open MPI's hostfile: a line ``<address> slots=<n>`` for each host, in rank order.

    Without ``slots`` Open MPI would count CPU cores, so it is always written.
    """
    return "".join(f"{host.address} slots={host.slots}\n" for host in cluster.hosts)
