"""From what every Mac says about itself to who is cabled to whom, with which addresses; and what speaks against it.

Filters are pure functions of plain data, so that each is tested without Ansible. The graph itself is the trainer's:
provisioning, doctor and launcher must not disagree about a cable.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # Ansible may run from an environment without the trainer

from ansible.errors import AnsibleFilterError

from trainer.cluster.cables import Cable, End, Graph, draw_graph, find_islands, find_loops, parse_hardware_ports
from trainer.errors import ClusterError

SLOWEST_GBPS = 40  # Thunderbolt 3; a cable that carries less is a USB cable, or a broken one
Table = dict[str, Any]


def map_cables(answers: Mapping[str, Sequence[Any]], mode: str, network: str, addresses: Mapping[str, str]) -> Table:
    """Return the content of thunderbolt.json: every cable with its two ends, their addresses and RDMA devices.

    ``answers`` maps a host to its SPThunderboltDataType, its hardware ports and its list of RDMA devices;
    ``addresses`` a host to the address of its bridge. In cable mode each cable gets a /30 of ``network``.
    Raises `AnsibleFilterError` for answers that no Mac gives and a network with too little room.
    """
    graph = _draw(answers)
    rdma = {host: answer[2].split() for host, answer in answers.items()}
    cables = []
    for index, cable in enumerate(_in_order(graph)):
        pair = (
            _cable_addresses(network, index) if mode == "cable" else (addresses.get(cable.a.host), addresses.get(cable.b.host))
        )
        a, b = (_describe(end, address, rdma) for end, address in zip((cable.a, cable.b), pair, strict=True))
        ready = cable.rdma and bool(a["rdma_device"] and b["rdma_device"])
        cables.append({"a": a, "b": b, "speed_gbps": cable.speed_gbps, "rdma": ready})
    strays = [
        {"host": stray.end.host, "port": stray.end.port, "device": stray.end.device, "peer": stray.peer}
        for stray in graph.strays
    ]
    return {"version": 1, "mode": mode, "network": network, "hosts": list(graph.nodes), "cables": cables, "strays": strays}


def find_cable_problems(
    answers: Mapping[str, Sequence[Any]], mode: str, network: str, addresses: Mapping[str, str], others: Sequence[str] = ()
) -> list[str]:
    """Return what forbids to configure these cables, each with what to do; ``others`` are hosts that are no Macs."""
    graph = _draw(answers)
    problems = [*_find_bad_cables(graph), *_find_lonely(graph, others)]
    if mode == "bridge":
        return [*problems, *_find_storms(graph), *_find_outsiders(network, addresses)]
    return [*problems, *_find_strange_addresses(map_cables(answers, mode, network, addresses), addresses)]


def list_ends(table: Mapping[str, Any], host: str) -> list[Table]:
    """Return the ends of cables that are plugged into ``host``."""
    ends = [cable[side] for cable in table["cables"] for side in ("a", "b")]
    return [dict(end) for end in ends if end["host"] == host]


def _draw(answers: Mapping[str, Sequence[Any]]) -> Graph:
    try:
        return draw_graph({host: (answer[0], answer[1]) for host, answer in answers.items()})
    except ClusterError as error:
        raise AnsibleFilterError(str(error)) from error


def _in_order(graph: Graph) -> list[Cable]:
    """Return the cables in the hosts' order, each from the earlier host to the later: a second look numbers them alike."""
    rank = {host: index for index, host in enumerate(graph.nodes)}

    def place(end: End) -> tuple[int, int, str]:
        number = end.port.rsplit(" ", 1)[-1]
        return rank[end.host], int(number) if number.isdigit() else 0, end.port

    turned = [replace(cable, a=min(cable.a, cable.b, key=place), b=max(cable.a, cable.b, key=place)) for cable in graph.cables]
    return sorted(turned, key=lambda cable: (place(cable.a), place(cable.b)))


def _cable_addresses(network: str, index: int) -> tuple[str, str]:
    """Return the two addresses of cable ``index``: 10.99.<index>.1 and .2 in a /16, one /30 after the other in a small one."""
    try:
        space = ipaddress.IPv4Network(network)
    except ValueError as error:
        raise AnsibleFilterError(f"thunderbolt_network: {network} is not an IPv4 network: {error}") from error
    stride = 256 if space.prefixlen <= 20 else 4
    if (index + 1) * stride > space.num_addresses:
        raise AnsibleFilterError(f"thunderbolt_network: {network} has no room for {index + 1} cables; 10.99.0.0/16 has")
    first = space.network_address + index * stride
    return str(first + 1), str(first + 2)


