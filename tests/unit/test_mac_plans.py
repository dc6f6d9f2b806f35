"""What the roles compute for Macs: from cables to a graph and addresses, from settings to the commands that change them.

The commands are tried on the stubs of a Mac: whatever they start from, after the steps nothing is left to do, and the
steps back lead to where it began.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.ansible.macs.bench import Bench
from tests.ansible.macs.models import MacState
from tests.ansible.macs.topology import TOPOLOGIES, make, plug, unplug

ROLES = Path(__file__).resolve().parents[2] / "ansible" / "roles"
NETWORK = "10.99.0.0/24"
CAN_RUN = sys.platform.startswith("linux") and Path("/usr/bin/python3").exists()
pytestmark = pytest.mark.skipif(not CAN_RUN, reason="the stubs need Linux and /usr/bin/python3")


def load(role: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROLES / role / "filter_plugins" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graph = load("thunderbolt", "thunderbolt_graph")
network = load("thunderbolt", "thunderbolt_network")
power = load("power", "power_settings")


class Fleet:
    """Macs on the bench, asked as the role asks them."""

    def __init__(self, folder: Path, states: Sequence[MacState]) -> None:
        self.macs = {state.name: Bench(folder / state.name, state) for state in states}

    def answers(self) -> dict[str, list[str]]:
        return {
            name: [
                mac.ask("/usr/sbin/system_profiler", "SPThunderboltDataType", "-json"),
                ports(mac),
                mac.ask("/usr/bin/ibv_devices"),
            ]
            for name, mac in self.macs.items()
        }

    def addresses(self) -> dict[str, str]:
        return {name: f"10.99.0.{number}" for number, name in enumerate(self.macs, 1)}

    def problems(self, mode: str = "bridge", others: Sequence[str] = ()) -> list[str]:
        addresses = self.addresses() if mode == "bridge" else {}
        found: list[str] = graph.find_cable_problems(self.answers(), mode, NETWORK, addresses, others)
        return found

    def table(self, mode: str, space: str = NETWORK) -> dict[str, Any]:
        table: dict[str, Any] = graph.map_cables(self.answers(), mode, space, self.addresses() if mode == "bridge" else {})
        return table


def ports(mac: Bench) -> str:
    return mac.ask("/usr/sbin/networksetup", "-listallhardwareports")


def look(mac: Bench) -> dict[str, Any]:
    """Ask for the network as look_darwin.yml does."""
    bridge = graph.find_bridge_device(ports(mac))
    listed = mac.ask("/usr/sbin/networksetup", "-listnetworkserviceorder")
    names = network.pick_services(network.parse_services(listed), bridge)
    infos = {name: mac.ask("/usr/sbin/networksetup", "-getinfo", name) for name in names}
    state: dict[str, Any] = network.read_network(listed, infos, mac.run("/sbin/ifconfig", bridge).stdout, bridge)
    return state


def do(mac: Bench, steps: Sequence[dict[str, Any]]) -> None:
    for step in steps:
        mac.ask(*step["argv"])


def network_of(mac: Bench) -> dict[str, Any]:
    return {key: mac.state[key] for key in ("services", "interfaces", "bridges", "mtus")}


def lead(mac: Bench, table: dict[str, Any], name: str, address: str) -> list[dict[str, Any]]:
    """Bring a Mac to what the table wants; returns the steps, after which there are none."""
    ends = graph.list_ends(table, name)
    wanted = network.plan_network(look(mac), table["mode"], ends, table["network"], address)
    assert wanted["problem"] == ""
    devices = graph.list_port_devices(ports(mac))
    steps: list[dict[str, Any]] = network.find_steps(look(mac), wanted, devices)
    do(mac, steps)
    assert network.find_steps(look(mac), wanted, devices) == []
    return steps


@pytest.mark.parametrize("mode", ["bridge", "cable"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_there_and_back(tmp_path: Path, topology: str, mode: str) -> None:
    """In every topology the steps lead to what is wanted, touch our services only, and the steps back undo all of them."""
    fleet = Fleet(tmp_path, make(topology))
    if (topology, mode) == ("loop3", "bridge"):
        return  # refused, see below
    assert fleet.problems(mode) == []
    table = fleet.table(mode)
    for name, mac in fleet.macs.items():
        before, saved = network_of(mac), look(mac)
        steps = lead(mac, table, name, fleet.addresses()[name])
        assert steps
        touched = [step["argv"][2] for step in steps if step["argv"][1].startswith("-") and "order" not in step["argv"][1]]
        assert all(service == "Thunderbolt Bridge" or service.startswith("Flotilla ") for service in touched)
        order = [
            service["name"]
            for service in mac.state["services"]
            if not service["name"].startswith(("Flotilla", "Thunderbolt B"))
        ]
        assert order == [s["name"] for s in before["services"] if s["name"] != "Thunderbolt Bridge"]
        do(mac, network.find_steps_back(look(mac), saved))
        assert network_of(mac) == before
        assert network.find_steps_back(look(mac), saved) == []


ODD = [
    ["-setmanual", "Thunderbolt Bridge", "10.0.0.7", "255.255.0.0", "10.0.0.1"],
    ["-setnetworkserviceenabled", "Thunderbolt Bridge", "off"],
    ["-setv4off", "Thunderbolt Bridge"],
    ["-removenetworkservice", "Thunderbolt Bridge"],
    ["-ordernetworkservices", "Thunderbolt Bridge", "Wi-Fi"],
    ["-createnetworkservice", "Flotilla Thunderbolt 2", "Thunderbolt 2"],
    ["-createnetworkservice", "My own", "Thunderbolt 2"],
]


@pytest.mark.parametrize("mode", ["bridge", "cable"])
@pytest.mark.parametrize("odd", [*([one] for one in ODD), [ODD[1], ODD[4]], [ODD[5], ODD[6]]], ids=str)
def test_there_and_back_from_odd_states(tmp_path: Path, odd: list[list[str]], mode: str) -> None:
    """A service with a router, switched off, removed, first in the order, left over: converges, and is put back."""
    fleet = Fleet(tmp_path, make("two"))
    name, mac = "alpha", fleet.macs["alpha"]
    for words in odd:
        mac.run("/usr/sbin/networksetup", *words)
    before, saved = network_of(mac), look(mac)
    lead(mac, fleet.table(mode), name, "10.99.0.1")
    do(mac, network.find_steps_back(look(mac), saved))
    ours = "Flotilla Thunderbolt 2"  # what is left of an earlier time of ours does not come back
    now = {**network_of(mac), "services": [s for s in network_of(mac)["services"] if s["name"] != ours]}
    assert now == {**before, "services": [s for s in before["services"] if s["name"] != ours]}


def test_mode_is_changed_in_place(tmp_path: Path) -> None:
    """From bridge to cables to bridge; the state of the first time is still reached from there."""
    fleet = Fleet(tmp_path, make("two"))
    mac = fleet.macs["alpha"]
    before, saved = network_of(mac), look(mac)
    for mode in ("bridge", "cable", "bridge", "cable"):
        lead(mac, fleet.table(mode), "alpha", "10.99.0.1")
    do(mac, network.find_steps_back(look(mac), saved))
    assert network_of(mac) == before


def test_loop(tmp_path: Path) -> None:
    """A loop is refused on the bridge with the cable to pull, which opens it; as cables of their own it is welcome."""
    states = make("loop3")
    fleet = Fleet(tmp_path / "closed", states)
    (problem,) = fleet.problems()
    assert "form a loop" in problem
    assert "Pull the cable" in problem
    assert fleet.problems("cable") == []
    assert len(fleet.table("cable")["cables"]) == 3
    unplug(states[2], 2, states[0], 2)
    assert Fleet(tmp_path / "open", states).problems() == []


def test_two_cables_between_two_macs(tmp_path: Path) -> None:
    """Two cables side by side are a loop too."""
    states = make("two")
    plug(states[0], 2, states[1], 2)
    assert "form a loop" in "".join(Fleet(tmp_path, states).problems())


def test_no_cable(tmp_path: Path) -> None:
    """A Mac without a cable is named; one whose cable leads to a stranger, too; alone it needs none."""
    states = make("two")
    unplug(states[0], 1, states[1], 1)
    assert [problem.split(":")[0] for problem in Fleet(tmp_path / "a", states).problems()] == ["alpha", "beta"]
    assert Fleet(tmp_path / "b", states[:1]).problems() == []
    stranger = make("two")[:1]
    other = make("chain3")[2:]
    assert "beta" in Fleet(tmp_path / "c", stranger).table("bridge")["strays"][0]["peer"].lower()
    assert "not one of the inventory's hosts" in "".join(Fleet(tmp_path / "d", [*stranger, *other]).problems())
    assert Fleet(tmp_path / "e", [*stranger, *other]).problems(others=["linux box"]) == []


def test_slow_cable(tmp_path: Path) -> None:
    """A USB cable links at 10 or 20 Gb/s: it is named at both ends."""
    states = make("two")
    for state in states:
        for bus in state.data["thunderbolt"]:
            bus["link_gbps"] = 20
    assert "slower than Thunderbolt" in "".join(Fleet(tmp_path, states).problems())


def test_outside_the_network(tmp_path: Path) -> None:
    """An address outside of thunderbolt_network, or none of the cables', is named with its host."""
    answers = Fleet(tmp_path, make("two")).answers()
    bridge = graph.find_cable_problems(answers, "bridge", NETWORK, {"alpha": "10.99.0.1", "beta": "10.98.0.2"})
    assert bridge == ["beta: address 10.98.0.2 is outside thunderbolt_network 10.99.0.0/24; a bridge is one subnet"]
    cable = graph.find_cable_problems(answers, "cable", NETWORK, {"alpha": "10.99.0.1", "beta": "10.99.0.77"})
    assert len(cable) == 1
    assert cable[0].startswith("beta: address 10.99.0.77 is none of its cables'")


