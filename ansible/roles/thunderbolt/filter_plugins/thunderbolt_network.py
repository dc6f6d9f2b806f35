"""From a Mac's network services to the commands that bring them to what is wanted, or back to what they were.

Everything here is a pure function: read, compare, and only then write. A host that needs nothing gets an empty list of
steps, so a second run changes nothing and check mode knows what a run would do. No service but the Thunderbolt
Bridge's and those named "Flotilla ..." appears in a step, except that the order of services can only be written whole.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BRIDGE_SERVICE = "Thunderbolt Bridge"
OUR_PREFIX = "Flotilla "
NETWORKSETUP = "/usr/sbin/networksetup"
IFCONFIG = "/sbin/ifconfig"
Table = dict[str, Any]


def parse_services(text: str) -> list[Table]:
    """Return the services of ``networksetup -listnetworkserviceorder`` in order: name, enabled, port, device."""
    found = re.findall(r"^\((\d+|\*)\) (.+?)[ \t\r]*\n\(Hardware Port: (.*), Device: (.*?)\)", text, re.MULTILINE)
    return [
        {"name": name, "enabled": mark != "*", "port": port, "device": device.strip()} for mark, name, port, device in found
    ]


def parse_info(text: str) -> Table:
    """Return how a service gets its IPv4 address, of ``networksetup -getinfo``."""
    kinds = {
        "DHCP Configuration": "dhcp",
        "Manual Configuration": "manual",
        "BOOTP Configuration": "bootp",
        "Manually Using DHCP Router Configuration": "manual-dhcp-router",
    }
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    router = values.get("Router", "")
    return {
        "method": kinds.get(lines[0], "off") if lines else "off",
        "address": values.get("IP address", ""),
        "mask": values.get("Subnet mask", ""),
        "router": "" if router in ("(null)", "none") else router,
        "client_id": values.get("Client ID", ""),
    }


def parse_bridge(text: str) -> Table:
    """Return members and state of a bridge, of ``ifconfig bridge0``; empty text means that there is none."""
    flags = re.search(r"flags=\w+<([^>]*)>", text)
    return {
        "exists": bool(flags),
        "up": bool(flags) and "UP" in flags[1].split(",") if flags else False,
        "members": re.findall(r"^\s+member: (\S+)", text, re.MULTILINE),
    }


def pick_services(services: Sequence[Mapping[str, Any]], bridge_device: str) -> list[str]:
    """Return the names of the services that this role may touch: the bridge's, and ours."""
    return [one["name"] for one in services if one["name"].startswith(OUR_PREFIX) or _is_bridge(one, bridge_device)]


def read_network(services: str, infos: Mapping[str, str], bridge: str, bridge_device: str = "bridge0") -> Table:
    """Return a Mac's state as one table, which is what is remembered and what steps are computed from."""
    return {
        "services": parse_services(services),
        "addresses": {name: parse_info(text) for name, text in infos.items()},
        "bridge": {"device": bridge_device, **parse_bridge(bridge)},
    }


def plan_network(now: Mapping[str, Any], mode: str, ends: Sequence[Mapping[str, Any]], network: str, address: str) -> Table:
    """Return what is wanted of a Mac with these cable ends: its services with addresses, and what becomes of the bridge.

    A Mac whose bridge was deleted may still have one cable: then that port takes the address. ``problem`` says why
    nothing can be done.
    """
    if mode == "cable":
        services = [_port_service(end, str(end["address"]), "255.255.255.252") for end in ends]
        return {"services": services, "bridge": "apart", "members": [], "problem": ""}
    mask = str(ipaddress.IPv4Network(network).netmask)
    members = [end["device"] for end in ends if end["device"]]
    if now["bridge"]["exists"]:
        name = _bridge_name(now) or BRIDGE_SERVICE
        service = {"name": name, "hardware": now["bridge"]["device"], "address": address, "mask": mask}
        return {"services": [service], "bridge": "up", "members": members, "problem": ""}
    if len(ends) == 1:
        return {"services": [_port_service(ends[0], address, mask)], "bridge": "none", "members": [], "problem": ""}
    problem = (
        f"this Mac has no Thunderbolt Bridge, and {len(ends)} cables to join; make one in System Settings, Network, the"
        " button with three dots, Manage Virtual Interfaces, or set thunderbolt_mode: cable"
    )
    return {"services": [], "bridge": "none", "members": [], "problem": problem}


