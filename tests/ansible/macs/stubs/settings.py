"""What System Settings sets: power, Remote Login, firewall, names, users."""

from __future__ import annotations

import os
import pwd
import re
import time
from pathlib import Path

from .daemons import SSH, load_plist, unload
from .mac import Mac, State, refuse, say

SOURCES = {"a": ("AC Power", "Battery Power", "UPS Power"), "c": ("AC Power",), "b": ("Battery Power",), "u": ("UPS Power",)}
USAGE = "Usage: pmset <options>\nSee pmset(1) for details: 'man pmset'"
FIREWALL = (
    "Firewall is disabled. (State = 0)",
    "Firewall is enabled. (State = 1)",
    "Firewall is blocking all non-essential incoming connections. (State = 2)",
)


def pmset(mac: Mac, args: list[str]) -> None:
    """Show or set power management."""
    power = mac.state["power"]
    if args[:1] == ["-g"]:
        _show_power(power, args[1:])
        return
    if not args or args[0].lstrip("-") not in SOURCES or len(args) % 2 == 0:
        refuse(64, USAGE, on_stdout=True)
    if not mac.is_root:
        refuse(77, "'pmset' must be run as root...")
    with mac.change() as state:
        _set_power(state["power"], SOURCES[args[0].lstrip("-")], list(zip(args[1::2], args[2::2], strict=True)))


def _set_power(power: dict, sources: tuple[str, ...], pairs: list[tuple[str, str]]) -> None:
    known = {key for profile in power["profiles"].values() for key in profile} | {"disablesleep"}
    for key, value in pairs:
        if key not in known or not re.fullmatch(r"\d+", value):
            refuse(64, f"pmset: unknown argument: {key} {value}\n{USAGE}", on_stdout=True)
        if key == "disablesleep":
            power["sleep_disabled"] = int(value)
        for source in sources:
            profile = power["profiles"].get(source, {})
            if key in profile:
                profile[key] = int(value)


def _show_power(power: dict, what: list[str]) -> None:
    if what[:1] == ["custom"]:
        for source, profile in power["profiles"].items():
            say("\n".join([f"{source}:", *(_line(key, value) for key, value in profile.items())]))
    elif what[:1] in (["batt"], ["ps"]):
        say(f"Now drawing from '{power['source']}'")
    elif what in ([], ["live"]):
        say("System-wide power settings:")
        if power["sleep_disabled"]:
            say(f" SleepDisabled\t\t{power['sleep_disabled']}")
        say("Currently in use:")
        by = f" (sleep prevented by {', '.join(power['assertions'])})" if power["assertions"] else ""
        for key, value in power["profiles"][power["source"]].items():
            say(_line(key, value) + (by if key == "sleep" else ""))
    else:
        refuse(64, f"pmset: -g {' '.join(what)} is not modelled")


def _line(key: str, value: object) -> str:
    return f" {key:<20} {value}"


def systemsetup(mac: Mac, args: list[str]) -> None:
    """Remote Login: shown to root, switched only with Full Disk Access."""
    if not mac.is_root:
        refuse(1, "You need administrator access to run this tool... exiting!", on_stdout=True)
    name = args[0].lower() if args else ""
    if name == "-getremotelogin":
        say(f"Remote Login: {'On' if SSH in mac.state['launchd']['loaded'] else 'Off'}")
        return
    if name != "-setremotelogin" or len(args) < 2:
        refuse(1, f"{name}: not modelled", on_stdout=True)
    words = [word for word in args[1:] if word != "-f"]
    if not mac.state["full_disk_access"]:
        refuse(0, "setremotelogin: Turning Remote Login on or off requires Full Disk Access privileges.", on_stdout=True)
    with mac.change() as state:
        if words == ["on"]:
            state["launchd"]["disabled"][SSH] = False
            load_plist(mac, state, "/System/Library/LaunchDaemons/ssh.plist")
        else:
            state["launchd"]["disabled"][SSH] = True
            unload(state, SSH)


def socketfilterfw(mac: Mac, args: list[str]) -> None:
    """The application firewall's global state."""
    if args == ["--getglobalstate"]:
        say(FIREWALL[mac.state["firewall"]])
        return
    if args[:1] != ["--setglobalstate"] or args[1:] not in (["on"], ["off"]):
        refuse(1, "socketfilterfw: only the global state is modelled")
    if not mac.is_root:
        refuse(1, "Must be root to change settings.", on_stdout=True)
    with mac.change() as state:
        state["firewall"] = int(args[1] == "on")
    say(FIREWALL[int(args[1] == "on")])


def scutil(mac: Mac, args: list[str]) -> None:
    """Get and set the computer's three names."""
    if len(args) < 2 or args[0] not in ("--get", "--set") or args[1] not in ("ComputerName", "LocalHostName", "HostName"):
        refuse(64, "usage: scutil --get pref | --set pref [newval]")
    if args[0] == "--get":
        value = mac.state["names"].get(args[1])
        if not value:
            refuse(1, f"{args[1]}: not set")
        say(value)
        return
    if not mac.is_root:
        refuse(1, "Permission denied")
    with mac.change() as state:
        state["names"][args[1]] = args[2]


def dscl(mac: Mac, args: list[str]) -> None:
    """``. -list /Users`` and ``. -read /Users/NAME KEY``."""
    words = [word for word in args if word not in (".", "/Local/Default")]
    if words[:2] in (["-list", "/Users"], ["list", "/Users"]):
        say("\n".join(["daemon", "nobody", "root", *(user.pw_name for user in pwd.getpwall() if 500 < user.pw_uid < 60000)]))
        return
    if len(words) != 3 or words[0].lstrip("-") != "read":
        refuse(64, "dscl: only -list /Users and -read PATH KEY are modelled")
    say(f"{words[2]}: {_look_up(mac.state, words[1], words[2])}")


def _look_up(state: State, path: str, key: str) -> str:
    if (path, key) == ("/Groups/admin", "GroupMembership"):
        return " ".join(["root", *(user.pw_name for user in pwd.getpwall() if 500 < user.pw_uid < 60000)])
    try:
        user = pwd.getpwnam(path.removeprefix("/Users/"))
    except KeyError:
        refuse(56, f"<dscl_cmd> DS Error: -14136 (eDSRecordNotFound): {path}")
    values = {"UserShell": user.pw_shell, "NFSHomeDirectory": user.pw_dir, "UniqueID": str(user.pw_uid)}
    if key not in values:
        refuse(181, f"No such key: {key}")
    return values[key]


def caffeinate(mac: Mac, args: list[str]) -> int:
    """Run a command, or wait, as one that keeps the Mac awake."""
    words, wait = list(args), {}
    while words and words[0].startswith("-"):
        flag = words.pop(0)
        if flag in ("-t", "-w"):
            wait[flag] = int(words.pop(0))
    if words:
        os.execvp(words[0], words)
    deadline = time.monotonic() + wait.get("-t", 10**9)
    while time.monotonic() < deadline and ("-w" not in wait or Path(f"/proc/{wait['-w']}").exists()):
        time.sleep(0.2)
    return 0
