"""Judges of what only a Mac can lack. All pure, and written from recorded outputs of real Macs."""

from __future__ import annotations

import re

from trainer.cluster.cables import Graph, draw_graph, find_loops
from trainer.cluster.doctor.view import DARWIN, Fault, Quote, UnknownError, View
from trainer.errors import ClusterError

MIN_GBPS = 40
SERVICE = "Thunderbolt Bridge"
_FORMULAE = ("open-mpi", "prrte", "pmix", "hwloc")


def judge_tools(view: View) -> Fault | None:
    """Find a Mac without the Command Line Tools."""
    return (
        Fault(shown_by=("tools",), detail="git of the Command Line Tools is absent") if view.output("tools").exit_code else None
    )


def judge_brew(view: View) -> Fault | None:
    """Find a Mac without Homebrew."""
    return Fault(shown_by=("brew",), detail="/opt/homebrew/bin/brew is absent") if view.output("brew").exit_code else None


def judge_brew_owner(view: View) -> Fault | None:
    """Find a Homebrew that belongs to somebody else, who alone may install with it."""
    listed, user = view.text("brew"), view.text("user").partition("\n")[0].strip()
    if not re.fullmatch(r"[\w.@-]+", user):
        raise UnknownError("id did not tell the user's name")
    match = re.search(r"^\S+\s+\d+\s+(\S+)\s.*\s/opt/homebrew/?$", listed, re.MULTILINE)
    if not match:
        raise UnknownError("ls did not show the owner of /opt/homebrew")
    if match[1] == user:
        return None
    return Fault(shown_by=("brew", "user"), detail=f"/opt/homebrew belongs to {match[1]}", values={"login": user})


def judge_path(view: View) -> Fault | None:
    """Find an ssh session whose PATH has no mpirun: harmless for us, a trap for what is typed by hand."""
    if view.output("brew").exit_code:
        raise UnknownError("there is no Homebrew")
    said = view.output("on_path")
    return Fault(shown_by=("on_path",), detail="an ssh session finds no mpirun") if "/" not in said.text else None


def judge_brewed(view: View) -> Fault | None:
    """Find formulae of Open MPI that are older than on another host."""
    own, behind = _read_brewed(view), {}
    for other in (each for each in view.others() if each.system == DARWIN and "brewed" in each.answers.outputs):
        for name, version in _read_brewed(other).items():
            if name in own and _sort_key(own[name]) < _sort_key(version):
                behind[name] = f"{name} {own[name]} is older than {other.host.name}'s {version}"
    return Fault(shown_by=("brewed",), detail=", ".join(behind.values()), values={"old": " ".join(behind)}) if behind else None


def _read_brewed(view: View) -> dict[str, str]:
    rows = [line.split() for line in view.text("brewed").splitlines()]
    return {row[0]: row[-1] for row in rows if len(row) > 1 and row[0] in _FORMULAE}


