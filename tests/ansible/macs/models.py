"""Kinds of Mac, and the state that one is in when it comes out of its box: the ground on which topologies stand.

Recorded values are those of `recorded/`; identities (UUIDs, addresses) follow from names, so that two makings are equal.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.ansible.macs.formulae import formulae

SPACE = uuid.UUID("6f0c9a52-5b0e-4c43-9b0d-1f5f5f6d6163")
GIB = 1 << 30
Data = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A kind of Mac: ``ports`` are the devices of Thunderbolt 1, 2, 3, …, in that order."""

    machine: str
    identifier: str
    chip: str
    processors: str
    memory_gib: int
    ports: tuple[str, ...]
    wifi: str
    is_laptop: bool
    gbps: int  # what a port links at: 40 is Thunderbolt 4, 80 is Thunderbolt 5


M2_LAPTOP = Model(
    machine="MacBook Pro",
    identifier="Mac14,7",
    chip="Apple M2",
    processors="proc 8:4:4",
    memory_gib=16,
    ports=("en1", "en2"),
    wifi="en0",
    is_laptop=True,
    gbps=40,
)
M4_MINI = Model(
    machine="Mac mini",
    identifier="Mac16,10",
    chip="Apple M4",
    processors="proc 10:4:6",
    memory_gib=32,
    ports=("en2", "en3", "en4"),
    wifi="en1",
    is_laptop=False,
    gbps=40,
)
M5_MAX_LAPTOP = Model(
    machine="MacBook Pro",
    identifier="Mac17,6",
    chip="Apple M5 Max",
    processors="proc 18:6:12",
    memory_gib=128,
    ports=("en1", "en6", "en2"),
    wifi="en0",
    is_laptop=True,
    gbps=80,
)
M3_ULTRA = Model(
    machine="Mac Studio",
    identifier="Mac15,14",
    chip="Apple M3 Ultra",
    processors="proc 28:20:8",
    memory_gib=96,
    ports=("en2", "en3", "en4", "en5", "en6", "en7"),
    wifi="en1",
    is_laptop=False,
    gbps=80,
)


@dataclass(kw_only=True)
class MacState:
    """One Mac: what its stubs answer from (``data``), and what is installed before us.

    ``brew`` lists the formulae that Homebrew has installed; None where there is no Homebrew.
    """

    name: str
    data: Data
    tools: bool = False
    brew: tuple[str, ...] | None = None
    ports: dict[str, str] = field(default_factory=dict)  # port number to device


def build(name: str, model: Model) -> MacState:
    """Return a Mac of this kind without cables, with Remote Login on."""
    ports = {str(number): device for number, device in enumerate(model.ports, 1)}
    title = name.capitalize()
    data: Data = {
        "names": {"ComputerName": f"{title}’s {model.machine}", "LocalHostName": f"{title}s-{model.machine.replace(' ', '-')}"},
        "macos": {"product": "macOS", "version": "26.6.2", "build": "25G83"},
        "hardware": {
            "chip_type": model.chip,
            "machine_model": model.identifier,
            "machine_name": model.machine,
            "number_processors": model.processors,
            "physical_memory": f"{model.memory_gib} GB",
        },
        "sysctl": _sysctl(model),
        "sysctl_at_boot": {"iogpu.wired_limit_mb": 0},
        "thunderbolt": [_make_bus(name, model, number) for number in reversed(range(len(model.ports)))],
        "rdma": {"enabled": False},
        "power": _power(model),
        "firewall": 0,
        "full_disk_access": False,
        "launchd": {"loaded": {SSH["label"]: SSH["entry"]}, "disabled": {}},
        "updates": UPDATES,
        "formulae": formulae(),
    }
    return MacState(name=name, data=data | _network(name, model), ports=ports)


SSH: Data = {
    "label": "com.openssh.sshd",
    "entry": {"path": "/System/Library/LaunchDaemons/ssh.plist", "runs": 0, "status": None},
}
UPDATES = [
    {
        "label": "macOS Tahoe 26.6.3-25G99",
        "title": "macOS Tahoe 26.6.3",
        "version": "26.6.3",
        "size": 2801441,
        "is_tools": False,
    },
    *(
        {
            "label": f"Command Line Tools for Xcode {version}-{version}",
            "title": f"Command Line Tools for Xcode {version}",
            "version": version,
            "size": 901144,
            "is_tools": True,
        }
        for version in ("26.10", "26.9")
    ),
]


