"""networksetup: the network services, in the words of the real one. It says what went wrong on stdout."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from .mac import Mac, State, refuse, say
from .network import carry_over, find_service, live_inet, settle
from .preferences import write_network

HEADER = "An asterisk (*) denotes that a network service is disabled."
INVALID = "** Error: The parameters were not valid."
ADMIN = "** Error: Command requires admin privileges."


def networksetup(mac: Mac, args: list[str]) -> None:
    """Read or change the network services."""
    name, rest = (args[0].lstrip("-").lower(), args[1:]) if args else ("help", [])
    if name in READERS:
        READERS[name](mac, mac.state, rest)
        return
    if name not in WRITERS:
        refuse(1, f"{args[0] if args else ''} is not a recognized command.\n{INVALID}".lstrip(), on_stdout=True)
    if not mac.is_root:
        refuse(14, ADMIN, on_stdout=True)
    with mac.change() as state:
        WRITERS[name](state, rest)
        write_network(mac, state)
        carry_over(mac, state)


def _list_ports(mac: Mac, state: State, rest: list[str]) -> None:
    for port in state["ports"]:
        say(f"\nHardware Port: {port['name']}\nDevice: {port['device']}\nEthernet Address: {port['ether']}")
    say("\nVLAN Configurations\n===================")


def _list_services(mac: Mac, state: State, rest: list[str]) -> None:
    say(HEADER)
    for service in state["services"]:
        say(f"{'' if service['enabled'] else '*'}{service['name']}")


def _list_order(mac: Mac, state: State, rest: list[str]) -> None:
    say(HEADER)
    for number, service in enumerate(state["services"], 1):
        mark = number if service["enabled"] else "*"
        say(f"({mark}) {service['name']}\n(Hardware Port: {service['port']}, Device: {service['device']})\n")


def _get_info(mac: Mac, state: State, rest: list[str]) -> None:
    service, ipv4 = _named(state, rest), _named(state, rest)["ipv4"]
    if ipv4["method"] == "dhcp":
        say("DHCP Configuration")
        if lease := _lease(mac, state, service):
            say(f"IP address: {lease['address']}\nSubnet mask: {lease['mask']}\nRouter: {lease['router'] or '(null)'}")
        say(f"Client ID: {ipv4['client_id']}".rstrip())
    elif ipv4["method"] == "manual":
        router = ipv4["router"] or "(null)"
        say(f"Manual Configuration\nIP address: {ipv4['address']}\nSubnet mask: {ipv4['mask']}\nRouter: {router}")
    say(f"IPv6: {service['ipv6']}\nIPv6 IP address: none\nIPv6 Router: none")
    ether = next((port["ether"] for port in state["ports"] if port["device"] == service["device"]), "(null)")
    say(f"{'Wi-Fi ID' if service['port'] == 'Wi-Fi' else 'Ethernet Address'}: {ether}")


def _lease(mac: Mac, state: State, service: dict) -> dict | None:
    """Return the lease; that of the interface by which the host is managed has the laboratory's address."""
    lease: dict | None = service["ipv4"].get("lease")
    is_managed = lease is not None and service["enabled"] and service["device"] == state["managed_by"]
    return {**lease, **live_inet(mac, state, service["device"])[0]} if lease and is_managed else lease


def _get_mtu(mac: Mac, state: State, rest: list[str]) -> None:
    device = _device(state, rest)
    mtu = state["mtus"].get(device, 1500)
    say(f"Active MTU: {state['interfaces'].get(device, {}).get('mtu', mtu)} (Current Setting: {mtu})")


def _set_mtu(state: State, rest: list[str]) -> None:
    device = _device(state, rest)
    if len(rest) < 2 or not re.fullmatch(r"\d+", rest[1]) or not 1280 <= int(rest[1]) <= 9000:
        refuse(4, f"The MTU value is not valid.\n{INVALID}", on_stdout=True)
    state["mtus"][device] = int(rest[1])
    if device in state["interfaces"]:
        state["interfaces"][device]["mtu"] = int(rest[1])


def _set_manual(state: State, rest: list[str]) -> None:
    service = _named(state, rest)
    if len(rest) not in (3, 4) or not all(map(_is_address, rest[1:])) or not _is_mask(rest[2]):
        refuse(4, INVALID, on_stdout=True)
    router = rest[3] if len(rest) == 4 else ""
    _set_ipv4(state, service, {"method": "manual", "address": rest[1], "mask": rest[2], "router": router})