def find_steps(now: Mapping[str, Any], wanted: Mapping[str, Any], thunderbolt_devices: Sequence[str] = ()) -> list[Table]:
    """Return the commands that lead from ``now`` to ``wanted``, each with what it changes; none if all is well."""
    names = [service["name"] for service in wanted["services"]]
    steps = [_remove(one["name"]) for one in now["services"] if one["name"].startswith(OUR_PREFIX) and one["name"] not in names]
    if wanted["bridge"] == "apart":
        steps += _take_apart(now, thunderbolt_devices)
    elif wanted["bridge"] == "up":
        steps += _put_together(now["bridge"], wanted["members"])
    for service in wanted["services"]:
        steps += _configure(now, service)
    kept = [one["name"] for one in now["services"] if not one["name"].startswith(OUR_PREFIX) and one["name"] not in names]
    ordered = [one["name"] for one in now["services"] if one["name"] in (*kept, *names)]
    ordered += [name for name in names if name not in ordered]  # a new service comes last
    return steps + _order(ordered, [*kept, *names])


def find_steps_back(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Table]:
    """Return the commands that put our services, the bridge's service and the bridge back to what they were ``before``."""
    steps = [_remove(one["name"]) for one in now["services"] if one["name"].startswith(OUR_PREFIX)]
    left = [one for one in now["services"] if not one["name"].startswith(OUR_PREFIX)]
    name, old_name = _bridge_name(now), _bridge_name(before)
    if name and not old_name:
        steps.append(_remove(name))
        left = [one for one in left if one["name"] != name]
    elif name and old_name:
        steps += _restore_service(now, before, name, old_name)
    steps += _restore_bridge(now["bridge"], before["bridge"])
    if name and old_name:
        names = [one["name"] for one in left]
        steps += _order(names, _place_like(names, name, before, old_name))
    return steps


def _is_bridge(service: Mapping[str, Any], device: str) -> bool:
    return bool(service["device"] == device or service["port"] == BRIDGE_SERVICE)


def _bridge_name(state: Mapping[str, Any]) -> str:
    names = [one["name"] for one in state["services"] if _is_bridge(one, state["bridge"]["device"])]
    return names[0] if names else ""


