"""The simulated Macs: they say what real ones were recorded to say, remember what is changed, and refuse what Macs refuse."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ansible.macs.bench import USER, Bench
from tests.ansible.macs.install import hook, read_calls, read_state
from tests.ansible.macs.models import MacState
from tests.ansible.macs.topology import TOPOLOGIES, make
from tests.lab.laboratory import Laboratory
from trainer.cluster.cables import draw_graph, find_loops

RECORDED = Path(__file__).parent / "macs" / "recorded"
NETWORKSETUP, IFCONFIG, PROFILER = "/usr/sbin/networksetup", "/sbin/ifconfig", "/usr/sbin/system_profiler"
SYSCTL, PMSET, LAUNCHCTL, BREW = "/usr/sbin/sysctl", "/usr/bin/pmset", "/bin/launchctl", "/opt/homebrew/bin/brew"
FIREWALL = "/usr/libexec/ApplicationFirewall/socketfilterfw"
BRIDGE = "Thunderbolt Bridge"
AS_ROOT = "Try re-running the command as root for richer errors.\n"
PREFERENCES = "/Library/Preferences/SystemConfiguration/preferences.plist"

FETCH = """\
import time, urllib.request
for _ in range(50):
    try:
        print(urllib.request.urlopen("http://10.99.9.2:8000/etc/hostname").status)
        break
    except OSError:
        time.sleep(0.1)
"""
CAN_RUN = sys.platform.startswith("linux") and Path("/usr/bin/python3").exists()
pytestmark = pytest.mark.skipif(not CAN_RUN, reason="the stubs need Linux and /usr/bin/python3")

MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path) -> MakeBench:
    """Return what puts the first Mac of a topology, changed by a function, on the bench."""

    def build(topology: str = "two", change: Callable[[MacState], object] = lambda _: None, **options: object) -> Bench:
        state = make(topology, **options)[0]  # type: ignore[arg-type]
        change(state)
        return Bench(tmp_path / f"mac{len(list(tmp_path.iterdir()))}", state)

    return build


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def service(state: MacState, **values: object) -> None:
    """Change the bridge's service to what a record shows."""
    next(one for one in state.data["services"] if one["name"] == BRIDGE).update(values)
    next(port for port in state.data["ports"] if port["name"] == BRIDGE)["ether"] = "02:00:5e:00:53:07"


def test_recorded_ports(bench: MakeBench) -> None:
    """``-listallhardwareports`` is the recorded text, byte for byte, blank first line and all."""
    ports = [
        {"name": "Ethernet Adapter (en4)", "device": "en4", "ether": "0e:30:9c:e7:25:0a"},
        {"name": BRIDGE, "device": "bridge0", "ether": "36:7b:bc:d7:59:c0"},
        {"name": "Wi-Fi", "device": "en0", "ether": "84:2f:57:44:d6:4f"},
        {"name": "Thunderbolt 1", "device": "en1", "ether": "36:7b:bc:d7:59:c0"},
        {"name": "Thunderbolt 2", "device": "en2", "ether": "36:7b:bc:d7:59:c4"},
    ]
    mac = bench(change=lambda state: state.data.update(ports=ports))
    assert mac.ask(NETWORKSETUP, "-listallhardwareports", uid=USER) == recorded("hardware_ports.txt")
    assert mac.ask(NETWORKSETUP, "-listallnetworkservices", uid=USER) == recorded("services.txt")


def test_recorded_addresses(bench: MakeBench) -> None:
    """``-getinfo`` of a lease and of a manual address are the recorded texts; without a lease the address is left out."""
    lease = {"address": "198.51.100.7", "mask": "255.255.255.0", "router": "198.51.100.1"}
    dhcp = bench(change=lambda state: service(state, ipv4={"method": "dhcp", "client_id": "", "lease": lease}))
    assert dhcp.ask(NETWORKSETUP, "-getinfo", BRIDGE) == recorded("getinfo_dhcp.txt")
    ipv4 = {"method": "manual", "address": "10.219.1.2", "mask": "255.255.0.0", "router": ""}
    manual = bench(change=lambda state: service(state, ipv4=ipv4, ipv6="Link Local"))
    assert manual.ask(NETWORKSETUP, "-getinfo", BRIDGE) == recorded("getinfo_manual.txt")
    assert "IP address: \n" not in bench().ask(NETWORKSETUP, "-getinfo", BRIDGE)
    assert bench().ask(NETWORKSETUP, "-getinfo", BRIDGE).startswith("DHCP Configuration\nClient ID:\n")
    assert bench().ask(NETWORKSETUP, "-getinfo", "Wi-Fi").splitlines()[-1].startswith("Wi-Fi ID: ")