def _set_dhcp(state: State, rest: list[str]) -> None:
    """A lease comes back where somebody answers on that interface, which the state knows as ``leases``."""
    service = _named(state, rest)
    client = rest[1] if len(rest) > 1 and rest[1] != "Empty" else ""
    lease = state["leases"].get(service["device"])
    _set_ipv4(state, service, {"method": "dhcp", "client_id": client, "lease": lease})


def _set_off(state: State, rest: list[str]) -> None:
    _set_ipv4(state, _named(state, rest), {"method": "off"})


def _set_ipv4(state: State, service: dict, ipv4: dict) -> None:
    service["ipv4"] = ipv4
    settle(state, service["device"])


def _set_ipv6(kind: str) -> Callable[[State, list[str]], None]:
    def change(state: State, rest: list[str]) -> None:
        _named(state, rest)["ipv6"] = kind

    return change


def _create(state: State, rest: list[str]) -> None:
    if len(rest) != 2:
        refuse(4, INVALID, on_stdout=True)
    name, hardware = rest
    if find_service(state, name):
        refuse(4, f"{name} is already a network service.\n{INVALID}", on_stdout=True)
    port = next((port for port in state["ports"] if hardware in (port["name"], port["device"])), None)
    if port is None:
        refuse(4, f"{hardware} is not a recognized hardware port.\n{INVALID}", on_stdout=True)
    ipv4 = {"method": "dhcp", "client_id": "", "lease": state["leases"].get(port["device"])}
    service = {"name": name, "port": port["name"], "device": port["device"], "enabled": True, "ipv4": ipv4, "ipv6": "Automatic"}
    state["services"].append(service)
    settle(state, port["device"])


def _remove(state: State, rest: list[str]) -> None:
    service = _named(state, rest)
    state["services"].remove(service)
    settle(state, service["device"])


def _enable(state: State, rest: list[str]) -> None:
    service = _named(state, rest)
    if rest[1:] not in (["on"], ["off"]):
        refuse(4, INVALID, on_stdout=True)
    service["enabled"] = rest[1] == "on"
    settle(state, service["device"])


def _order(state: State, rest: list[str]) -> None:
    for name in rest:
        _named(state, [name])
    if sorted(rest) != sorted(service["name"] for service in state["services"]):
        refuse(4, f"Not all of the network services are in the list.\n{INVALID}", on_stdout=True)
    state["services"].sort(key=lambda service: rest.index(service["name"]))


def _rename(state: State, rest: list[str]) -> None:
    _named(state, rest)["name"] = rest[1]


def _named(state: State, rest: list[str]) -> dict:
    name = rest[0] if rest else ""
    service = find_service(state, name)
    if service is None:
        refuse(4, f"{name} is not a recognized network service.\n{INVALID}", on_stdout=True)
    return service


def _device(state: State, rest: list[str]) -> str:
    asked = rest[0] if rest else ""
    found = [str(port["device"]) for port in state["ports"] if asked in (port["name"], port["device"])]
    return found[0] if found else refuse(4, f"{asked} is not a recognized hardware port.\n{INVALID}", on_stdout=True)


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_mask(text: str) -> bool:
    try:
        ipaddress.IPv4Network(f"0.0.0.0/{text}")
    except ValueError:
        return False
    return True


READERS: dict[str, Callable[[Mac, State, list[str]], None]] = {
    "listallhardwareports": _list_ports,
    "listallnetworkservices": _list_services,
    "listnetworkserviceorder": _list_order,
    "getinfo": _get_info,
    "getmtu": _get_mtu,
}
WRITERS: dict[str, Callable[[State, list[str]], None]] = {
    "setmanual": _set_manual,
    "setdhcp": _set_dhcp,
    "setv4off": _set_off,
    "setv6off": _set_ipv6("Off"),
    "setv6automatic": _set_ipv6("Automatic"),
    "setv6linklocal": _set_ipv6("Link Local"),
    "setmtu": _set_mtu,
    "createnetworkservice": _create,
    "removenetworkservice": _remove,
    "renamenetworkservice": _rename,
    "setnetworkserviceenabled": _enable,
    "ordernetworkservices": _order,
}
