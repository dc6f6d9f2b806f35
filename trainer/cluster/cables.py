"""Which Thunderbolt port of which Mac is cabled to which other: a graph, drawn from what every Mac says about itself.

Pure functions of two recorded answers of each host: ``system_profiler SPThunderboltDataType -json``, where every bus
names itself and its peer by UUID, and ``networksetup -listallhardwareports``, which maps "Thunderbolt 2" to en2. Ports
are matched by name and never by order: an M5 Max has Thunderbolt 1, 2, 3 at en1, en6, en2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainer.errors import ClusterError

RDMA_PROTOCOL = 64087  # a peer whose RDMA is switched on announces this service
Answers = tuple[str | Mapping[str, Any], str]  # of one host: SPThunderboltDataType as JSON, hardware ports as text


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A Mac at the other end of a cable, as a bus sees it; ``domain`` is the UUID of the bus over there."""

    domain: str
    name: str
    rdma: bool


@dataclass(frozen=True, kw_only=True)
class Bus:
    """One Thunderbolt bus of a Mac with its receptacle; ``device`` is empty where macOS names no interface for it.

    ``speed_gbps`` is that of the link if something is connected, otherwise what the port could do.
    """

    host: str
    domain: str
    port: str
    device: str
    speed_gbps: int
    is_connected: bool
    peers: tuple[Peer, ...]


@dataclass(frozen=True, kw_only=True)
class End:
    """Where a cable is plugged in."""

    host: str
    port: str
    device: str

    def __str__(self) -> str:
        return f"{self.host} {self.port}" + (f" ({self.device})" if self.device else "")


@dataclass(frozen=True, kw_only=True)
class Cable:
    """A cable between two Macs of the inventory; ``rdma`` holds if both ends announce it."""

    a: End
    b: End
    speed_gbps: int
    rdma: bool

    def __str__(self) -> str:
        return f"{self.a} - {self.b}, {self.speed_gbps} Gb/s"


@dataclass(frozen=True, kw_only=True)
class Stray:
    """A cable to a Mac that is not in the inventory, or that did not answer."""

    end: End
    peer: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The hosts and the cables between them; docks, drives and displays are no part of it."""

    nodes: tuple[str, ...]
    cables: tuple[Cable, ...]
    strays: tuple[Stray, ...]
    buses: tuple[Bus, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the graph as plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Cables that form a ring. Pulling ``pull``, the slowest of them, opens it and leaves all hosts connected."""

    cables: tuple[Cable, ...]
    pull: Cable


def parse_hardware_ports(text: str) -> dict[str, str]:
    """Return port name to device, such as "Thunderbolt 2" to "en2", of ``networksetup -listallhardwareports``."""
    return dict(re.findall(r"^Hardware Port: (.+?)[ \t\r]*\nDevice: (\S+)", text, re.MULTILINE))


def draw_graph(answers: Mapping[str, Answers]) -> Graph:
    """Return the graph of all hosts; raises `ClusterError` naming the host whose answer is not what a Mac says."""
    buses = [bus for host, (profile, ports) in answers.items() for bus in _read_buses(host, profile, ports)]
    owners: dict[str, Bus] = {}
    for bus in buses:
        if (owner := owners.setdefault(bus.domain, bus)) is not bus:
            raise ClusterError(f"{bus.host} {bus.port} and {owner.host} {owner.port} have the same bus UUID {bus.domain}")
    cables: dict[frozenset[str], Cable] = {}
    strays = []
    for bus in buses:
        for peer in bus.peers:
            if other := owners.get(peer.domain):
                cables.setdefault(frozenset((bus.domain, other.domain)), _join(bus, other, peer))
            else:
                strays.append(Stray(end=_end(bus), peer=peer.name))
    return Graph(nodes=tuple(answers), cables=tuple(cables.values()), strays=tuple(strays), buses=tuple(buses))


