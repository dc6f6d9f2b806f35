"""What the hosts of a cluster say about themselves, and which link the gradients will take, before anything is sent."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.cluster.call import NotProvisionedError, ask
from trainer.cluster.hostfile import Cables, read_cables
from trainer.cluster.inventory import Cluster, Host, Network
from trainer.cluster.openmpi import OpenMPI
from trainer.cluster.ssh import on_all
from trainer.errors import ClusterError
from trainer.interfaces import Interface, find_owner

_SSH_PORT = 22
_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A provisioned host: its tools, by absolute path, and its interfaces. ``reached_at`` is where our ssh arrived."""

    host: Host
    system: str
    mpi: OpenMPI
    host_name: str
    is_root: bool
    reached_at: str
    interfaces: tuple[Interface, ...]
    link_problems: tuple[str, ...]
    cables: Any = None
    room: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A cluster of provisioned nodes, with addresses and network of the link that was chosen."""

    cluster: Cluster
    nodes: Mapping[str, Node]
    is_slow: bool = False

    @property
    def head(self) -> Node:
        """The node that runs mpirun."""
        return self.nodes[self.cluster.head.name]

    @property
    def python(self) -> PurePosixPath:
        """The Python of the environment, the same path on every node."""
        return self.cluster.root / "env" / "bin" / "python"


def muster(cluster: Cluster, allow_slow_link: bool, say: Callable[[str], None]) -> Fleet:
    """Return the fleet of ``cluster`` after asking every host at the same time.

    Raises `ClusterError` for hosts that do not answer, are not provisioned or do not fit together, and for a fast link
    that is not up on all of them unless ``allow_slow_link``, which falls back to the management network. ``say`` is told
    of that.
    """
    nodes = survey(cluster)
    _check_fit(nodes)
    if len(cluster.hosts) == 1:  # it may have no cable, or one to a host that is off: it has nobody to talk to
        return Fleet(cluster=cluster.over_management(None), nodes=nodes)
    if cables := read_cables(nodes[cluster.head.name].cables):
        cluster = along_cables(cluster, cables)
        nodes = survey(cluster, cables)
    problems = [f"  {name}: {problem}" for name, node in nodes.items() for problem in node.link_problems]
    nameless = [host.name for host in cluster.hosts if not host.fast]
    if not problems and not nameless:
        return Fleet(cluster=cluster, nodes=nodes)
    lack = f"has no cable to {cluster.head.name}, which starts all ranks" if cables else "has no address in the inventory"
    problems += [f"  {name}: {lack}" for name in nameless]
    network = find_management(nodes)
    over = f"over {network or 'the management network'}"
    if len(nameless) == len(cluster.hosts):
        say(f"no host has an address on a fast link in the inventory: the gradients go {over}")
    elif allow_slow_link:
        say("\n".join([f"the fast link is not up, so the gradients go {over}:", *problems]))
    else:
        raise ClusterError(
            "\n".join(["the fast link is not up; nothing was sent or started:", *problems])
            + f"\n./inv doctor -i {cluster.source} says how to mend it; --allow-slow-link trains {over}"
        )
    return Fleet(cluster=cluster.over_management(network), nodes=nodes, is_slow=True)


def over_management(fleet: Fleet) -> Fleet:
    """Return the fleet with its traffic on the management network, as if the fast link were down."""
    network = find_management(fleet.nodes)
    return dataclasses.replace(fleet, cluster=fleet.cluster.over_management(network), is_slow=True)


def along_cables(cluster: Cluster, cables: Cables) -> Cluster:
    """Return the cluster with the addresses by which the head reaches each host where every cable is its own network."""
    head = cluster.head.name

    def address(host: Host) -> str | None:
        ends = [end for cable in cables for other in cluster.hosts if (end := cable.end_at(host.name, other.name))]
        near = [end for cable in cables if (end := cable.end_at(host.name, head))]
        return next((end.address for end in (ends if host.name == head else near) if end.address), None)

    hosts = tuple(dataclasses.replace(host, fast=address(host)) for host in cluster.hosts)
    return dataclasses.replace(cluster, hosts=hosts)


def find_ways(host: Host, cluster: Cluster, cables: Cables) -> list[tuple[str, str, int, str]]:
    """Return the ways over the fast link that must be open from ``host``: to whom, address and port there, address here."""
    ways = []
    for other in cluster.hosts:
        port = other.port or _SSH_PORT
        if cables:
            ends = [(cable.end_at(host.name, other.name), cable.end_at(other.name, host.name)) for cable in cables]
            ways += [(other.name, far.address, port, near.address) for near, far in ends if near and far]
        elif other is not host and host.fast and other.fast:
            ways.append((other.name, other.fast, port, host.fast))
    return ways


def survey(cluster: Cluster, cables: Cables = ()) -> dict[str, Node]:
    """Return what each host says; raises `ClusterError` that names all which cannot be reached or are not provisioned."""
    bare: list[str] = []

    def look(host: Host) -> Node | None:
        ways = find_ways(host, cluster, cables)
        own = list(dict.fromkeys([*(way[3] for way in ways), *([host.fast] if host.fast else [])]))
        request = {"verb": "survey", "root": str(cluster.root), "own": own, "peers": ways}
        try:
            answer = ask(host, cluster.root, request, _TIMEOUT_S)
        except NotProvisionedError:
            answer = {"node": None}
        if answer["node"] is None:
            bare.append(host.name)
            return None
        return _make_node(host, answer)

    try:
        nodes = on_all(cluster.hosts, look)
    except ClusterError as error:
        raise ClusterError("\n".join([str(error), *_tell_bare(bare, cluster)])) from error
    if bare:
        raise ClusterError("\n".join(_tell_bare(bare, cluster)))
    return {name: node for name, node in nodes.items() if node}


def _tell_bare(bare: list[str], cluster: Cluster) -> list[str]:
    """Return the lines about hosts without our environment, in the inventory's order."""
    names = [host.name for host in cluster.hosts if host.name in bare]
    missing = f"no {cluster.root}/node.json or no Python there"
    return [f"{', '.join(names)}: not provisioned ({missing}); run ./inv provision -i {cluster.source}"] if names else []


