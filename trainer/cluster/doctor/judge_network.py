"""Judges of the ways between hosts: the fast interface, routes, ssh from node to node, what carried the bytes. All pure."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

from trainer.cluster.doctor.judge_reach import classify
from trainer.cluster.doctor.script import COUNTED_BLOCKS
from trainer.cluster.doctor.view import DARWIN, Fault, UnknownError, View
from trainer.interfaces import Interface, count_since, find_on_network, outward, parse_netstat, parse_proc_net_dev

_KEY_TROUBLE = ("key", "changed", "unpinned")
_OURS_IS_WRONG = re.compile(r"Bad owner or permissions|Bad configuration option|terminating, \d+ bad|no such identity")


def judge_address(view: View) -> Fault | None:
    """Find a host none of whose interfaces has its fast address."""
    _need_fast(view)
    if view.fast_interface():
        return None
    network = str(view.cluster.network or "")
    instead = find_on_network(network, view.interfaces()) if network else []
    others = [each for each in view.interfaces() if each.name in instead]
    told = ", ".join(f"{each.name} has {' '.join(each.addresses)}" for each in others)
    detail = f"no interface has {view.host.fast}" + (f"; {told}" if told else "")
    return Fault(shown_by=("interfaces",), detail=detail)


def judge_subnet(view: View) -> Fault | None:
    """Find a fast address whose interface has another idea of the network than the inventory."""
    interface, network = _need_interface(view), view.cluster.network
    own = [address for address in interface.addresses if address.partition("/")[0] == view.host.fast]
    if network is None or any(ipaddress.ip_network(address, strict=False) == network for address in own):
        return None
    return Fault(shown_by=("interfaces",), detail=f"{interface.name} has {own[0]}, the network is {network}")


def judge_down(view: View) -> Fault | None:
    """Find a fast interface that is switched off."""
    interface = _need_interface(view)
    if "UP" in _read_flags(view, interface):
        return None
    return Fault(shown_by=("interfaces",), detail=f"{interface.name} is down", values={"interface": interface.name})


def judge_carrier(view: View) -> Fault | None:
    """Find a fast interface that is on, with no cable or nobody at its other end."""
    interface = _need_interface(view)
    flags = _read_flags(view, interface)
    if "UP" not in flags:
        raise UnknownError(f"{interface.name} is switched off")
    return Fault(shown_by=("interfaces",), detail=f"{interface.name} has no carrier") if "NO-CARRIER" in flags else None


def _read_flags(view: View, interface: Interface) -> set[str]:
    """Return the flags of an interface in Linux's words; those of a Mac are translated."""
    if view.system == DARWIN:
        block = re.search(
            rf"^{re.escape(interface.name)}: flags=\w+<(.*?)>(.*?)(?=^\S|\Z)", view.text("interfaces"), re.M | re.S
        )
        if not block:
            raise UnknownError(f"ifconfig does not show {interface.name}")
        return {*block[1].split(","), *(["NO-CARRIER"] if "status: inactive" in block[2] else [])}
    links = view.json("interfaces")
    return {flag for link in links if link.get("ifname") == interface.name for flag in link.get("flags", ())}


def judge_route(view: View) -> Fault | None:
    """Find a peer whose fast address is reached over another interface than ours."""
    interface = _need_interface(view)
    if "UP" not in _read_flags(view, interface):
        raise UnknownError(f"{interface.name} is switched off")
    for name, (_, said) in _read_ways(view, "route").items():
        peer = view.fleet[name].host.fast if name in view.fleet else ""
        chosen = re.search(r"\binterface: (\S+)" if view.system == DARWIN else r"\bdev (\S+)", said)
        if chosen and chosen[1] != interface.name:
            detail = f"to {peer} ({name}) over {chosen[1]} instead of {interface.name}"
            return Fault(shown_by=("route",), detail=detail, values=_undo_route(view, str(peer), said, chosen[1]))
    return None


def _undo_route(view: View, peer: str, said: str, interface: str) -> dict[str, str]:
    if view.system == DARWIN:
        return {"undo": f"sudo /sbin/route -n delete {peer}"}
    routes = [words.split()[0] for words in said.split(" | ")[1:] if re.search(rf"\bdev {re.escape(interface)}\b", words)]
    exact = max((route for route in routes if route != "default"), key=_width, default=peer)
    return {"undo": f"sudo ip route del {exact} dev {interface}"}


def _width(route: str) -> int:
    return int(prefix) if (prefix := route.partition("/")[2]).isdigit() else 128


def judge_mesh(view: View) -> Fault | None:
    """Find a node that cannot log in to another, or to itself, without a question."""
    output = view.output("mesh")
    if output.exit_code:
        return Fault(shown_by=("mesh",), detail="our part of ~/.ssh/config is not there")
    refused = [
        f"{address} ({name}): {said}"
        for name, address, code, said in _read_mesh(view)
        if code and (classify(said) in _KEY_TROUBLE or _OURS_IS_WRONG.search(said))
    ]
    return (
        Fault(shown_by=("mesh",), detail=f"{len(refused)} of {len(_read_mesh(view))} ways; {refused[0]}") if refused else None
    )