def test_recorded_missing_service(bench: MakeBench) -> None:
    """A service that is not there is told of on stdout, with exit code 4."""
    done = bench("no_bridge").run(NETWORKSETUP, "-getinfo", BRIDGE)
    assert (done.returncode, done.stdout, done.stderr) == (4, recorded("service_missing.txt"), "")


def test_recorded_thunderbolt(bench: MakeBench) -> None:
    """A free and a cabled Thunderbolt 5 bus are described as recorded; so is the machine."""

    def as_recorded(state: MacState) -> None:
        free, cabled = state.data["thunderbolt"][1:]
        free |= {"domain": "200E23D3-C921-44E0-95F7-55144AC251CC", "switch_uid": "0x05ACBE5E06781981"}
        cabled |= {"domain": "817DCFA4-B481-4100-80FC-91C7AA969F0B", "switch_uid": "0x05ACBE5E06781980"}
        domain, offered = "28CA4C30-A263-4C55-B302-953416D0B209", "066216C9-46DB-48B5-A472-768F7EA51471"
        cabled["peer"] = {"name": "Mac Studio", "model": "Mac15,14", "domain": domain, "rdma": False, "service_uuid": offered}
        state.data["thunderbolt"] = [free, cabled]

    mac = bench("tb5", as_recorded)
    assert json.loads(mac.ask(PROFILER, "SPThunderboltDataType", "-json")) == json.loads(recorded("thunderbolt5.json"))
    hardware = json.loads(bench("two").ask(PROFILER, "-json", "SPHardwareDataType"))
    assert hardware == json.loads(recorded("hardware.json"))


def test_recorded_bridge(bench: MakeBench) -> None:
    """``ifconfig bridge0`` is the recorded text; taken down its flags are the recorded ones."""

    def as_recorded(state: MacState) -> None:
        state.data["interfaces"]["en2"]["index"] = 11
        inet = [{"address": "10.25.0.1", "mask": "255.255.255.0"}]
        state.data["interfaces"]["bridge0"] |= {"mtu": 9000, "ether": "36:6a:0f:f5:b0:80", "members": ["en2"], "inet": inet}
        state.data["thunderbolt"][0]["peer"] = state.data["thunderbolt"][1]["peer"]

    mac = bench("two", as_recorded)
    assert mac.ask(IFCONFIG, "bridge0") == recorded("ifconfig_bridge0.txt")
    mac.ask(IFCONFIG, "bridge0", "down")
    assert mac.ask(IFCONFIG, "bridge0").startswith("bridge0: flags=8822<BROADCAST,SMART,SIMPLEX,MULTICAST> mtu 9000\n")
    without = bench("two", lambda state: state.data["thunderbolt"][1].update(peer=None)).ask(IFCONFIG, "bridge0")
    assert without.endswith("\tmedia: <unknown type>\n\tstatus: inactive\n")


def test_recorded_power(bench: MakeBench) -> None:
    """``pmset -g`` of a mini is the recorded text; ``disablesleep`` adds its line after the first."""

    def as_recorded(state: MacState) -> None:
        power = state.data["power"]
        power["assertions"] = ["caffeinate", "powerd"]
        power["profiles"]["AC Power"] |= {"disksleep": 0, "sleep": 0, "displaysleep": 0}

    mac = bench("tb4", as_recorded)
    assert mac.ask(PMSET, "-g") == recorded("pmset_mini.txt")
    mac.ask(PMSET, "-a", "disablesleep", "1")
    assert mac.ask(PMSET, "-g").splitlines()[:3] == ["System-wide power settings:", " SleepDisabled\t\t1", "Currently in use:"]


