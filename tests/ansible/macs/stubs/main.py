"""Which stub answers for which command. Modules are loaded when needed: a call should take no longer than the real one."""

from __future__ import annotations

import sys
from importlib import import_module

from .mac import Mac, RefusalError

COMMANDS = {
    "/usr/bin/sw_vers": "hardware.sw_vers",
    "/usr/bin/arch": "hardware.arch",
    "/usr/sbin/sysctl": "hardware.sysctl",
    "/usr/sbin/system_profiler": "profiler.system_profiler",
    "/usr/bin/ibv_devices": "hardware.ibv_devices",
    "/usr/bin/ibv_devinfo": "hardware.ibv_devinfo",
    "/usr/bin/rdma_ctl": "hardware.rdma_ctl",
    "/usr/sbin/networksetup": "services.networksetup",
    "/sbin/ifconfig": "interfaces.ifconfig",
    "/usr/sbin/netstat": "interfaces.netstat",
    "/sbin/route": "interfaces.route",
    "/usr/bin/pmset": "settings.pmset",
    "/usr/sbin/systemsetup": "settings.systemsetup",
    "/usr/libexec/ApplicationFirewall/socketfilterfw": "settings.socketfilterfw",
    "/usr/sbin/scutil": "settings.scutil",
    "/usr/bin/dscl": "settings.dscl",
    "/usr/bin/caffeinate": "settings.caffeinate",
    "/bin/launchctl": "daemons.launchctl",
    "/usr/local/lib/flotilla-mac/boot": "daemons.boot",
    "/usr/sbin/softwareupdate": "developer.softwareupdate",
    "/usr/bin/xcode-select": "developer.xcode_select",
    "/usr/bin/defaults": "preferences.defaults",
    "/usr/bin/plutil": "preferences.plutil",
    "/usr/libexec/PlistBuddy": "preferences.plist_buddy",
    "/opt/homebrew/bin/brew": "brew.brew",
}


def main(argv: list[str]) -> int:
    """Answer for the command that was called; returns its exit code."""
    name = argv[0].rsplit("/", 1)[-1]
    target = next(target for path, target in COMMANDS.items() if path.rsplit("/", 1)[-1] == name)
    module, function = target.split(".")
    try:
        code: int = getattr(import_module(f".{module}", __package__), function)(Mac([name, *argv[1:]]), argv[1:]) or 0
    except RefusalError as refusal:
        stream = sys.stdout if refusal.on_stdout else sys.stderr
        if refusal.text:
            stream.write(refusal.text + "\n")
        code = refusal.code
    return code