@pytest.mark.parametrize(("space", "expected"), [("10.99.0.0/16", "10.99.2.1"), ("10.99.7.0/24", "10.99.7.9")])
def test_addresses_of_cables(tmp_path: Path, space: str, expected: str) -> None:
    """Each cable has its own /30; a second look, with the hosts' answers in whatever order, gives the same."""
    fleet = Fleet(tmp_path, make("loop3"))
    table = fleet.table("cable", space)
    assert table == fleet.table("cable", space)
    assert table["cables"][2]["a"]["address"] == expected
    every = [cable[side]["address"] for cable in table["cables"] for side in "ab"]
    assert len({*every}) == 6
    assert set(graph.list_addresses(table, "alpha")) == {
        c[s]["address"] for c in table["cables"] for s in "ab" if c[s]["host"] == "alpha"
    }
    assert len(graph.list_addresses(table, "alpha", "beta")) == 1


def test_no_room(tmp_path: Path) -> None:
    """A network too small for the cables is refused."""
    from ansible.errors import AnsibleFilterError

    with pytest.raises(AnsibleFilterError, match="no room for 3 cables"):
        Fleet(tmp_path, make("loop3")).table("cable", "10.99.0.0/29")


@pytest.mark.parametrize("profile", ["", "{", "[]", '{"SPThunderboltDataType": 3}', '{"SPThunderboltDataType": [7]}', "null"])
def test_answers_of_no_mac(profile: str) -> None:
    """What no Mac says is refused with the host's name."""
    from ansible.errors import AnsibleFilterError

    with pytest.raises(AnsibleFilterError, match="alpha"):
        graph.map_cables({"alpha": [profile, "", ""]}, "bridge", NETWORK, {})