def test_recorded_brew(bench: MakeBench) -> None:
    """``brew`` describes an installed formula as composed from the record, and one that is not there by nothing."""
    mac = bench(tools=True, brew=("open-mpi",))
    assert mac.ask(BREW, "info", "--json=v2", "open-mpi", uid=USER) == recorded("brew_info.json").replace("\n", "") + "\n"
    assert mac.ask(BREW, "list", "--versions", "open-mpi", uid=USER) == "open-mpi 5.0.10\n"
    assert mac.ask(BREW, "--version", uid=USER) == "Homebrew 6.0.18\n"
    done = mac.run(BREW, "list", "--versions", "mpich", uid=USER)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    (formula,) = json.loads(mac.ask(BREW, "info", "--json=v2", "mpich", uid=USER))["formulae"]
    assert (formula["installed"], formula["linked_keg"]) == ([], None)


def test_recorded_rest(bench: MakeBench) -> None:
    """Version, sysctl, Remote Login, firewall, RDMA devices and the bridge's members are told as recorded."""

    def as_recorded(state: MacState) -> None:
        state.data["thunderbolt"] = [{**state.data["thunderbolt"][0], "guid": "8096a9d9edbaac05"}]
        state.data["sysctl"] |= {"hw.memsize": 34359738368, "machdep.cpu.brand_string": "Apple M1 Pro"}

    mac = bench("m5_names", as_recorded)
    assert mac.ask("/usr/bin/sw_vers") == recorded("sw_vers.txt")
    assert mac.ask(SYSCTL, "hw.memsize", "machdep.cpu.brand_string") == (
        "hw.memsize: 34359738368\nmachdep.cpu.brand_string: Apple M1 Pro\n"
    )
    assert mac.ask(SYSCTL, "iogpu.wired_limit_mb=114688") == "iogpu.wired_limit_mb: 0 -> 114688\n"
    assert mac.ask("/usr/sbin/systemsetup", "-getremotelogin") == "Remote Login: On\n"
    assert mac.ask(FIREWALL, "--getglobalstate") == "Firewall is disabled. (State = 0)\n"
    assert mac.ask("/usr/bin/ibv_devices") == recorded("ibv_devices.txt")
    assert mac.ask("/usr/bin/rdma_ctl", "status") == "enabled\n"
    members = ("-extract", "VirtualNetworkInterfaces.Bridge", "json", "-o", "-", PREFERENCES)
    assert mac.ask("/usr/bin/plutil", *members) == recorded("bridge_members.json")
    assert bench("no_bridge").ask("/usr/bin/plutil", *members) == "{}\n"


def test_rdma_off_lists_no_device(bench: MakeBench) -> None:
    """With RDMA off the two header lines are all."""
    mac = bench("tb5", rdma=False)
    assert mac.ask("/usr/bin/ibv_devices") == "".join(recorded("ibv_devices.txt").splitlines(keepends=True)[:2])
    assert mac.ask("/usr/bin/rdma_ctl", "status") == "disabled\n"


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_cables_are_those_of_the_plan(topology: str, tmp_path: Path) -> None:
    """From what the Macs of a topology say, the graph is drawn that was meant, at both ends with a device."""
    states = make(topology)
    macs = {state.name: Bench(tmp_path / state.name, state) for state in states}
    answers = {
        name: (mac.ask(PROFILER, "SPThunderboltDataType", "-json"), mac.ask(NETWORKSETUP, "-listallhardwareports"))
        for name, mac in macs.items()
    }
    graph = draw_graph(answers)
    assert len(graph.cables) == {"chain3": 2, "loop3": 3}.get(topology, 1)
    assert {cable.speed_gbps for cable in graph.cables} == {80 if topology in ("tb5", "m5_names") else 40}
    assert {cable.rdma for cable in graph.cables} == {topology in ("tb5", "m5_names")}
    assert all(cable.a.device and cable.b.device for cable in graph.cables)
    assert graph.strays == ()
    assert len(find_loops(graph)) == (topology == "loop3")
    if topology == "m5_names":
        assert {str(end) for cable in graph.cables for end in (cable.a, cable.b)} == {
            "alpha Thunderbolt 2 (en6)",
            "beta Thunderbolt 3 (en2)",
        }
    assert [state.data for state in states] == [state.data for state in make(topology)]


