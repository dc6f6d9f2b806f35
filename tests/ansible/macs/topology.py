"""Macs and the cables between them, as they are before anybody has provisioned them.

`make` names a topology and gives one `MacState` per Mac. What a test wants different it changes in ``state.data``, or
with the options of `make`.
"""

from __future__ import annotations

from tests.ansible.macs.models import (
    M2_LAPTOP,
    M3_ULTRA,
    M4_MINI,
    M5_MAX_LAPTOP,
    Data,
    MacState,
    Model,
    build,
    new_ether,
    new_service,
    new_uuid,
)

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
TOPOLOGIES = ("two", "chain3", "loop3", "tb4", "tb5", "dock", "no_bridge", "dhcp", "m5_names")


def make(
    topology: str, *, tools: bool = False, brew: tuple[str, ...] | None = None, rdma: bool | None = None
) -> list[MacState]:
    """Return the Macs of a topology, cabled; ``rdma`` overrides whether RDMA is on. Raises KeyError for an unknown one."""
    models, cables, has_rdma = PLANS[topology]
    macs = [build(name, model) for name, model in zip(NAMES, models, strict=False)]
    for mac in macs:
        mac.tools, mac.brew = tools, brew
        mac.data["rdma"]["enabled"] = has_rdma if rdma is None else rdma
    for one, port, other, other_port in cables:
        plug(macs[one], port, macs[other], other_port)
    if topology in EXTRAS:
        EXTRAS[topology](macs)
    return macs


def plug(a: MacState, port_a: int, b: MacState, port_b: int) -> None:
    """Lay a cable between two ports; the slower Mac sets the speed. Both must have their RDMA settled."""
    bus_a, bus_b = _bus(a, port_a), _bus(b, port_b)
    speed = min(bus_a["full_gbps"], bus_b["full_gbps"])
    for (mac, bus), (other, far) in (((a, bus_a), (b, bus_b)), ((b, bus_b), (a, bus_a))):
        bus["link_gbps"] = speed
        bus["peer"] = {
            "name": other.data["names"]["ComputerName"],
            "model": other.data["hardware"]["machine_model"],
            "domain": far["domain"],
            "rdma": other.data["rdma"]["enabled"],
            "service_uuid": new_uuid(mac.name, "service", bus["number"]),
        }


def unplug(a: MacState, port_a: int, b: MacState, port_b: int) -> None:
    """Pull the cable between two ports."""
    _bus(a, port_a)["peer"] = _bus(b, port_b)["peer"] = None


def _add_dock(macs: list[MacState]) -> None:
    """A dock on the first Mac's second port, with an Ethernet socket that has a service."""
    mac = macs[0]
    device = "en9"
    bus = _bus(mac, 2)
    bus["items"] = [
        {
            "_name": "TS4",
            "device_id_key": "0x1E",
            "device_name_key": "TS4",
            "mode_key": "usb_four",
            "route_string_key": "1",
            "switch_uid_key": "0x003DF6F2A5E4B300",
            "vendor_id_key": "0x3D",
            "vendor_name_key": "CalDigit, Inc.",
        }
    ]
    ether = new_ether(mac.name, device)
    mac.data["ports"].insert(1, {"name": "Thunderbolt Ethernet Slot 0", "device": device, "ether": ether})
    mac.data["services"].insert(0, new_service("Thunderbolt Ethernet Slot 0", device))
    mac.data["interfaces"][device] = {"up": True, "mtu": 1500, "ether": ether, "inet": [], "index": 30, "active": False}


def _delete_bridge(macs: list[MacState]) -> None:
    for mac in macs:
        data = mac.data
        data["bridges"] = {}
        del data["interfaces"]["bridge0"]
        data["ports"] = [port for port in data["ports"] if port["device"] != "bridge0"]
        data["services"] = [service for service in data["services"] if service["device"] != "bridge0"]


def _lease_bridge(macs: list[MacState]) -> None:
    """Somebody on the bridge answers DHCP: both Macs have a lease on it, with a router."""
    for number, mac in enumerate(macs):
        lease = {"address": f"198.51.100.{7 + number}", "mask": "255.255.255.0", "router": "198.51.100.1"}
        mac.data["leases"]["bridge0"] = lease
        next(one for one in mac.data["services"] if one["device"] == "bridge0")["ipv4"]["lease"] = lease
        mac.data["interfaces"]["bridge0"]["inet"] = [{"address": lease["address"], "mask": lease["mask"]}]


def _bus(mac: MacState, port: int) -> Data:
    bus: Data = next(bus for bus in mac.data["thunderbolt"] if bus["receptacle"] == str(port))
    return bus


CHAIN = ((0, 1, 1, 1), (1, 2, 2, 1))
PLANS: dict[str, tuple[tuple[Model, ...], tuple[tuple[int, int, int, int], ...], bool]] = {
    "two": ((M2_LAPTOP, M4_MINI), ((0, 1, 1, 1),), False),
    "chain3": ((M2_LAPTOP, M4_MINI, M4_MINI), CHAIN, False),
    "loop3": ((M2_LAPTOP, M4_MINI, M4_MINI), (*CHAIN, (2, 2, 0, 2)), False),
    "tb4": ((M4_MINI, M4_MINI), ((0, 3, 1, 2),), False),
    "tb5": ((M5_MAX_LAPTOP, M3_ULTRA), ((0, 1, 1, 4),), True),
    "dock": ((M2_LAPTOP, M4_MINI), ((0, 1, 1, 1),), False),
    "no_bridge": ((M2_LAPTOP, M4_MINI), ((0, 1, 1, 1),), False),
    "dhcp": ((M2_LAPTOP, M4_MINI), ((0, 1, 1, 1),), False),
    "m5_names": ((M5_MAX_LAPTOP, M5_MAX_LAPTOP), ((0, 2, 1, 3),), True),
}
EXTRAS = {"dock": _add_dock, "no_bridge": _delete_bridge, "dhcp": _lease_bridge}