def _make_node(host: Host, answer: Mapping[str, Any]) -> Node:
    try:
        told = answer["node"]
        mpi = OpenMPI(mpirun=Path(told["mpirun"]), libmpi=Path(told["libmpi"]), version=told["open_mpi"])
        system = told["system"]
    except (KeyError, TypeError) as error:
        raise ClusterError(f"{host.name}: its node.json lacks {error}; run ./inv provision again") from error
    return Node(
        host=host,
        system=system,
        mpi=mpi,
        host_name=answer["host_name"],
        is_root=answer["uid"] == 0,
        reached_at=answer["reached_at"],
        interfaces=tuple(Interface(**{**each, "addresses": tuple(each["addresses"])}) for each in answer["interfaces"]),
        link_problems=tuple(answer["link"]),
        cables=answer["cables"],
        room=answer.get("room", {}),
    )


def _check_fit(nodes: Mapping[str, Node]) -> None:
    """Raise `ClusterError` where nodes cannot be one MPI world."""
    problems = []
    for what, values in (
        ("Open MPI", {name: node.mpi.version for name, node in nodes.items()}),
        ("mpirun", {name: str(node.mpi.mpirun) for name, node in nodes.items()}),
    ):
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value} on {name}" for name, value in values.items())
            problems.append(f"{what} is not the same on all hosts: {told}; set open_mpi_provider for all and provision again")
    names = Counter(node.host_name for node in nodes.values())
    for name, count in names.items():
        if count > 1:
            owners = ", ".join(host for host, node in nodes.items() if node.host_name == name)
            problems.append(f"{owners}: all call themselves {name}, which MPI takes for one machine; give each a host name")
    if problems:
        raise ClusterError("\n".join(problems))


def find_management(nodes: Mapping[str, Node]) -> Network | None:
    """Return the network in which our ssh reached the nodes, as their interfaces have it; None if they are in several."""
    found = set()
    for node in nodes.values():
        owner = find_owner(node.reached_at, node.interfaces) if node.reached_at else None
        for address in owner.addresses if owner else ():
            if address.partition("/")[0] == node.reached_at:
                found.add(ipaddress.ip_network(address, strict=False))
    return found.pop() if len(found) == 1 else None