def test_dock(bench: MakeBench) -> None:
    """A dock is an item without a domain, with an Ethernet socket that is no Thunderbolt port."""
    mac = bench("dock")
    buses = json.loads(mac.ask(PROFILER, "SPThunderboltDataType", "-json"))["SPThunderboltDataType"]
    (dock,) = (item for bus in buses for item in bus.get("_items", []) if item["_name"] == "TS4")
    assert "domain_uuid_key" not in dock
    assert "Hardware Port: Thunderbolt Ethernet Slot 0\nDevice: en9\n" in mac.ask(NETWORKSETUP, "-listallhardwareports")


def test_services_are_remembered(bench: MakeBench) -> None:
    """What is set of a service is what is read of it, by networksetup, by ifconfig, and in the preferences."""
    mac = bench()
    mac.ask(NETWORKSETUP, "-setmanual", BRIDGE, "10.99.0.1", "255.255.255.0")
    assert "IP address: 10.99.0.1\nSubnet mask: 255.255.255.0\nRouter: (null)\n" in mac.ask(NETWORKSETUP, "-getinfo", BRIDGE)
    assert "\tinet 10.99.0.1 netmask 0xffffff00 broadcast 10.99.0.255\n" in mac.ask(IFCONFIG, "bridge0")
    assert "  interface: bridge0\n" in mac.ask("/sbin/route", "-n", "get", "10.99.0.2")
    mac.ask(NETWORKSETUP, "-setnetworkserviceenabled", BRIDGE, "off")
    assert mac.ask(NETWORKSETUP, "-listallnetworkservices").splitlines()[1:] == ["Wi-Fi", f"*{BRIDGE}"]
    assert f"(*) {BRIDGE}\n(Hardware Port: {BRIDGE}, Device: bridge0)\n\n" in mac.ask(NETWORKSETUP, "-listnetworkserviceorder")
    assert "inet " not in mac.ask(IFCONFIG, "bridge0")
    name = "Flotilla Thunderbolt 2"
    mac.ask(NETWORKSETUP, "-createnetworkservice", name, "Thunderbolt 2")
    mac.ask(NETWORKSETUP, "-setmanual", name, "10.99.1.1", "255.255.255.252")
    assert "inet 10.99.1.1 netmask 0xfffffffc broadcast 10.99.1.3" in mac.ask(IFCONFIG, "en2")
    mac.ask(NETWORKSETUP, "-ordernetworkservices", name, "Wi-Fi", BRIDGE)
    assert mac.ask(NETWORKSETUP, "-listallnetworkservices").splitlines()[1:] == [name, "Wi-Fi", f"*{BRIDGE}"]
    kept = plistlib.loads((mac.root / PREFERENCES[1:]).read_bytes())["NetworkServices"]
    assert kept[name]["IPv4"] == {"ConfigMethod": "Manual", "Addresses": ["10.99.1.1"], "SubnetMasks": ["255.255.255.252"]}
    mac.ask(NETWORKSETUP, "-removenetworkservice", name)
    assert "inet " not in mac.ask(IFCONFIG, "en2")


def test_undoing_leaves_no_trace(bench: MakeBench) -> None:
    """Settings put back one by one give the state of before, so that a teardown can be judged by it."""
    mac = bench("dhcp")
    before = mac.state
    mac.ask(NETWORKSETUP, "-setmanual", BRIDGE, "10.99.0.1", "255.255.255.0")
    mac.ask(NETWORKSETUP, "-createnetworkservice", "Flotilla Thunderbolt 1", "Thunderbolt 1")
    mac.ask(IFCONFIG, "bridge0", "deletem", "en2")
    assert mac.state != before
    mac.ask(IFCONFIG, "bridge0", "addm", "en2")
    mac.ask(NETWORKSETUP, "-removenetworkservice", "Flotilla Thunderbolt 1")
    mac.ask(NETWORKSETUP, "-setdhcp", BRIDGE)
    assert mac.state == before
    assert "IP address: 198.51.100.7\n" in mac.ask(NETWORKSETUP, "-getinfo", BRIDGE)