def find_loops(graph: Graph) -> list[Loop]:
    """Return every loop that must be opened before all cables may be one bridge, each with the cable to pull.

    Cables are laid one after the other, fast ones first; one whose ends are connected already closes a loop. Without
    the cables to pull no loop is left, and whoever was connected still is.
    """
    laid: list[Cable] = []
    loops = []
    for cable in sorted(graph.cables, key=lambda cable: (-cable.speed_gbps, str(cable))):
        path = _find_path(laid, cable.a.host, cable.b.host)
        if path is None:
            laid.append(cable)
        else:
            loops.append(Loop(cables=(*path, cable), pull=cable))
    return loops


def find_islands(graph: Graph) -> list[tuple[str, ...]]:
    """Return the groups of hosts that cables connect, in the hosts' order; one group means that all can reach all."""
    islands: list[tuple[str, ...]] = []
    for host in graph.nodes:
        if not any(host in island for island in islands):
            islands.append(tuple(node for node in graph.nodes if _find_path(graph.cables, host, node) is not None))
    return islands


def _find_path(cables: Iterable[Cable], start: str, goal: str) -> list[Cable] | None:
    """Return the cables of a shortest way from ``start`` to ``goal``: none if they are one host; None without a way."""
    paths: dict[str, list[Cable]] = {start: []}
    queue, cables = [start], list(cables)
    for host in queue:
        for cable in cables:
            ends = {cable.a.host, cable.b.host}
            for other in ends - {host} if host in ends else ():
                if other not in paths:
                    paths[other] = [*paths[host], cable]
                    queue.append(other)
    return paths.get(goal)


def _end(bus: Bus) -> End:
    return End(host=bus.host, port=bus.port, device=bus.device)


def _join(bus: Bus, other: Bus, peer: Peer) -> Cable:
    back = [seen.rdma for seen in other.peers if seen.domain == bus.domain]
    speeds = [end.speed_gbps for end in (bus, other) if end.is_connected] or [0]
    return Cable(a=_end(bus), b=_end(other), speed_gbps=min(speeds), rdma=peer.rdma and all(back))


def _read_buses(host: str, profile: str | Mapping[str, Any], hardware_ports: str) -> Iterator[Bus]:
    devices = parse_hardware_ports(hardware_ports)
    try:
        table = json.loads(profile) if isinstance(profile, str) else profile
        entries = [entry for entry in table["SPThunderboltDataType"] if entry.get("domain_uuid_key")]
        for entry in entries:
            yield _read_bus(host, entry, devices)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClusterError(f"{host}: system_profiler SPThunderboltDataType -json did not answer as a Mac does") from error


def _read_bus(host: str, entry: Mapping[str, Any], devices: Mapping[str, str]) -> Bus:
    tags = [tag for key, tag in sorted(entry.items()) if re.fullmatch(r"receptacle_\d+_tag", key)]
    connected = [tag for tag in tags if tag.get("receptacle_status_key") == "receptacle_connected"]
    tag: Mapping[str, Any] = next(iter(connected or tags), {})
    speed = re.search(r"(\d+)\s*Gb/s", str(tag.get("current_speed_key", "")))
    port = f"Thunderbolt {tag.get('receptacle_id_key', '?')}"
    return Bus(
        host=host,
        domain=str(entry["domain_uuid_key"]).upper(),
        port=port,
        device=devices.get(port, ""),
        speed_gbps=int(speed[1]) if speed else 0,
        is_connected=bool(connected),
        peers=tuple(_find_peers(entry)),
    )


def _find_peers(entry: Mapping[str, Any]) -> Iterator[Peer]:
    """Yield the Macs on a bus, one behind a dock too; what has no domain UUID is a dock, a drive or a display."""
    for item in entry.get("_items", ()):
        if domain := item.get("domain_uuid_key"):
            protocols = [service.get("protocol_id_key") for service in item.get("services_title", ())]
            yield Peer(domain=str(domain).upper(), name=str(item.get("_name", "a Mac")), rdma=RDMA_PROTOCOL in protocols)
        yield from _find_peers(item)
