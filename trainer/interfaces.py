"""Network interfaces of this machine: their addresses and byte counters, on Linux and macOS.

Needs nothing but the standard library: the launcher sends this module's source to hosts that may not have the package.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # an ssh session's PATH may lack the first two
_ANSWER_TIMEOUT_S = 10


@dataclass(frozen=True)
class Interface:
    """One interface. ``addresses`` carry their prefix length: ``10.0.0.1/24``; ``master`` is the bridge it belongs to."""

    name: str
    addresses: tuple[str, ...] = ()
    is_up: bool = True
    is_loopback: bool = False
    master: str = ""

    def owns(self, address: str) -> bool:
        """Whether ``address`` is one of this interface's."""
        return any(_bare(own) == _bare(address) for own in self.addresses)


Counters = dict[str, dict[str, int]]  # interface to {"rx": bytes, "tx": bytes}


def list_interfaces() -> list[Interface]:
    """Return this machine's interfaces; none if the system's tool for that is missing."""
    if sys.platform == "darwin":
        return parse_ifconfig(_ask("ifconfig", "-a"))
    return parse_ip_addr(_ask("ip", "-j", "addr"))


def read_counters() -> Counters:
    """Return the bytes that each interface has received and sent since the machine started."""
    if sys.platform == "darwin":
        return parse_netstat(_ask("netstat", "-ibn"))
    return parse_proc_net_dev(Path("/proc/net/dev").read_text("utf-8"))


def find_owner(address: str, interfaces: Iterable[Interface]) -> Interface | None:
    """Return the interface that has ``address``."""
    return next((interface for interface in interfaces if interface.owns(address)), None)


def find_on_network(network: str, interfaces: Iterable[Interface]) -> list[str]:
    """Return the names of the interfaces with an address in ``network`` (CIDR)."""
    wanted = ipaddress.ip_network(network)
    return [i.name for i in interfaces if any(ipaddress.ip_address(_bare(own)) in wanted for own in i.addresses)]


def outward(counters: Counters, interfaces: Iterable[Interface]) -> Counters:
    """Return the counters of what leads out of the machine, each byte once: no loopback, no members of a bridge."""
    left_out = {i.name for i in interfaces if i.is_loopback or i.master}
    return {name: count for name, count in counters.items() if name not in left_out and not re.fullmatch(r"lo\d*", name)}


def count_since(before: Counters, after: Counters) -> Counters:
    """Return what was carried between two readings; an interface that came in between counts in full."""
    zero = {"rx": 0, "tx": 0}
    return {
        name: {way: max(0, count[way] - before.get(name, zero)[way]) for way in ("rx", "tx")} for name, count in after.items()
    }


def parse_ip_addr(text: str) -> list[Interface]:
    """Return the interfaces of Linux's ``ip -j addr``."""
    return [
        Interface(
            name=link["ifname"],
            addresses=tuple(f"{own['local']}/{own['prefixlen']}" for own in link.get("addr_info", ()) if "local" in own),
            is_up="UP" in link.get("flags", ()) and link.get("operstate") != "DOWN",
            is_loopback="LOOPBACK" in link.get("flags", ()),
            master=link.get("master", ""),
        )
        for link in json.loads(text or "[]")
        if "ifname" in link
    ]


def parse_ifconfig(text: str) -> list[Interface]:
    """Return the interfaces of macOS's ``ifconfig -a``."""
    blocks = re.split(r"^(?=\S+: flags=)", text, flags=re.MULTILINE)
    found = [
        (match[1], match[2].split(","), block) for block in blocks if (match := re.match(r"(\S+): flags=\w+<(.*?)>", block))
    ]
    masters = {member: name for name, _, block in found for member in re.findall(r"^\s+member: (\S+)", block, re.MULTILINE)}
    return [
        Interface(
            name=name,
            addresses=tuple(_read_inet(block)),
            is_up="UP" in flags and "status: inactive" not in block,
            is_loopback="LOOPBACK" in flags,
            master=masters.get(name, ""),
        )
        for name, flags, block in found
    ]


def _read_inet(block: str) -> list[str]:
    old = re.findall(r"^\s+inet (\S+)(?: --> \S+)? netmask (0x[0-9a-f]{8})", block, re.MULTILINE)
    new = re.findall(r"^\s+inet6 (\S+) prefixlen (\d+)", block, re.MULTILINE)
    return [f"{own}/{int(mask, 16).bit_count()}" for own, mask in old] + [f"{own.split('%')[0]}/{width}" for own, width in new]


def parse_proc_net_dev(text: str) -> Counters:
    """Return the counters of Linux's ``/proc/net/dev``."""
    rows = (line.partition(":") for line in text.splitlines() if ":" in line)
    split = {name.strip(): rest.split() for name, _, rest in rows}
    return {name: {"rx": int(fields[0]), "tx": int(fields[8])} for name, fields in split.items()}


def parse_netstat(text: str) -> Counters:
    """Return the counters of macOS's ``netstat -ibn``: of each interface the line of its link, read from its end, for the
    column of the hardware address may be empty.
    """
    rows = [line.split() for line in text.splitlines() if "<Link#" in line]
    return {row[0].rstrip("*"): {"rx": int(row[-5]), "tx": int(row[-2])} for row in rows}


def _bare(address: str) -> str:
    return address.partition("/")[0].partition("%")[0].lower()


def _ask(program: str, *arguments: str) -> str:
    path = shutil.which(program, path=_SYSTEM_PATH)
    if path is None:
        return ""
    shown = subprocess.run([path, *arguments], capture_output=True, check=False, timeout=_ANSWER_TIMEOUT_S)
    return shown.stdout.decode("utf-8", "replace")