def test_what_lasts(bench: MakeBench) -> None:
    """A boot keeps services and preferences and forgets what ifconfig and sysctl did; LaunchDaemons run at every boot."""
    mac = bench()
    mac.ask(NETWORKSETUP, "-setmanual", BRIDGE, "10.99.0.1", "255.255.255.0")
    mac.ask(NETWORKSETUP, "-setMTU", "bridge0", "9000")
    mac.ask(IFCONFIG, "bridge0", "deletem", "en1", "down")
    mac.ask(IFCONFIG, "en1", "inet", "10.0.0.1", "netmask", "255.255.255.0", "up")
    mac.ask(SYSCTL, "-w", "iogpu.wired_limit_mb=4096")
    mac.ask("/usr/local/lib/flotilla-mac/boot")
    shown = mac.ask(IFCONFIG, "bridge0")
    assert "mtu 9000" in shown
    assert "member: en1 " in shown
    assert "inet 10.99.0.1 " in shown
    assert "inet " not in mac.ask(IFCONFIG, "en1")
    assert mac.ask(SYSCTL, "-n", "iogpu.wired_limit_mb") == "0\n"
    daemon(mac, "12000")
    mac.ask("/usr/local/lib/flotilla-mac/boot")
    assert mac.ask(SYSCTL, "-n", "iogpu.wired_limit_mb") == "12000\n"


def daemon(mac: Bench, limit: str, mode: int = 0o644) -> str:
    """Write a LaunchDaemon that sets the wired limit; returns its path on the Mac."""
    path = "/Library/LaunchDaemons/com.example.limit.plist"
    job = {"Label": "com.example.limit", "ProgramArguments": [SYSCTL, f"iogpu.wired_limit_mb={limit}"], "RunAtLoad": True}
    (mac.root / path[1:]).write_bytes(plistlib.dumps(job))
    (mac.root / path[1:]).chmod(mode)
    return path


def test_launch_daemons(bench: MakeBench) -> None:
    """Loading a daemon runs it, once; loading it again, a disabled one, or one that others may write, is refused."""
    mac = bench()
    done = mac.run(LAUNCHCTL, "bootstrap", "system", daemon(mac, "9000", mode=0o664))
    assert (done.returncode, done.stderr) == (122, "Bootstrap failed: 122: Path had bad ownership/permissions\n")
    path = daemon(mac, "9000")
    mac.ask(LAUNCHCTL, "bootstrap", "system", path)
    assert mac.ask(SYSCTL, "-n", "iogpu.wired_limit_mb") == "9000\n"
    assert "\truns = 1\n" in mac.ask(LAUNCHCTL, "print", "system/com.example.limit")
    assert mac.run(LAUNCHCTL, "bootstrap", "system", path).returncode == 5
    mac.ask(SYSCTL, "iogpu.wired_limit_mb=0")
    mac.ask(LAUNCHCTL, "kickstart", "-k", "system/com.example.limit")
    assert mac.ask(SYSCTL, "-n", "iogpu.wired_limit_mb") == "9000\n"
    mac.ask(LAUNCHCTL, "bootout", "system/com.example.limit")
    done = mac.run(LAUNCHCTL, "bootout", "system/com.example.limit")
    assert (done.returncode, done.stderr) == (3, "Boot-out failed: 3: No such process\n")
    assert mac.run(LAUNCHCTL, "print", "system/com.example.limit").returncode == 113
    mac.ask(LAUNCHCTL, "disable", "system/com.example.limit")
    assert mac.run(LAUNCHCTL, "bootstrap", "system", path).returncode == 119
    mac.ask(LAUNCHCTL, "enable", "system/com.example.limit")
    mac.ask(LAUNCHCTL, "bootstrap", "system", path)


