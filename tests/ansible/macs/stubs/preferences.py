"""Preference files: what is kept of the network, and defaults, plutil and PlistBuddy to read any."""

from __future__ import annotations

import json
import os
import plistlib
from pathlib import Path
from typing import Any

from .mac import Mac, State, refuse, say

NETWORK = "/Library/Preferences/SystemConfiguration/preferences.plist"


def write_network(mac: Mac, state: State) -> None:
    """Keep the bridges and services in the file in which a Mac keeps them."""
    bridges = {
        device: {"Options": {"__AUTO__": bridge["auto"]}, "Interfaces": bridge["members"]}
        for device, bridge in state["bridges"].items()
    }
    services = {service["name"]: _describe(service) for service in state["services"]}
    order = [service["name"] for service in state["services"]]
    content = {
        "CurrentSet": "/Sets/0",
        "NetworkServices": services,
        "Sets": {"0": {"UserDefinedName": "Automatic", "Network": {"Global": {"IPv4": {"ServiceOrder": order}}}}},
        "VirtualNetworkInterfaces": {"Bridge": bridges},
    }
    path = mac.path(NETWORK)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(plistlib.dumps(content, sort_keys=False))
    os.replace(fresh, path)


def _describe(service: dict) -> dict:
    ipv4, address = service["ipv4"], {}
    if ipv4["method"] == "manual":
        address = {"Addresses": [ipv4["address"]], "SubnetMasks": [ipv4["mask"]]}
    method = {"dhcp": "DHCP", "manual": "Manual", "off": "Off"}[ipv4["method"]]
    interface = {"DeviceName": service["device"], "Type": "Ethernet", "UserDefinedName": service["port"]}
    entry = {"UserDefinedName": service["name"], "Interface": interface, "IPv4": {"ConfigMethod": method, **address}}
    return entry if service["enabled"] else {**entry, "__INACTIVE__": 1}


def plutil(mac: Mac, args: list[str]) -> None:
    """``-convert json -o - FILE``, ``-extract KEYS json -o - FILE``, ``-p FILE``, ``-lint FILE``."""
    words = [word for word in args if word not in ("-o", "-", "-r", "--", "-n")]
    path = mac.path(words[-1]) if words else Path()
    content = _load(path, words[-1] if words else "")
    if "-lint" in words:
        say(f"{words[-1]}: OK")
    elif words[:2] == ["-convert", "json"] or words[:1] == ["-p"]:
        say(json.dumps(content, separators=(",", ":")))
    elif words[:1] == ["-extract"] and len(words) == 4:
        _extract(content, words[1], words[2], words[3])
    else:
        refuse(1, "plutil: only -convert json, -extract, -p and -lint are modelled")


def _extract(content: Any, keys: str, kind: str, name: str) -> None:
    found = _dig(content, keys.split("."))
    if found is None:
        why = f"No value at that key path or invalid key path: {keys}"
        refuse(1, f"{name}: Could not extract value, error: {why}", on_stdout=True)
    say(str(found) if kind == "raw" else json.dumps(found, separators=(",", ":")))


def plist_buddy(mac: Mac, args: list[str]) -> None:
    """``-c "Print :Key:Key" FILE``."""
    if "-c" not in args or len(args) < 3:
        refuse(1, 'PlistBuddy: only -c "Print :Keys" FILE is modelled')
    verb, _, keys = args[args.index("-c") + 1].partition(" ")
    content = _load(mac.path(args[-1]), args[-1])
    if verb.lower() != "print":
        refuse(1, f'Unrecognized Command "{verb}"')
    found = _dig(content, [key for key in keys.split(":") if key])
    if found is None:
        refuse(1, f'Print: Entry, "{keys}", Does Not Exist')
    say(_spell(found))


def defaults(mac: Mac, args: list[str]) -> None:
    """``read FILE [KEY]``; values in the old style of property lists."""
    if len(args) < 2 or args[0] != "read":
        refuse(1, "defaults: only read is modelled")
    path = args[1] if args[1].endswith(".plist") else f"{args[1]}.plist"
    if not path.startswith("/"):
        path = f"/Library/Preferences/{path}"
    if not mac.path(path).exists():
        refuse(1, f"\nDomain {args[1]} does not exist")
    content = _load(mac.path(path), path)
    if len(args) > 2:
        if args[2] not in content:
            refuse(1, f"\nThe domain/default pair of ({args[1]}, {args[2]}) does not exist")
        content = content[args[2]]
    say(_spell_old(content))


def _load(path: Path, name: str) -> Any:
    try:
        with path.open("rb") as file:
            return plistlib.load(file)
    except OSError:
        refuse(1, f"{name}: file does not exist or is not readable or is not a regular file", on_stdout=True)
    except (plistlib.InvalidFileException, ValueError) as error:
        refuse(1, f"{name}: {error}", on_stdout=True)


def _dig(content: Any, keys: list[str]) -> Any:
    for key in keys:
        if isinstance(content, list) and key.isdigit() and int(key) < len(content):
            content = content[int(key)]
        elif isinstance(content, dict) and key in content:
            content = content[key]
        else:
            return None
    return content


def _spell(value: Any, depth: int = 0) -> str:
    pad = "    " * (depth + 1)
    if isinstance(value, dict):
        inner = "".join(f"{pad}{key} = {_spell(one, depth + 1)}\n" for key, one in value.items())
        return f"Dict {{\n{inner}{pad[4:]}}}"
    if isinstance(value, list):
        return "Array {\n" + "".join(f"{pad}{_spell(one, depth + 1)}\n" for one in value) + f"{pad[4:]}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _spell_old(value: Any, depth: int = 0) -> str:
    pad = "    " * (depth + 1)
    if isinstance(value, dict):
        inner = "".join(f"{pad}{_quote(key)} =     {_spell_old(one, depth + 1)};\n" for key, one in sorted(value.items()))
        return f"{{\n{inner}{pad[4:]}}}"
    if isinstance(value, list):
        return "(\n" + ",\n".join(f"{pad}{_spell_old(one, depth + 1)}" for one in value) + f"\n{pad[4:]})"
    return str(int(value)) if isinstance(value, bool) else _quote(str(value)) if depth else str(value)


def _quote(text: str) -> str:
    return text if text.replace("_", "").isalnum() else f'"{text}"'