def _describe(end: End, address: str | None, rdma: Mapping[str, Sequence[str]]) -> Table:
    device = f"rdma_{end.device}"
    rdma_device = device if end.device and device in rdma[end.host] else None
    return {"host": end.host, "port": end.port, "device": end.device, "address": address, "rdma_device": rdma_device}


def _find_bad_cables(graph: Graph) -> Iterator[str]:
    for cable in _in_order(graph):
        if cable.speed_gbps < SLOWEST_GBPS:
            yield f"{cable}: slower than Thunderbolt; use a Thunderbolt 4 or 5 cable, at both ends in a Thunderbolt port"
        if cable.a.host == cable.b.host:
            yield f"{cable}: both ends are in the same Mac; plug one end into another Mac"
        for end in (cable.a, cable.b):
            if not end.device:
                yield f"{end}: no network interface for this port (networksetup -listallhardwareports); use another port"


def _find_lonely(graph: Graph, others: Sequence[str]) -> Iterator[str]:
    """Yield the hosts that no cable reaches. A cable to a machine that is no Mac of ours counts if the inventory has one."""
    cabled = {end.host for cable in graph.cables for end in (cable.a, cable.b)}
    strays = {stray.end.host: stray for stray in graph.strays}
    lonely = [host for host in graph.nodes if host not in cabled]
    for host in lonely if len(graph.nodes) + len(others) > 1 else ():
        if host not in strays:
            yield f"{host}: no Thunderbolt cable to another host is seen; plug one in, or take 'address' off this host"
        elif not others:
            stray = strays[host]
            yield f"{stray.end}: the cable leads to {stray.peer!r}, which is not one of the inventory's hosts with an address"
    islands = [", ".join(island) for island in find_islands(graph) if set(island) & cabled]
    if len(islands) > 1 and not others:
        yield f"the cables leave the hosts in separate groups: {'; '.join(islands)}; add a cable between them"


def _find_storms(graph: Graph) -> Iterator[str]:
    for loop in find_loops(graph):
        if loop.pull.a.host != loop.pull.b.host:
            ring = "; ".join(str(cable) for cable in loop.cables)
            yield (
                f"the cables form a loop, which the Thunderbolt Bridge cannot take: {ring}. Pull the cable {loop.pull},"
                " or set thunderbolt_mode: cable"
            )


def _find_outsiders(network: str, addresses: Mapping[str, str]) -> Iterator[str]:
    for host, address in addresses.items():
        try:
            is_inside = ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network)
        except ValueError as error:
            yield f"{host}: address {address} in thunderbolt_network {network}: {error}"
        else:
            if not is_inside:
                yield f"{host}: address {address} is outside thunderbolt_network {network}; a bridge is one subnet"


def _find_strange_addresses(table: Mapping[str, Any], addresses: Mapping[str, str]) -> Iterator[str]:
    for host, address in addresses.items():
        own = [end["address"] for end in list_ends(table, host)]
        if own and address not in own:
            yield f"{host}: address {address} is none of its cables' ({', '.join(own)}); use one of them, or leave it out"


def list_addresses(table: Mapping[str, Any], host: str, neighbour: str | None = None) -> list[str]:
    """Return the addresses of ``host`` in thunderbolt.json, each once; only those of cables to ``neighbour`` if it is given."""
    found = []
    for cable in table["cables"]:
        names = {cable["a"]["host"], cable["b"]["host"]}
        if neighbour is None or names == {host, neighbour}:
            found += [cable[side]["address"] for side in ("a", "b") if cable[side]["host"] == host]
    return list(dict.fromkeys(filter(None, found)))


def list_port_devices(hardware_ports: str) -> list[str]:
    """Return the interfaces of the Thunderbolt ports, in the ports' order, of ``networksetup -listallhardwareports``."""
    ports = parse_hardware_ports(hardware_ports)
    return [device for name, device in sorted(ports.items()) if re.fullmatch(r"Thunderbolt \d+", name)]


def find_bridge_device(hardware_ports: str) -> str:
    """Return the interface of the Thunderbolt Bridge; bridge0, as macOS names it, where the bridge was deleted."""
    return parse_hardware_ports(hardware_ports).get("Thunderbolt Bridge", "bridge0")


class FilterModule:
    """Filters of the role."""

    def filters(self) -> Table:
        """Return the filters by name."""
        return {
            "thunderbolt_map": map_cables,
            "thunderbolt_problems": find_cable_problems,
            "thunderbolt_ends": list_ends,
            "thunderbolt_addresses": list_addresses,
            "thunderbolt_devices": list_port_devices,
            "thunderbolt_bridge": find_bridge_device,
        }