def test_remote_login(bench: MakeBench) -> None:
    """systemsetup wants Full Disk Access and says so with exit code 0; launchctl does without."""

    def switched_off(state: MacState) -> None:
        state.data["launchd"] = {"loaded": {}, "disabled": {"com.openssh.sshd": True}}

    mac = bench(change=switched_off)
    refusal = "setremotelogin: Turning Remote Login on or off requires Full Disk Access privileges.\n"
    assert mac.ask("/usr/sbin/systemsetup", "-setremotelogin", "on") == refusal
    assert mac.ask("/usr/sbin/systemsetup", "-getremotelogin") == "Remote Login: Off\n"
    mac.ask(LAUNCHCTL, "enable", "system/com.openssh.sshd")
    mac.ask(LAUNCHCTL, "bootstrap", "system", "/System/Library/LaunchDaemons/ssh.plist")
    assert mac.ask("/usr/sbin/systemsetup", "-getremotelogin") == "Remote Login: On\n"


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ([NETWORKSETUP, "-setdhcp", BRIDGE], 14, "** Error: Command requires admin privileges.\n"),
        ([IFCONFIG, "bridge0", "down"], 1, "ifconfig: down: permission denied\n"),
        ([SYSCTL, "iogpu.wired_limit_mb=1"], 1, "sysctl: iogpu.wired_limit_mb: Operation not permitted\n"),
        ([PMSET, "-a", "sleep", "0"], 77, "'pmset' must be run as root...\n"),
        ([LAUNCHCTL, "bootout", "system/x"], 5, f"Boot-out failed: 5: Input/output error\n{AS_ROOT}"),
        ([FIREWALL, "--setglobalstate", "on"], 1, "Must be root to change settings.\n"),
        (["/usr/sbin/systemsetup", "-getremotelogin"], 1, "You need administrator access to run this tool... exiting!\n"),
        (["/usr/sbin/softwareupdate", "-i", "x"], 1, "softwareupdate: must be run as root\n"),
    ],
)  # fmt: skip
def test_only_root_changes_the_system(bench: MakeBench, command: list[str], code: int, text: str) -> None:
    """A user is refused, and nothing has changed."""
    mac = bench()
    before = mac.state
    done = mac.run(*command, uid=USER)
    assert (done.returncode, done.stdout + done.stderr) == (code, text)
    assert mac.state == before
    assert mac.calls == []


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["-setmanual", "Nowhere", "10.0.0.1", "255.0.0.0"], "Nowhere is not a recognized network service.\n"),
        (["-setmanual", BRIDGE, "10.0.0.256", "255.0.0.0"], ""),
        (["-setmanual", BRIDGE, "10.0.0.1", "255.0.255.0"], ""),
        (["-createnetworkservice", "X", "Thunderbolt 9"], "Thunderbolt 9 is not a recognized hardware port.\n"),
        (["-createnetworkservice", BRIDGE, "bridge0"], f"{BRIDGE} is already a network service.\n"),
        (["-ordernetworkservices", BRIDGE], "Not all of the network services are in the list.\n"),
        (["-setMTU", "bridge0", "90000"], "The MTU value is not valid.\n"),
    ],
)
def test_wrong_parameters(bench: MakeBench, args: list[str], text: str) -> None:
    """networksetup says on stdout what it does not take, and changes nothing."""
    mac = bench()
    done = mac.run(NETWORKSETUP, *args)
    assert (done.returncode, done.stdout, done.stderr) == (4, f"{text}** Error: The parameters were not valid.\n", "")
    assert mac.calls == []


