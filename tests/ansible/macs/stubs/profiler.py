"""system_profiler: the machine and its Thunderbolt buses, as JSON the way Apple prints it."""

from __future__ import annotations

import json

from .mac import Mac, State, refuse, say


def system_profiler(mac: Mac, args: list[str]) -> None:
    """Report the data types asked for; those not modelled are empty lists."""
    kinds = [word for word in args if word.startswith("SP")]
    state = mac.state
    if "-json" not in args:
        say("\n".join(_as_text(state) if kind == "SPHardwareDataType" else f"{kind}:\n" for kind in kinds))
        return
    if not kinds:
        refuse(1, "system_profiler: name a data type; the whole report is not modelled")
    answers = {"SPHardwareDataType": _hardware, "SPThunderboltDataType": _thunderbolt}
    report = {kind: answers[kind](mac, state) if kind in answers else [] for kind in kinds}
    say(json.dumps(report, indent=2, separators=(",", " : "), sort_keys=True, ensure_ascii=False))


def _hardware(mac: Mac, state: State) -> list:
    return [{"_name": "hardware_overview", **state["hardware"]}]


def _as_text(state: State) -> str:
    has = state["hardware"]
    lines = {"Model Name": has["machine_name"], "Model Identifier": has["machine_model"], "Chip": has["chip_type"]}
    lines |= {"Memory": has["physical_memory"]}
    return "Hardware:\n\n    Hardware Overview:\n\n" + "".join(f"      {key}: {value}\n" for key, value in lines.items())


def _thunderbolt(mac: Mac, state: State) -> list:
    return [_bus(bus, state["hardware"]["machine_name"], mac.is_cut) for bus in state["thunderbolt"]]


def _bus(bus: dict, machine: str, is_cut: bool) -> dict:
    peer = None if is_cut else bus["peer"]
    items = ([_peer(peer)] if peer else []) + bus["items"]
    receptacle = {"receptacle_id_key": bus["receptacle"], **_link(bus, bool(items))}
    entry = {
        "_name": f"thunderboltusb4_bus_{bus['number']}",
        "device_name_key": machine,
        "domain_uuid_key": bus["domain"],
        "receptacle_1_tag": receptacle,
        "route_string_key": "0",
        "switch_uid_key": bus["switch_uid"],
        "vendor_name_key": "Apple Inc.",
    }
    return {"_items": items, **entry} if items else entry


def _link(bus: dict, is_connected: bool) -> dict:
    if not is_connected:
        speed = f"Up to {bus['capable_gbps']} Gb/s"
        return {
            "current_speed_key": speed,
            "link_status_key": "0x100",
            "receptacle_status_key": "receptacle_no_devices_connected",
        }
    return {
        "current_speed_key": f"{bus['link_gbps']} Gb/s",
        "link_status_key": "0x2",
        "micro_version_key": "0.0.0",
        "receptacle_status_key": "receptacle_connected",
    }


def _peer(peer: dict) -> dict:
    services = [{"_name": "service_ip", "protocol_id_key": 1, "protocol_revision_key": 1, "protocol_version_key": 1}]
    services[0]["service_uuid_key"] = peer["service_uuid"]
    if peer["rdma"]:
        services.append({"protocol_id_key": 64087})
    return {
        "_name": peer["name"],
        "device_id_key": "0xA",
        "device_name_key": peer["model"],
        "domain_uuid_key": peer["domain"],
        "services_title": services,
        "vendor_id_key": "0x0A27",
        "vendor_name_key": "Apple Inc.",
    }