def _sort_key(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def judge_cable(view: View) -> Fault | None:
    """Find a Mac with no other one at any of its Thunderbolt ports, or at less than Thunderbolt's speed."""
    if len(view.fleet) < 2 or not view.host.fast:
        raise UnknownError("the inventory gives it no fast address")
    graph = _draw(view, only_own=True)
    speeds = [bus.speed_gbps for bus in graph.buses if bus.peers]
    if not speeds:
        connected = [f"{bus.port} has a device that is no Mac" for bus in graph.buses if bus.is_connected]
        return Fault(quotes=(_show_buses(view, graph),), detail="; ".join(["no Mac at any Thunderbolt port", *connected]))
    slow = [f"{bus.port} runs at {bus.speed_gbps} Gb/s" for bus in graph.buses if bus.peers and bus.speed_gbps < MIN_GBPS]
    return Fault(quotes=(_show_buses(view, graph),), detail="; ".join(slow)) if slow else None


def judge_loop(view: View) -> Fault | None:
    """Find cables that form a loop while the bridge, which has no loop protection, is up."""
    graph = _draw(view)
    own = [loop for loop in find_loops(graph) if loop.pull.a.host == view.host.name]
    ends = {host for loop in own for cable in loop.cables for host in (cable.a.host, cable.b.host)}
    if not own or not all(_has_bridge(each) for name, each in view.fleet.items() if name in ends):
        return None
    told = "; ".join(f"{len(loop.cables)} cables form a loop: {', '.join(map(str, loop.cables))}" for loop in own)
    shown = _show_buses(view, _draw(view, only_own=True))
    return Fault(quotes=(shown,), detail=told, values={"pull": " and ".join(str(loop.pull) for loop in own)})


def _show_buses(view: View, graph: Graph) -> Quote:
    """Return what system_profiler says about the host's ports, a line each instead of pages of JSON."""
    peers = [
        ", ".join(peer.name for peer in bus.peers) or ("a device" if bus.is_connected else "nothing") for bus in graph.buses
    ]
    lines = [f"{bus.port}: {bus.speed_gbps} Gb/s, {peer}" for bus, peer in zip(graph.buses, peers, strict=True)]
    return view.quote("thunderbolt", *lines)


def _draw(view: View, only_own: bool = False) -> Graph:
    views = (
        [view] if only_own else [each for each in view.fleet.values() if {"thunderbolt", "ports"} <= set(each.answers.outputs)]
    )
    try:
        return draw_graph({each.host.name: (each.text("thunderbolt"), each.text("ports")) for each in views})
    except ClusterError as error:
        raise UnknownError(str(error)) from error


def _has_bridge(view: View) -> bool:
    block = re.search(r"^bridge0: flags=\w+<(.*?)>(.*?)(?=^\S|\Z)", view.text("interfaces"), re.MULTILINE | re.DOTALL)
    return bool(block) and "UP" in block[1].split(",") and "member:" in block[2] if block else False


def judge_service(view: View) -> Fault | None:
    """Find a Mac whose bridge service is missing or switched off."""
    _need_bridge_mode(view)
    names = re.findall(r"^\((\*|\d+)\) (.*?)\s*$", view.text("services"), re.MULTILINE)
    if not names:
        raise UnknownError("networksetup listed no services")
    state = {name: mark for mark, name in names}.get(SERVICE)
    if state is None:
        return Fault(shown_by=("services",), detail=f"there is no service {SERVICE}")
    if state != "*":
        return None
    return Fault(quotes=(view.quote("services", f"(*) {SERVICE}"),), detail=f"the service {SERVICE} is switched off")


def judge_bridge_address(view: View) -> Fault | None:
    """Find a bridge service on DHCP, with an address that it gave itself, or with another than the inventory's."""
    _need_bridge_mode(view)
    text = view.output("bridge").text
    if "not a recognized network service" in text or "Error:" in text:
        raise UnknownError(f"there is no service {SERVICE}")
    match = re.search(r"^IP address: (\S+)", text, re.MULTILINE)
    address = match[1] if match else "no address"
    if "Manual Configuration" in text and address == view.host.fast:
        return None
    if "Configuration" not in text:
        raise UnknownError("networksetup -getinfo did not answer as a Mac does")
    kind = "gave itself " if address.startswith("169.254.") else "has " if "Manual" in text else "is on DHCP with "
    return Fault(shown_by=("bridge",), detail=f"the bridge {kind}{address}; the inventory says {view.host.fast}")


def _need_bridge_mode(view: View) -> None:
    if view.cluster.mode != "bridge":
        raise UnknownError("thunderbolt_mode is cable: there is no bridge")
    if not view.host.fast:
        raise UnknownError("the inventory gives it no fast address")


def judge_firewall(view: View) -> Fault | None:
    """Find a Mac whose application firewall is on: it asks before a Python may be connected to."""
    match = re.search(r"State = (\d)", view.text("firewall"))
    if not match:
        raise UnknownError("socketfilterfw did not tell a state")
    return Fault(shown_by=("firewall",), detail=f"State = {match[1]}") if match[1] != "0" else None


def judge_sleep(view: View) -> Fault | None:
    """Find a Mac that goes to sleep when nobody types."""
    match = re.search(r"^\s*sleep\s+(\d+)", view.text("power"), re.MULTILINE)
    if not match:
        raise UnknownError("pmset shows no setting for sleep")
    disabled = re.search(r"SleepDisabled\s+1", view.text("power"))
    if match[1] == "0" or disabled:
        return None
    return Fault(quotes=(view.quote("power", match[0]),), detail=f"sleeps after {match[1]} minutes")


def judge_wired(view: View) -> Fault | None:
    """Find a Mac whose limit for wired GPU memory is the system's default."""
    match = re.search(r"wired_limit_mb:\s*(\d+)", view.text("wired"))
    if not match:
        raise UnknownError("sysctl shows no iogpu.wired_limit_mb")
    memory = re.search(r"hw\.memsize:\s*(\d+)", view.text("memory"))
    is_small = memory is not None and int(memory[1]) < 24 << 30  # there the role leaves the system's default
    return Fault(shown_by=("wired",), detail="iogpu.wired_limit_mb is 0") if match[1] == "0" and not is_small else None
