"""Judges of what passes between hosts: ssh from node to node, Python on the local network, packet filters. All pure."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from trainer.cluster.doctor.judge_link import is_code, read_ways
from trainer.cluster.doctor.judge_reach import classify
from trainer.cluster.doctor.onhost import FREE_PORT, connect_once
from trainer.cluster.doctor.script import CONFIG, NETCAT, OPTIONS
from trainer.cluster.doctor.view import Fault, Quote, UnknownError, View

_KEY_TROUBLE = ("key", "changed", "unpinned")
_OURS_IS_WRONG = re.compile(r"Bad owner or permissions|Bad configuration option|terminating, \d+ bad|no such identity")


def judge_mesh(view: View) -> Fault | None:
    """Find a node that cannot log in to another, or to itself, without a question."""
    output = view.output("mesh")
    if output.exit_code:
        return Fault(quotes=((CONFIG, output.text),), detail="our part of ~/.ssh/config is not there")
    ways = _read_mesh(view)
    refused = [way for way in ways if way.code and way.has_key_trouble]
    if not refused:
        return None
    return Fault(quotes=(refused[0].quote,), detail=f"{len(refused)} of {len(ways)} ways; {refused[0]}")


def judge_peers(view: View) -> Fault | None:
    """Find a node from which another one cannot be reached at all, while both answer us."""
    if view.output("mesh").exit_code:
        raise UnknownError("our part of ~/.ssh/config is not there")
    for way in (way for way in _read_mesh(view) if way.code and not way.has_key_trouble):
        peer = view.fleet.get(way.name)
        if peer and peer.is_reached and (way.address != peer.host.fast or (_is_up(peer) and _is_up(view))):
            return Fault(quotes=(way.quote,), detail=str(way))
    return None


@dataclass(frozen=True)
class _Way:
    """How one host's ssh to another one's address ended, and what it said."""

    name: str
    address: str
    code: int
    said: str

    def __str__(self) -> str:
        return f"{self.address} ({self.name}): {self.said}"

    @property
    def has_key_trouble(self) -> bool:
        return classify(self.said) in _KEY_TROUBLE or bool(_OURS_IS_WRONG.search(self.said))

    @property
    def quote(self) -> Quote:
        return f"ssh {OPTIONS} {self.address} true", self.said


def _read_mesh(view: View) -> list[_Way]:
    rows = [line.split(None, 3) for line in view.text("mesh").splitlines()]
    return [_Way(row[0], row[1], int(row[2]), " ".join(row[3:]).strip()) for row in rows if len(row) > 2 and is_code(row[2])]


def _is_up(view: View) -> bool:
    try:
        return (interface := view.fast_interface()) is not None and interface.is_up
    except UnknownError:
        return False


def judge_local_network(view: View) -> Fault | None:
    """Find a Python that macOS does not let onto the local network, while Apple's own nc gets through."""
    reached = {name for name, (code, _) in read_ways(view, "nc").items() if code == 0}
    denied = [name for name, way in _read_connect(view).items() if way.get("ssh") == "EHOSTUNREACH" and name in reached]
    if not denied:
        return None
    peer = view.fleet[denied[0]].host if denied[0] in view.fleet else view.host
    port = peer.port or 22
    quotes = (
        (_connect_once(view, peer.fast, port), "OSError: [Errno 65] No route to host"),
        (NETCAT.format(address=peer.fast, port=port), f"(connected) {read_ways(view, 'nc')[denied[0]][1]}"),
    )
    return Fault(quotes=quotes, detail=f"Python: no route to {', '.join(denied)}; nc connects")


def _connect_once(view: View, address: str | None, port: int) -> str:
    return f"{view.cluster.root}/env/bin/python -I -c {shlex.quote(connect_once(str(address), port))}"


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
            detail = f"{other.host.name} gets no answer from a free port of {view.host.fast}"
            tried = _connect_once(other, view.host.fast, FREE_PORT)
            return Fault(quotes=((f"on {other.host.name}: {tried}", "TimeoutError: timed out"),), detail=detail, values=values)
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


def _read_connect(view: View) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads((view.text("connect").strip().splitlines() or [""])[-1])
    except (ValueError, RecursionError) as error:
        raise UnknownError("the attempt to connect did not answer as it should") from error
    return {name: way for name, way in table.items() if isinstance(way, dict)} if isinstance(table, dict) else {}