def test_unknown_sysctl(bench: MakeBench) -> None:
    """A name that is not there, or that cannot be written, is an error."""
    done = bench().run(SYSCTL, "-n", "hw.memsize", "net.nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (1, "17179869184\n", "sysctl: unknown oid 'net.nowhere'\n")
    assert bench().run(SYSCTL, "hw.memsize=1").stderr == "sysctl: oid 'hw.memsize' is read only\n"


def test_power_of_a_laptop(bench: MakeBench) -> None:
    """``-a`` sets battery and mains, ``-c`` mains only; a laptop has no ``autorestart``."""
    mac = bench("two")
    assert "autorestart" not in mac.ask(PMSET, "-g")
    assert mac.run(PMSET, "-a", "autorestart", "1").returncode == 64
    mac.ask(PMSET, "-a", "sleep", "0", "womp", "1")
    mac.ask(PMSET, "-c", "displaysleep", "7")
    battery, mains = mac.ask(PMSET, "-g", "custom").split("AC Power:\n")
    assert battery.startswith("Battery Power:\n")
    assert " sleep                0\n" in battery
    assert " displaysleep         2\n" in battery
    assert " displaysleep         7\n" in mains


def test_command_line_tools(bench: MakeBench) -> None:
    """They are offered only while the flag file is there; the newest is not the last in the alphabet; git comes with them."""
    mac = bench()
    done = mac.run("/usr/bin/xcode-select", "-p")
    assert done.returncode == 2
    assert done.stderr.startswith("xcode-select: error: unable to get active developer directory")
    assert "Command Line Tools" not in mac.ask("/usr/sbin/softwareupdate", "-l", uid=USER)
    flag = mac.root / "tmp/.com.apple.dt.CommandLineTools.installondemand.in-progress"
    flag.parent.mkdir()
    flag.touch()
    label = "Command Line Tools for Xcode 26.10-26.10"
    assert f"* Label: {label}\n" in mac.ask("/usr/sbin/softwareupdate", "-l", uid=USER)
    done = mac.run("/usr/sbin/softwareupdate", "-i", "Command Line Tools")
    assert (done.returncode, done.stderr) == (0, "Command Line Tools: No such update\nNo updates are available.\n")
    assert mac.ask("/usr/sbin/softwareupdate", "-i", label).endswith("Done with Command Line Tools for Xcode 26.10\nDone.\n")
    tools = "/Library/Developer/CommandLineTools"
    mac.ask("/usr/bin/xcode-select", "--switch", tools)
    assert mac.ask("/usr/bin/xcode-select", "-p") == f"{tools}\n"
    assert (mac.root / tools[1:] / "usr/bin/git").exists()


def test_brew_installs(bench: MakeBench) -> None:
    """A formula comes with what it needs, is linked, and can be unlinked, linked and removed; root is refused."""
    mac = bench(tools=True, brew=())
    assert mac.run(BREW, "list").stderr.startswith("Error: Running Homebrew as root is extremely dangerous")
    asked = mac.run(BREW, "install", "open-mpi", uid=USER)
    assert (asked.returncode, "Do you want to proceed" in asked.stdout) == (1, True)
    mac.ask(BREW, "install", "openmpi", uid=USER, env={"HOMEBREW_NO_ASK": "1"})
    assert mac.ask(BREW, "list", "--versions", "prrte", "pmix", uid=USER) == "prrte 4.1.0_1\npmix 6.1.0\n"
    mpirun = mac.root / "opt/homebrew/bin/mpirun"
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("mpirun (Open MPI) 5.0.10\n")
    again = mac.run(BREW, "install", "open-mpi", uid=USER)
    assert (again.returncode, again.stderr) == (0, "Warning: open-mpi 5.0.10 is already installed and up-to-date.\n")
    refused = mac.run(BREW, "install", "mpich", uid=USER)
    assert "Please `brew unlink open-mpi` before continuing." in refused.stderr
    mac.ask(BREW, "unlink", "open-mpi", uid=USER)
    assert not mpirun.is_symlink()
    mac.ask(BREW, "install", "mpich", uid=USER)
    assert "HYDRA" in subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=True).stdout
    mac.ask(BREW, "uninstall", "mpich", uid=USER)
    mac.ask(BREW, "link", "open-mpi", uid=USER)
    assert mpirun.exists()


def test_brew_upgrades(bench: MakeBench) -> None:
    """An older formula is outdated until it is upgraded."""
    mac = bench(tools=True, brew=("open-mpi",))
    cellar = mac.root / "opt/homebrew/Cellar/prrte"
    (cellar / "4.1.0_1").rename(cellar / "4.1.0")
    assert mac.ask(BREW, "outdated", uid=USER) == "prrte\n"
    mac.ask(BREW, "upgrade", "prrte", uid=USER)
    assert mac.ask(BREW, "list", "--versions", "prrte", uid=USER) == "prrte 4.1.0_1\n"
    assert mac.ask(BREW, "outdated", uid=USER) == ""


def test_two_at_once(bench: MakeBench) -> None:
    """Commands that change different things at the same moment both take effect."""
    mac = bench("tb5")
    env = {"FLOTILLA_MAC_ROOT": str(mac.root), "FLOTILLA_MAC_UID": "0", "PATH": "/usr/bin:/bin"}
    names = [f"Service {number}" for number in range(8)]
    command = [str(mac.root / "usr/sbin/networksetup"), "-createnetworkservice"]
    started = [subprocess.Popen([*command, name, "Thunderbolt 2"], env=env) for name in names]
    assert [process.wait() for process in started] == [0] * 8
    assert {service["name"] for service in mac.state["services"]} >= {*names}


