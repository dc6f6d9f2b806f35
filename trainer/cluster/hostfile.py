"""The launcher's list of hosts, in the forms that launchers and backends read.

Open MPI's hostfile starts the ranks whatever carries the gradients. MLX's own backends need to be told where the ranks
listen: the ring an address and port for each, JACCL the RDMA device that leads from each host to each other.
"""

from __future__ import annotations

import ipaddress
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.cluster.inventory import Cluster, Host
from trainer.errors import ClusterError

_FIRST_PORT, _NUM_PORTS = 20000, 10000  # below what Linux and macOS hand out themselves
_LOCALHOST = "127.0.0.1"
Rendered = tuple[dict[str, str], dict[str, str]]  # files of the run's folder, environment of the ranks


@dataclass(frozen=True)
class End:
    """One end of a Thunderbolt cable: its address, and its RDMA device where that can be used."""

    host: str
    address: str = ""
    rdma_device: str = ""


@dataclass(frozen=True, kw_only=True)
class Cable:
    """A Thunderbolt cable between two hosts."""

    a: End
    b: End

    def end_at(self, host: str, other: str) -> End | None:
        """Return the end at ``host`` if the cable leads from there to ``other``."""
        ends = {self.a.host: self.a, self.b.host: self.b}
        return ends[host] if {host, other} == ends.keys() else None


Cables = Sequence[Cable]


def read_cables(state: Any) -> list[Cable]:
    """Return the cables of a node's ``state/thunderbolt.json`` that are networks of their own.

    None where there is no such file, and none in bridge mode, in which the bridge owns all cables.
    """
    if not isinstance(state, Mapping) or state.get("mode") != "cable":
        return []
    try:
        return [Cable(a=_read_end(each, "a"), b=_read_end(each, "b")) for each in state["cables"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ClusterError(f"state/thunderbolt.json is not as ./inv provision writes it: {error!r}") from error


def _read_end(cable: Mapping[str, Any], side: str) -> End:
    """Return one end of a cable; its device counts only if both ends are ready for RDMA."""
    end = cable[side]
    rdma_device = end.get("rdma_device") if cable.get("rdma") else None
    address = (end.get("address") or "").partition("/")[0]
    return End(host=end["host"], address=address, rdma_device=rdma_device or "")


def render_open_mpi(cluster: Cluster) -> str:
    """Return Open MPI's hostfile: a line ``<address> slots=<n>`` for each host, in rank order.

    Without ``slots`` Open MPI would count CPU cores, so it is always written.
    """
    return "".join(f"{host.address} slots={host.slots}\n" for host in cluster.hosts)


def render_backend(backend: str, cluster: Cluster, run_dir: Path, cables: Cables = ()) -> Rendered:
    """Return the files and the environment variables that ``backend`` needs besides Open MPI's.

    Raises `ClusterError` if it cannot work on this cluster. Runs of different names use different ports.
    """
    if backend == "mpi" or cluster.world_size == 1:
        return {}, {}
    port = _FIRST_PORT + zlib.crc32(run_dir.name.encode()) % _NUM_PORTS
    return (_render_ring if backend == "ring" else _render_jaccl)(cluster, run_dir, cables, port)


def _render_ring(cluster: Cluster, run_dir: Path, cables: Cables, port: int) -> Rendered:
    ranks = [host for host in cluster.hosts for _ in range(host.slots)]
    listening = [list(_ring_addresses(host, ranks[rank - 1], cables)) for rank, host in enumerate(ranks)]
    width = min(map(len, listening))  # every rank must have as many connections to the left as to the right
    addresses = [own[:width] for own in listening]
    endpoints = [[f"{ip}:{port + rank * width + n}" for n, ip in enumerate(own)] for rank, own in enumerate(addresses)]
    files = {
        "ring.json": json.dumps(endpoints) + "\n",
        "mlx-hostfile.json": _render_mlx("ring", [(host, own, []) for host, own in zip(ranks, addresses, strict=True)]),
    }
    return files, {"MLX_HOSTFILE": str(run_dir / "ring.json")}


def _ring_addresses(host: Host, left: Host, cables: Cables) -> Iterator[str]:
    """Yield the addresses at which a rank on ``host`` is reached by its left neighbour: those of the cables between them."""
    own = [end.address for cable in cables if (end := cable.end_at(host.name, left.name)) and end.address]
    yield from own or [_as_ip(host)]


def _render_jaccl(cluster: Cluster, run_dir: Path, cables: Cables, port: int) -> Rendered:
    hosts = cluster.hosts
    if crowded := [host.name for host in hosts if host.slots > 1]:
        raise ClusterError(f"launch.backend jaccl takes one rank a host; set slots: 1 for {', '.join(crowded)}")
    devices = [[_rdma_device(host, other, cables) for other in hosts] for host in hosts]
    missing = [
        f"{host.name} to {other.name}"
        for host, row in zip(hosts, devices, strict=True)
        for other, device in zip(hosts, row, strict=True)
        if host is not other and device is None
    ]
    if missing:
        raise ClusterError(
            f"launch.backend jaccl needs a cable with RDMA between every two hosts; there is none from {', '.join(missing)}; "
            "use ring or mpi, or provision with thunderbolt_mode: cable after `rdma_ctl enable`"
        )
    addresses = [list(_ring_addresses(host, hosts[index - 1], cables))[:1] for index, host in enumerate(hosts)]
    files = {
        "rdma.json": json.dumps(devices) + "\n",
        "mlx-hostfile.json": _render_mlx("jaccl", list(zip(hosts, addresses, devices, strict=True))),
    }
    return files, {"MLX_IBV_DEVICES": str(run_dir / "rdma.json"), "MLX_JACCL_COORDINATOR": f"{addresses[0][0]}:{port}"}


def _rdma_device(host: Host, other: Host, cables: Cables) -> str | None:
    """Return the device that leads from ``host`` to ``other``, if both ends of a cable have one."""
    for cable in cables:
        end, far = cable.end_at(host.name, other.name), cable.end_at(other.name, host.name)
        if end and far and end.rdma_device and far.rdma_device:
            return end.rdma_device
    return None


def _render_mlx(backend: str, ranks: Sequence[tuple[Host, list[str], Sequence[str | None]]]) -> str:
    """Return the hostfile that MLX's own launcher takes, to compare and to try by hand; one entry a rank."""
    hosts = [{"ssh": host.management, "ips": addresses, "rdma": list(devices)} for host, addresses, devices in ranks]
    return json.dumps({"backend": backend, "envs": [], "hosts": hosts}, indent=2) + "\n"


def _as_ip(host: Host) -> str:
    """Return the host's address as MLX takes it; raises `ClusterError` for a name, which it does not look up."""
    if host.address == "localhost":
        return _LOCALHOST
    try:
        return str(ipaddress.ip_address(host.address))
    except ValueError as error:
        text = f"{host.name}: launch.backend needs an IP address, not {host.address}; set address in the inventory"
        raise ClusterError(text) from error