def _find_service(state: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((one for one in state["services"] if one["name"] == name), None)


def _port_service(end: Mapping[str, Any], address: str, mask: str) -> Table:
    return {"name": OUR_PREFIX + end["port"], "hardware": end["port"], "address": address, "mask": mask}


def _step(what: str, *argv: str) -> Table:
    return {"what": what, "argv": list(argv)}


def _remove(name: str) -> Table:
    return _step(f"{name}: remove the service", NETWORKSETUP, "-removenetworkservice", name)


def _switch(name: str, enabled: bool) -> Table:
    state = "on" if enabled else "off"
    return _step(f"{name}: switch the service {state}", NETWORKSETUP, "-setnetworkserviceenabled", name, state)


def _order(names: Sequence[str], wanted: Sequence[str]) -> list[Table]:
    if list(names) == list(wanted):
        return []
    return [_step(f"order of services: {_join(names)} -> {_join(wanted)}", NETWORKSETUP, "-ordernetworkservices", *wanted)]


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


def _configure(now: Mapping[str, Any], service: Mapping[str, str]) -> list[Table]:
    name, steps = service["name"], []
    current = _find_service(now, name)
    if current is None:
        what = f"{name}: create the service on {service['hardware']}"
        steps.append(_step(what, NETWORKSETUP, "-createnetworkservice", name, service["hardware"]))
    elif not current["enabled"]:
        steps.append(_switch(name, True))
    info = now["addresses"].get(name) or parse_info("")
    if (info["method"], info["address"], info["mask"], info["router"]) != ("manual", service["address"], service["mask"], ""):
        what = f"{name}: {_show(info)} -> manual {service['address']} {service['mask']}"
        steps.append(_step(what, NETWORKSETUP, "-setmanual", name, service["address"], service["mask"]))
    return steps


def _show(info: Mapping[str, str]) -> str:
    return " ".join(filter(None, (info["method"], info["address"], info["mask"], info["router"])))


def _take_apart(now: Mapping[str, Any], thunderbolt_devices: Sequence[str]) -> list[Table]:
    """Switch the bridge's service off, which lasts, and take ports and bridge down, which a LaunchDaemon of ours repeats."""
    bridge, steps = now["bridge"], []
    name = _bridge_name(now)
    if name and (service := _find_service(now, name)) and service["enabled"]:
        steps.append(_switch(name, False))
    device = bridge["device"]
    for member in bridge["members"]:
        if member in thunderbolt_devices:
            steps.append(_step(f"{device}: take {member} out", IFCONFIG, device, "deletem", member))
    if bridge["up"]:
        steps.append(_step(f"{device}: take it down", IFCONFIG, device, "down"))
    return steps


def _put_together(bridge: Mapping[str, Any], members: Sequence[str]) -> list[Table]:
    device = bridge["device"]
    missing = [member for member in members if member not in bridge["members"]]
    steps = [_step(f"{device}: put {member} in", IFCONFIG, device, "addm", member) for member in missing]
    if not bridge["up"]:
        steps.append(_step(f"{device}: bring it up", IFCONFIG, device, "up"))
    return steps


def _restore_bridge(bridge: Mapping[str, Any], before: Mapping[str, Any]) -> list[Table]:
    """Put members and state back; a bridge that came or went meanwhile is not ours to make or unmake."""
    if not (bridge["exists"] and before["exists"]):
        return []
    device = bridge["device"]
    steps = [
        _step(f"{device}: take {member} out", IFCONFIG, device, "deletem", member)
        for member in bridge["members"]
        if member not in before["members"]
    ]
    steps += _put_together({**bridge, "up": True}, before["members"])
    if bridge["up"] != before["up"]:
        state = "up" if before["up"] else "down"
        steps.append(_step(f"{device}: bring it {state}", IFCONFIG, device, state))
    return steps


def _restore_service(now: Mapping[str, Any], before: Mapping[str, Any], name: str, old_name: str) -> list[Table]:
    steps = []
    info, old = now["addresses"].get(name) or parse_info(""), before["addresses"].get(old_name) or parse_info("")
    if _identity(info) != _identity(old):
        what = f"{name}: {_show(info)} -> {_show({**old, 'address': '' if old['method'] == 'dhcp' else old['address']})}"
        steps.append(_step(what, NETWORKSETUP, *_setting(name, old)))
    service, old_service = _find_service(now, name), _find_service(before, old_name)
    if service and old_service and service["enabled"] != old_service["enabled"]:
        steps.append(_switch(name, old_service["enabled"]))
    return steps


def _identity(info: Mapping[str, str]) -> tuple[str, ...]:
    """Return what was set, without what a lease brought."""
    fixed = {"manual": ("address", "mask", "router"), "manual-dhcp-router": ("address",), "dhcp": ("client_id",)}
    return (info["method"], *(info[key] for key in fixed.get(info["method"], ())))


def _setting(name: str, info: Mapping[str, str]) -> list[str]:
    match info["method"]:
        case "manual":
            return ["-setmanual", name, info["address"], info["mask"], *filter(None, [info["router"]])]
        case "manual-dhcp-router":
            return ["-setmanualwithdhcprouter", name, info["address"]]
        case "dhcp":
            return ["-setdhcp", name, *filter(None, [info["client_id"]])]
        case "bootp":
            return ["-setbootp", name]
        case _:
            return ["-setv4off", name]


def _place_like(names: Sequence[str], name: str, before: Mapping[str, Any], old_name: str) -> list[str]:
    """Return ``names`` with ``name`` moved behind the service that it followed before; the others keep their order."""
    rest = [one for one in names if one != name]
    old_names = [one["name"] for one in before["services"]]
    ahead = [one for one in old_names[: old_names.index(old_name)] if one in rest]
    place = rest.index(ahead[-1]) + 1 if ahead else 0
    return [*rest[:place], name, *rest[place:]]


class FilterModule:
    """Filters of the role."""

    def filters(self) -> Table:
        """Return the filters by name."""
        return {
            "thunderbolt_services": parse_services,
            "thunderbolt_touchable": pick_services,
            "thunderbolt_network": read_network,
            "thunderbolt_wanted": plan_network,
            "thunderbolt_steps": find_steps,
            "thunderbolt_steps_back": find_steps_back,
        }