def judge_peers(view: View) -> Fault | None:
    """Find a node from which another one cannot be reached at all, while both answer us."""
    if view.output("mesh").exit_code:
        raise UnknownError("our part of ~/.ssh/config is not there")
    for name, address, code, said in _read_mesh(view):
        peer = view.fleet.get(name)
        is_explained = (
            peer is None or not peer.is_reached or (address == peer.host.fast and not (_is_up(peer) and _is_up(view)))
        )
        has_key_trouble = classify(said) in _KEY_TROUBLE or _OURS_IS_WRONG.search(said)
        if code and not is_explained and not has_key_trouble:
            return Fault(shown_by=("mesh",), detail=f"{address} ({name}): {said}")
    return None


def _read_mesh(view: View) -> list[tuple[str, str, int, str]]:
    rows = [line.split(None, 3) for line in view.text("mesh").splitlines()]
    return [(row[0], row[1], int(row[2]), (row[3:] or [""])[0].strip()) for row in rows if len(row) > 2 and row[2].isdigit()]


def _is_up(view: View) -> bool:
    try:
        return (interface := view.fast_interface()) is not None and interface.is_up
    except UnknownError:
        return False


def judge_local_network(view: View) -> Fault | None:
    """Find a Python that macOS does not let onto the local network, while Apple's own nc gets through."""
    reached = {name for name, (code, _) in _read_ways(view, "nc").items() if code == 0}
    denied = [name for name, way in _read_connect(view).items() if way.get("ssh") == "EHOSTUNREACH" and name in reached]
    if not denied:
        return None
    return Fault(shown_by=("connect", "nc"), detail=f"Python: no route to {', '.join(denied)}; nc connects")


def judge_filter(view: View) -> Fault | None:
    """Find a host that throws away what the others send to its free ports over the fast link."""
    if not view.host.fast or not view.others():
        return None
    seen = 0
    for other in view.others():
        if "connect" not in other.answers.outputs:
            continue
        try:
            way = _read_connect(other).get(view.host.name, {})
        except UnknownError:
            continue
        seen += way.get("other") in ("ECONNREFUSED", "open")
        if way.get("other") == "silence":
            values = {"network": str(view.cluster.network or other.host.fast), "allow": _allow(view)}
            return Fault(detail=f"{other.host.name} gets no answer from a free port of {view.host.fast}", values=values)
    if not seen:
        raise UnknownError("no other host reaches it over the fast link")
    return None


def _allow(view: View) -> str:
    """Return the command that lets the fast network in, for the firewall that is installed."""
    network = view.cluster.network or view.host.fast
    output = view.answers.outputs.get("filters")
    path = (output.text.split() if output else [""])[0:1]
    name = path[0].rpartition("/")[2] if path else ""
    return {
        "ufw": f"sudo ufw allow from {network}",
        "firewall-cmd": f"sudo firewall-cmd --permanent --zone=trusted --add-source={network} && sudo firewall-cmd --reload",
    }.get(name, f"sudo iptables -I INPUT -s {network} -j ACCEPT")


def judge_counters(view: View) -> Fault | None:
    """Find bytes for a fast address that another interface carried: MPI would go that way too."""
    interface = _need_interface(view)
    readings = view.text("counters").split("\n----\n")
    if len(readings) != 2:
        raise UnknownError("the counters were not read twice")
    read = parse_netstat if view.system == DARWIN else parse_proc_net_dev
    try:
        moved = outward(count_since(read(readings[0]), read(readings[1])), view.interfaces())
    except (ValueError, IndexError) as error:
        raise UnknownError("the counters are not readable") from error
    sent = {name: count["tx"] for name, count in moved.items()}
    wanted = COUNTED_BLOCKS * 65536
    if sent.get(interface.name, 0) >= wanted // 2:
        return None
    busiest = max(sent, key=lambda name: sent[name], default="")
    if sent.get(busiest, 0) < wanted // 2:
        raise UnknownError("no interface counted what was sent")
    return Fault(shown_by=("route",), detail=f"of {wanted} bytes {sent[busiest]} left by {busiest}, not by {interface.name}")


def _need_fast(view: View) -> None:
    if not view.host.fast:
        raise UnknownError("the inventory gives it no fast address")


def _need_interface(view: View) -> Interface:
    _need_fast(view)
    interface = view.fast_interface()
    if interface is None:
        raise UnknownError("it has no fast address")
    return interface


def _read_ways(view: View, key: str) -> dict[str, tuple[int, str]]:
    rows = [line.split(None, 2) for line in view.text(key).splitlines()]
    return {row[0]: (int(row[1]), (row[2:] or [""])[0]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _read_connect(view: View) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads((view.text("connect").strip().splitlines() or [""])[-1])
    except ValueError as error:
        raise UnknownError("the attempt to connect did not answer as it should") from error
    return {name: way for name, way in table.items() if isinstance(way, dict)} if isinstance(table, dict) else {}
