"""How settings become a network: from services to the addresses of interfaces, and from those to the laboratory's link.

Two layers, as on a Mac: what is in the preferences (services, the bridge's members, MTUs) lasts; what interfaces have at
the moment ends with a boot. Changing a service settles its interface anew; ifconfig changes the moment only.
"""

from __future__ import annotations

import ipaddress

from .mac import LINK, Mac, State

WIFI = "wifi0"  # the laboratory's interface behind the one that the host is managed by


def find_service(state: State, name: str) -> dict | None:
    """Return the service of this name."""
    return next((service for service in state["services"] if service["name"] == name), None)


def effective_ipv4(service: dict) -> list[dict]:
    """Return the address that a service brings to its interface: none without a lease, or when switched off."""
    ipv4 = service["ipv4"]
    source = ipv4.get("lease") if ipv4["method"] == "dhcp" else ipv4
    if not service["enabled"] or ipv4["method"] == "off" or not source or not source.get("address"):
        return []
    return [{"address": source["address"], "mask": source["mask"]}]


def settle(state: State, device: str) -> None:
    """Give an interface what its services say, the first in order that says something."""
    interface = state["interfaces"].get(device)
    if interface is None:
        return
    services = [service for service in state["services"] if service["device"] == device]
    interface["inet"] = next(filter(None, map(effective_ipv4, services)), [])
    if any(service["enabled"] for service in services):
        interface["up"] = True


def start_network(state: State) -> None:
    """Make the interfaces what they are after a boot."""
    for device in [name for name, interface in state["interfaces"].items() if "members" in interface]:
        if device not in state["bridges"]:
            del state["interfaces"][device]
    for device, bridge in state["bridges"].items():
        interface = state["interfaces"].setdefault(device, new_bridge(state))
        interface.update(members=list(bridge["members"]), up=True)
    for device, interface in state["interfaces"].items():
        interface["mtu"] = state["mtus"].get(device, 16384 if device == "lo0" else 1500)
        interface["up"] = True
        settle(state, device)


def new_bridge(state: State) -> dict:
    """Return a bridge without members; its address is that of the first Thunderbolt port."""
    ports = sorted(state["thunderbolt"], key=lambda bus: bus["receptacle"])
    ether = state["interfaces"][ports[0]["device"]]["ether"] if ports else "36:00:00:00:00:00"
    index = 1 + max(interface["index"] for interface in state["interfaces"].values())
    return {"up": False, "mtu": 1500, "ether": ether, "inet": [], "members": [], "index": index}


def is_active(mac: Mac, state: State, device: str) -> bool:
    """Tell whether an interface has a link: a cabled port, or a bridge with one."""
    interface = state["interfaces"][device]
    if "members" in interface:
        return any(is_active(mac, state, member) for member in interface["members"] if member in state["interfaces"])
    bus = next((bus for bus in state["thunderbolt"] if bus["device"] == device), None)
    if bus is not None:
        return bool(bus["peer"]) and not mac.is_cut
    return bool(interface.get("active", False))


def live_inet(mac: Mac, state: State, device: str) -> list[dict]:
    """Return an interface's addresses: the managed one's are what the laboratory's host really has."""
    if device != state["managed_by"] or mac.interface(WIFI) is None:
        return list(state["interfaces"][device]["inet"])
    shown = mac.run("ip", "-brief", "-4", "address", "show", "dev", WIFI).stdout.split()[2:]
    real = [ipaddress.IPv4Interface(address) for address in shown]
    return [{"address": str(one.ip), "mask": str(one.netmask)} for one in real]


def carry_over(mac: Mac, state: State) -> None:
    """Give the laboratory's link the addresses that the Thunderbolt interfaces have; without any, take it down.

    All Thunderbolt interfaces are that one link: whoever is cabled to anybody reaches everybody.
    """
    if mac.interface(LINK) is None:
        return
    devices = {*(bus["device"] for bus in state["thunderbolt"]), *(n for n, i in state["interfaces"].items() if "members" in i)}
    wanted = {
        f"{inet['address']}/{ipaddress.IPv4Network('0.0.0.0/' + inet['mask']).prefixlen}"
        for device in devices
        if device in state["interfaces"] and state["interfaces"][device]["up"]
        for inet in state["interfaces"][device]["inet"]
    }
    shown = mac.run("ip", "-brief", "-4", "address", "show", "dev", LINK).stdout.split()
    for old in set(shown[2:]) - wanted:
        mac.run("ip", "address", "del", old, "dev", LINK)
    mac.run("ip", "link", "set", LINK, "up" if wanted else "down")
    for address in sorted(wanted):
        mac.run("ip", "address", "replace", address, "dev", LINK)