SETTINGS = {"sleep": 0, "disksleep": 0, "standby": 0, "womp": 1, "autorestart": 1}


def ask_power(mac: Bench) -> dict[str, Any]:
    pmset = "/usr/bin/pmset"
    limit = mac.ask("/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb")
    state: dict[str, Any] = power.read_power(mac.ask(pmset, "-g", "custom"), mac.ask(pmset, "-g"), limit)
    return state


@pytest.mark.parametrize("topology", ["two", "tb4"])
def test_power_there_and_back(tmp_path: Path, topology: str) -> None:
    """Mains and battery each get their own values back, the lid and the wired limit too."""
    mac = Bench(tmp_path / "mac", make(topology)[0])
    mac.ask("/usr/sbin/sysctl", "iogpu.wired_limit_mb=9000")
    keys = ("power", "sysctl")
    before, saved = {key: mac.state[key] for key in keys}, json.loads(json.dumps(ask_power(mac)))
    steps = power.find_steps(ask_power(mac), SETTINGS, True, 20000)
    assert steps
    do(mac, steps)
    assert power.find_steps(ask_power(mac), SETTINGS, True, 20000) == []
    has_lid = "Battery Power" in saved["profiles"]
    assert ask_power(mac)["sleep_disabled"] == int(has_lid)
    assert all(profile["sleep"] == 0 for profile in ask_power(mac)["profiles"].values())
    do(mac, power.find_steps_back(ask_power(mac), saved, SETTINGS))
    assert {key: mac.state[key] for key in keys} == before
    assert power.find_steps_back(ask_power(mac), saved, SETTINGS) == []


def test_power_leaves_what_is_not_asked(tmp_path: Path) -> None:
    """No limit wanted leaves the limit, and ``power_lid_awake: false`` the lid; another setting changed since stays changed."""
    mac = Bench(tmp_path / "mac", make("two")[0])
    saved = ask_power(mac)
    do(mac, power.find_steps(saved, SETTINGS, False, 0))
    assert (ask_power(mac)["sleep_disabled"], ask_power(mac)["wired_limit_mb"]) == (0, 0)
    mac.ask("/usr/bin/pmset", "-a", "displaysleep", "77")
    do(mac, power.find_steps_back(ask_power(mac), saved, SETTINGS))
    assert {profile["displaysleep"] for profile in ask_power(mac)["profiles"].values()} == {77}
