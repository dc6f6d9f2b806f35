"""The switch: a network namespace with one bridge for the slow links and one for the fast ones."""

from __future__ import annotations

import os
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.system import LabError, find_tool, namespace, run

Link = Literal["slow", "fast"]
BRIDGES: dict[Link, str] = {"slow": "wifi", "fast": "tb"}
INTERFACES: dict[Link, str] = {"slow": "wifi0", "fast": "tb0"}
SHAPE = "root tbf rate 100mbit burst 64kb latency 50ms"


@dataclass(frozen=True, kw_only=True)
class Switch:
    """The switch of a laboratory, which lives as long as its process: with it go all cables."""

    number: int
    pid: int

    @property
    def uplink(self) -> str:
        """Return the name of the interface by which this machine is on the management network."""
        return uplink_of(self.number)

    def wire_up(self) -> None:
        """Make both bridges and connect this machine with the slow one."""
        self._ip(
            "link set lo up",
            *(f"link add {bridge} type bridge" for bridge in BRIDGES.values()),
            *(f"link set {bridge} up" for bridge in BRIDGES.values()),
            f"link add control type veth peer name {self.uplink} netns {os.getpid()}",
            "link set control master wifi up",
        )
        run(["ip", "address", "add", f"10.77.{self.number}.1/24", "dev", self.uplink])
        run(["ip", "link", "set", self.uplink, "up"])

    def connect(self, host: str, pid: int, fast: bool) -> None:
        """Lay a host's two cables; the fast one is plugged in only where asked for."""
        for index, (link, bridge) in enumerate(BRIDGES.items()):
            port = f"{bridge}-{host}"
            digits = f"02{self.number:02x}{zlib.crc32(host.encode()):08x}"[:10] + f"{index:02x}"
            ether = ":".join(digits[place : place + 2] for place in range(0, 12, 2))  # a host that starts again keeps it
            self._ip(
                f"link add {port} type veth peer name {INTERFACES[link]} address {ether} netns {pid}",
                f"link set {port} master {bridge} {'up' if link == 'slow' or fast else 'down'}",
            )
        self._enter(f"tc qdisc add dev wifi-{host} {SHAPE}".split())

    def plug(self, host: str, link: Link, connected: bool) -> None:
        """Pull a host's cable out of the switch, or put it in: the host's carrier goes and comes."""
        if link not in BRIDGES:
            raise LabError(f"{link!r} is no link; there are slow and fast")
        self._ip(f"link set {BRIDGES[link]}-{host} {'up' if connected else 'down'}")

    def is_plugged(self, host: str, link: Link) -> bool:
        """Tell whether a host's cable is in the switch."""
        said = self._enter(["ip", "-brief", "link", "show", f"{BRIDGES[link]}-{host}"])
        return "UP" in said.partition("<")[2].partition(">")[0].split(",")

    def _ip(self, *commands: str) -> None:
        self._enter(["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")

    def _enter(self, argv: list[str], stdin: str | None = None) -> str:
        if namespace(self.pid, "net") in (None, namespace("self", "net")):
            raise LabError("the laboratory's switch is gone; take the laboratory down and up again")
        return run(["nsenter", "-t", str(self.pid), "-n", *argv], stdin=stdin)


def uplink_of(number: int) -> str:
    """Return the name of the interface by which this machine is on the management network of laboratory ``number``."""
    return f"flotilla{number}"


def unplug_control(number: int) -> None:
    """Take this machine off a laboratory's management network, where it is on it.

    The kernel removes a dead switch's interfaces as well, but when it gets to it.
    """
    try:
        run(["ip", "link", "delete", uplink_of(number)])
    except LabError:
        if (Path("/sys/class/net") / uplink_of(number)).exists():
            raise


def start_switch(number: int, marker: str) -> Switch:
    """Start a switch without cables. The marker is an argument of its process, by which it is found again."""
    script = "read -r pid _ </proc/self/stat; echo $pid || exit; exec >/dev/null 2>&1; while :; do sleep infinity & wait; done"
    argv = ["setsid", "--fork", "unshare", "--net", find_tool("bash") or "bash", "-c", script, marker, marker]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/", text=True) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline() or 0)
    if not pid:
        raise LabError("the laboratory's switch did not start")
    return Switch(number=number, pid=pid)


def free_number(taken: set[int]) -> int:
    """Return a number whose networks 10.77.N.0/24 and 10.99.N.0/24 no laboratory and no interface of this machine has."""
    routes = Path("/proc/net/fib_trie").read_text()
    for number in range(1, 255):
        if number not in taken and f"10.77.{number}." not in routes and f"10.99.{number}." not in routes:
            return number
    raise LabError("all 254 networks of laboratories are taken")
