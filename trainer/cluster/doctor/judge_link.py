"""Judges of the fast link as one host sees it: its interface, the routes, and what carried the bytes. All pure."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

from trainer.cluster.doctor.script import COUNTED_BLOCKS, ROUTES
from trainer.cluster.doctor.view import DARWIN, Fault, Quote, UnknownError, View
from trainer.interfaces import Interface, count_since, find_on_network, outward, parse_netstat, parse_proc_net_dev


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
    shown = [each.name for each in view.interfaces() if not each.is_loopback]
    return Fault(quotes=(_show_interfaces(view, *shown),), detail=detail)


def judge_subnet(view: View) -> Fault | None:
    """Find a fast address whose interface has another idea of the network than the inventory."""
    interface, network = _need_interface(view), view.cluster.network
    own = [address for address in interface.addresses if address.partition("/")[0] == view.host.fast]
    if network is None or any(ipaddress.ip_network(address, strict=False) == network for address in own):
        return None
    shown = _show_interfaces(view, interface.name)
    return Fault(quotes=(shown,), detail=f"{interface.name} has {own[0]}, the network is {network}")


def judge_down(view: View) -> Fault | None:
    """Find a fast interface that is switched off."""
    interface = _need_interface(view)
    if "UP" in _read_flags(view, interface):
        return None
    return Fault(quotes=(_show_interfaces(view, interface.name),), detail=f"{interface.name} is down")


def judge_carrier(view: View) -> Fault | None:
    """Find a fast interface that is on, with no cable or nobody at its other end."""
    interface = _need_interface(view)
    flags = _read_flags(view, interface)
    if "UP" not in flags:
        raise UnknownError(f"{interface.name} is switched off")
    if "NO-CARRIER" not in flags:
        return None
    return Fault(quotes=(_show_interfaces(view, interface.name),), detail=f"{interface.name} has no carrier")


def _show_interfaces(view: View, *names: str) -> Quote:
    """Return what was said about these interfaces, as far as it matters: a line each of Linux's JSON, some of a Mac's."""
    if view.system == DARWIN:
        blocks = re.findall(r"^(\S+)(: flags=.*\n?(?:^\s.*\n?)*)", view.text("interfaces"), re.MULTILINE)
        rows = [row for name, block in blocks if name in names for row in f"{name}{block}".splitlines()]
        return view.quote("interfaces", *(row for row in rows if re.search(r"flags=|inet |status|member", row)))
    addresses = {interface.name: interface.addresses for interface in view.interfaces()}
    links = [link for link in _list_links(view) if link["ifname"] in names]
    shown = [{"ifname": link["ifname"], "flags": link.get("flags"), "operstate": link.get("operstate")} for link in links]
    return view.quote("interfaces", *(json.dumps({**each, "addr_info": addresses[each["ifname"]]}) for each in shown))


def _read_flags(view: View, interface: Interface) -> set[str]:
    """Return the flags of an interface in Linux's words; those of a Mac are translated."""
    if view.system == DARWIN:
        block = re.search(
            rf"^{re.escape(interface.name)}: flags=\w+<(.*?)>(.*?)(?=^\S|\Z)", view.text("interfaces"), re.M | re.S
        )
        if not block:
            raise UnknownError(f"ifconfig does not show {interface.name}")
        return {*block[1].split(","), *(["NO-CARRIER"] if "status: inactive" in block[2] else [])}
    return {str(flag) for link in _list_links(view) if link["ifname"] == interface.name for flag in link.get("flags", ())}


def _list_links(view: View) -> list[dict[str, Any]]:
    return [link for link in view.json("interfaces") if isinstance(link, dict) and "ifname" in link]


def judge_route(view: View) -> Fault | None:
    """Find a peer whose fast address is reached over another interface than ours."""
    interface = _need_interface(view)
    if "UP" not in _read_flags(view, interface):
        raise UnknownError(f"{interface.name} is switched off")
    for name, (_, said) in read_ways(view, "route").items():
        peer = view.fleet[name].host.fast if name in view.fleet else ""
        chosen = re.search(r"\binterface: (\S+)" if view.system == DARWIN else r"\bdev (\S+)", said)
        if chosen and chosen[1] != interface.name:
            detail = f"to {peer} ({name}) over {chosen[1]} instead of {interface.name}"
            quote = (ROUTES[view.system].format(address=peer), said.replace(" | ", "\n"))
            return Fault(quotes=(quote,), detail=detail, values=_undo_route(view, str(peer), said, chosen[1]))
    return None


def _undo_route(view: View, peer: str, said: str, interface: str) -> dict[str, str]:
    if view.system == DARWIN:
        return {"undo": f"sudo /sbin/route -n delete {peer}"}
    routes = [words.split()[0] for words in said.split(" | ")[1:] if re.search(rf"\bdev {re.escape(interface)}\b", words)]
    exact = max((route for route in routes if route != "default"), key=_width, default=peer)
    return {"undo": f"sudo ip route del {exact} dev {interface}"}


def _width(route: str) -> int:
    return int(prefix) if (prefix := route.partition("/")[2]).isdigit() else 128


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
    shown = view.quote("counters", *(f"{name}: {count} bytes more sent" for name, count in sent.items()))
    return Fault(quotes=(shown,), detail=f"of {wanted} bytes {sent[busiest]} left by {busiest}, not by {interface.name}")


def _need_fast(view: View) -> None:
    if not view.host.fast:
        raise UnknownError("the inventory gives it no fast address")


def _need_interface(view: View) -> Interface:
    _need_fast(view)
    interface = view.fast_interface()
    if interface is None:
        raise UnknownError("it has no fast address")
    return interface


def read_ways(view: View, key: str) -> dict[str, tuple[int, str]]:
    """Return peer to exit code and words of a command that was run for every peer."""
    rows = [line.split(None, 2) for line in view.text(key).splitlines()]
    return {row[0]: (int(row[1]), (row[2:] or [""])[0]) for row in rows if len(row) > 1 and is_code(row[1])}


def is_code(text: str) -> bool:
    """Whether a word is an exit code."""
    return bool(re.fullmatch(r"\d{1,3}", text))