def _sysctl(model: Model) -> Data:
    cores = int(model.processors.removeprefix("proc ").split(":")[0])
    return {
        "hw.memsize": model.memory_gib * GIB,
        "hw.model": model.identifier,
        "hw.ncpu": cores,
        "hw.physicalcpu": cores,
        "hw.logicalcpu": cores,
        "hw.pagesize": 16384,
        "hw.optional.arm64": 1,
        "machdep.cpu.brand_string": model.chip,
        "iogpu.wired_limit_mb": 0,
        "kern.osproductversion": "26.6.2",
        "kern.osversion": "25G83",
        "sysctl.proc_translated": 0,
    }


def _make_bus(name: str, model: Model, number: int) -> Data:
    return {
        "number": number,
        "receptacle": str(number + 1),
        "device": model.ports[number],
        "domain": new_uuid(name, "bus", number),
        "switch_uid": f"0x05AC{_digits(name, 'switch', number, 12).upper()}",
        "guid": _digits(name, "rdma", number, 16),
        "capable_gbps": 40 if model.gbps == 40 else 120,
        "full_gbps": model.gbps,
        "link_gbps": model.gbps,
        "peer": None,
        "items": [],
    }


def _power(model: Model) -> Data:
    desktop = {
        "standby": 0,
        "Sleep On Power Button": 1,
        "autorestart": 0,
        "powernap": 1,
        "networkoversleep": 0,
        "disksleep": 10,
        "sleep": 1,
        "ttyskeepawake": 1,
        "displaysleep": 10,
        "tcpkeepalive": 1,
        "lowpowermode": 0,
        "womp": 1,
    }
    profiles = {"AC Power": desktop}
    if model.is_laptop:
        mains = {**desktop, "standby": 1, "hibernatemode": 3, "lidwake": 1}
        del mains["autorestart"]
        profiles = {"Battery Power": mains | {"displaysleep": 2, "womp": 0}, "AC Power": mains}
    return {"source": "AC Power", "profiles": profiles, "sleep_disabled": 0, "assertions": []}


def _network(name: str, model: Model) -> Data:
    devices = {f"Thunderbolt {number}": device for number, device in enumerate(model.ports, 1)}
    wired = {"Ethernet Adapter (en8)": "en8"} if model.is_laptop else {"Ethernet": "en0"}
    ether = {device: new_ether(name, device) for device in (*wired.values(), model.wifi, *model.ports)}
    ether["bridge0"] = ether[model.ports[0]]
    lease = {"address": "192.168.1.23", "mask": "255.255.255.0", "router": "192.168.1.1"}
    named = {**wired, "Thunderbolt Bridge": "bridge0", "Wi-Fi": model.wifi, **devices}
    interfaces: Data = {"lo0": {"up": True, "mtu": 16384, "inet": [], "index": 1}}
    for index, device in enumerate(sorted({*ether} - {"bridge0"}), 8):
        active = device == model.wifi
        inet = [{"address": lease["address"], "mask": lease["mask"]}] if active else []
        interfaces[device] = {"up": True, "mtu": 1500, "ether": ether[device], "inet": inet, "index": index, "active": active}
    interfaces["bridge0"] = {
        "up": True,
        "mtu": 1500,
        "ether": ether["bridge0"],
        "inet": [],
        "members": list(model.ports),
        "index": 8 + len(interfaces),
    }
    return {
        "ports": [{"name": port, "device": device, "ether": ether[device]} for port, device in named.items()],
        "services": [new_service("Wi-Fi", model.wifi, lease), new_service("Thunderbolt Bridge", "bridge0")],
        "bridges": {"bridge0": {"auto": "thunderbolt-bridge", "members": list(model.ports)}},
        "interfaces": interfaces,
        "mtus": {},
        "leases": {model.wifi: lease},
        "managed_by": model.wifi,
    }


def new_service(name: str, device: str, lease: Data | None = None, port: str = "") -> Data:
    """Return a network service on DHCP, which is what macOS makes of a new port."""
    ipv4 = {"method": "dhcp", "client_id": "", "lease": lease}
    return {"name": name, "port": port or name, "device": device, "enabled": True, "ipv4": ipv4, "ipv6": "Automatic"}


def new_uuid(*what: object) -> str:
    """Return the UUID that these words stand for."""
    return str(uuid.uuid5(SPACE, " ".join(map(str, what)))).upper()


def _digits(name: str, what: str, number: int, count: int) -> str:
    return uuid.uuid5(SPACE, f"{name} {what} {number}").hex[:count]


def new_ether(name: str, device: str) -> str:
    """Return the Ethernet address of a Mac's interface."""
    digits = "36" + uuid.uuid5(SPACE, f"{name} {device}").hex[:10]
    return ":".join(digits[place : place + 2] for place in range(0, 12, 2))
