"""What the machine is: sw_vers, arch, sysctl, and the RDMA devices of its Thunderbolt ports."""

from __future__ import annotations

import os
import re

from .mac import Mac, refuse, say

WRITABLE = ("iogpu.wired_limit_mb",)


def sw_vers(mac: Mac, args: list[str]) -> None:
    """Say product, version and build."""
    version = mac.state["macos"]
    keys = {"productname": "product", "productversion": "version", "buildversion": "build"}
    if not args:
        say(
            f"ProductName:\t\t{version['product']}\nProductVersion:\t\t{version['version']}\nBuildVersion:\t\t{version['build']}"
        )
        return
    asked = args[0].lstrip("-").lower()
    if asked not in keys:
        refuse(1, f"sw_vers: unrecognized option `{args[0]}'")
    say(version[keys[asked]])


def arch(mac: Mac, args: list[str]) -> None:
    """Say arm64, or run a command natively. There is no Rosetta here."""
    if not args:
        say("arm64")
        return
    words = [word for word in args if word not in ("-arm64", "-arm64e")]
    if "-x86_64" in words:
        refuse(1, f"arch: posix_spawnp: {words[-1]}: Bad CPU type in executable")
    os.execvp(words[0], words)


def sysctl(mac: Mac, args: list[str]) -> int:
    """Read and write what the kernel tells; only the wired limit can be written, by root."""
    flags = "".join(word[1:] for word in args if re.fullmatch(r"-[a-zA-Z]+", word))
    names = [word for word in args if not re.fullmatch(r"-[a-zA-Z]+", word)]
    values = mac.state["sysctl"]
    if "a" in flags:
        names = list(values)
    code = 0
    for name, equals, value in (word.partition("=") for word in names):
        if name not in values:
            code = code if "i" in flags else _complain(f"unknown oid '{name}'")
        elif equals:
            code = _write(mac, name, value, "n" in flags) or code
        else:
            say(str(values[name]) if "n" in flags else f"{name}: {values[name]}")
    return code


def _complain(text: str) -> int:
    os.write(2, f"sysctl: {text}\n".encode())
    return 1


def _write(mac: Mac, name: str, value: str, is_terse: bool) -> int:
    if name not in WRITABLE:
        return _complain(f"oid '{name}' is read only")
    if not re.fullmatch(r"\d+", value):
        return _complain(f"invalid integer '{value}'")
    if not mac.is_root:
        return _complain(f"{name}: Operation not permitted")
    with mac.change() as state:
        before, state["sysctl"][name] = state["sysctl"][name], int(value)
    say(f"{before} -> {value}" if is_terse else f"{name}: {before} -> {value}")
    return 0


def ibv_devices(mac: Mac, args: list[str]) -> None:
    """List an RDMA device for every Thunderbolt port, if RDMA is on."""
    state = mac.state
    say("    device          \t   node GUID\n    ------          \t----------------")
    for bus in _rdma_buses(state):
        say(f"    {'rdma_' + bus['device']:<16}\t{bus['guid']}")


def ibv_devinfo(mac: Mac, args: list[str]) -> None:
    """Describe the RDMA devices; a port is active if its cable leads to a Mac with RDMA."""
    asked = args[args.index("-d") + 1] if "-d" in args[:-1] else ""
    found = [bus for bus in _rdma_buses(mac.state) if asked in ("", f"rdma_{bus['device']}")]
    if not found:
        refuse(1, f"No IB device '{asked}' found" if asked else "No IB devices found")
    for bus in found:
        active = bus["peer"] and bus["peer"]["rdma"] and not mac.is_cut
        state = "PORT_ACTIVE (4)" if active else "PORT_DOWN (1)"
        say(f"hca_id:\trdma_{bus['device']}\n\tnode_guid:\t\t\t{_spell(bus['guid'])}\n\tphys_port_cnt:\t\t\t1")
        say(f"\t\tport:\t1\n\t\t\tstate:\t\t\t{state}\n\t\t\tmax_mtu:\t\t4096 (5)\n")


def rdma_ctl(mac: Mac, args: list[str]) -> None:
    """Say whether RDMA is on; switching it is for Recovery only."""
    if args == ["status"]:
        say("enabled" if mac.state["rdma"]["enabled"] else "disabled")
    elif args in (["enable"], ["disable"]):
        refuse(1, "rdma_ctl: this can only be changed from Recovery")
    else:
        refuse(64, "usage: rdma_ctl status | enable | disable")


def _rdma_buses(state: dict) -> list[dict]:
    return [bus for bus in state["thunderbolt"] if state["rdma"]["enabled"]]


def _spell(guid: str) -> str:
    return ":".join(guid[place : place + 4] for place in range(0, 16, 4))