@pytest.fixture(scope="module")
def mac_lab() -> Iterator[Laboratory]:
    """Two simulated Macs with a cable, as hosts of a laboratory."""
    if lacking := Laboratory.missing():
        pytest.skip(f"a laboratory needs {', '.join(lacking)}")
    with Laboratory.up(2, name=f"macs-{os.getpid()}", mac=hook(make("two"))) as lab:
        yield lab


def test_addresses_carry_packets(mac_lab: Laboratory) -> None:
    """What networksetup sets on the bridge is an address of the laboratory's fast link; a cut cable shows no peer."""
    assert [read_state(host.root) for host in mac_lab.hosts] == [state.data for state in make("two")]
    for number, host in enumerate(mac_lab.hosts, 1):
        host.run([NETWORKSETUP, "-setmanual", BRIDGE, f"10.99.9.{number}", "255.255.255.0"])
    alpha, beta = mac_lab.hosts
    beta.run(["sh", "-c", "cd / && /usr/bin/python3 -m http.server -b 10.99.9.2 8000 >/dev/null 2>&1 &"])
    assert alpha.run(["/usr/bin/python3", "-c", FETCH]).stdout == "200\n"
    (line,) = [
        row.split()
        for row in alpha.run(["/usr/sbin/netstat", "-ibn"]).stdout.splitlines()
        if row.startswith("bridge0") and "<Link" in row
    ]
    assert int(line[6]) > 200
    assert "_items" in beta.run([PROFILER, "SPThunderboltDataType", "-json"]).stdout
    mac_lab.cut("beta", "fast")
    assert "_items" not in beta.run([PROFILER, "SPThunderboltDataType", "-json"]).stdout
    mac_lab.mend("beta", "fast")


def test_restart(mac_lab: Laboratory) -> None:
    """A Mac that is switched off and on again has its address back."""
    beta = mac_lab.host("beta")
    beta.run([NETWORKSETUP, "-setmanual", BRIDGE, "10.99.9.7", "255.255.255.0"])
    beta.kill()
    mac_lab.start(beta)
    assert "10.99.9.7/24" in beta.run(["ip", "-brief", "address", "show", "dev", "tb0"]).stdout
    beta.run([NETWORKSETUP, "-setdhcp", BRIDGE])
    assert beta.run(["ip", "-brief", "address", "show", "dev", "tb0"]).stdout.split()[1:] == ["DOWN"]


def test_homebrew_installer(mac_lab: Laboratory) -> None:
    """The installer refuses root and a user whose sudo asks; with an answer it brings tools, and a brew of the user's own."""
    alpha = mac_lab.host("alpha")
    installer = ["bash", "/usr/local/share/flotilla-mac/install.sh"]
    assert alpha.run(installer, check=False).stderr == "Don't run this as root!\n"
    quiet = {"NONINTERACTIVE": "1"}
    assert alpha.run(installer, user=alpha.user, env=quiet, check=False).stderr.startswith("Need sudo access on macOS")
    answer = f"/home/{alpha.user}/answer"
    alpha.run(["sh", "-c", f"printf '#!/bin/sh\\necho %s\\n' {mac_lab.password} >{answer}; chmod 755 {answer}"])
    alpha.run(installer, user=alpha.user, env={**quiet, "SUDO_ASKPASS": answer})
    assert alpha.run(["stat", "-c", "%U", "/opt/homebrew", BREW]).stdout.split() == [alpha.user] * 2
    alpha.run([BREW, "install", "python@3.12"], user=alpha.user, env={"HOMEBREW_NO_ASK": "1"})
    assert alpha.run(["/opt/homebrew/bin/python3.12", "-c", "print(1)"], user=alpha.user).stdout == "1\n"
    assert [call["argv"][0] for call in read_calls(alpha.root)][-3:] == ["softwareupdate", "xcode-select", "brew"]
    assert shutil.which("launchctl") is None  # nothing of this came to the machine itself
