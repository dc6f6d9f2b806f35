"""The roles' branches for Macs, on simulated ones: stubs that replay recorded outputs, remember changes, and can be booted.

Every topology converges, foresees in check mode what it then changes, changes nothing when it is repeated after a boot,
touches no network service but its own, and is put back by teardown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.ansible.macs.install import read_calls, read_state
from tests.ansible.macs.lab import up, write_inventory
from tests.ansible.macs.models import MacState
from tests.ansible.macs.topology import make
from tests.ansible.playbooks import changes, describe_host, play, play_json
from tests.lab.laboratory import LabHost, Laboratory

TAGS = ("--tags", "power,thunderbolt")
BRIDGE = "Thunderbolt Bridge"
REMEMBERED = ("services", "interfaces", "bridges", "mtus", "power", "sysctl")
PYTHON = ("python@3.12",)
MakeLab = Callable[..., Laboratory]


@pytest.fixture
def mac_lab() -> Iterator[MakeLab]:
    """Return what brings up the Macs of a topology, with Homebrew and Python if nothing else is said."""
    if lacking := Laboratory.missing():
        pytest.skip(f"a laboratory needs {', '.join(lacking)}")
    labs: list[Laboratory] = []

    def build(states: list[MacState], mode: str) -> Laboratory:
        labs.append(up(f"macs-{os.getpid()}", states, mode))
        return labs[-1]

    yield build
    for lab in labs:
        lab.down()


def remembered(lab: Laboratory) -> dict[str, dict[str, Any]]:
    """What teardown has to give back."""
    return {host.name: {key: read_state(host.root)[key] for key in REMEMBERED} for host in lab.hosts}


def services(host: LabHost) -> dict[str, Any]:
    return {service["name"]: service for service in read_state(host.root)["services"]}


def address_at(host: LabHost, device: str) -> list[str]:
    return [inet["address"] for inet in read_state(host.root)["interfaces"][device]["inet"]]


def boot(lab: Laboratory) -> None:
    """What ifconfig and sysctl set is gone; preferences hold and LaunchDaemons run."""
    for host in lab.hosts:
        host.run(["/usr/local/lib/flotilla-mac/boot"])


def cables(host: LabHost) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((host.root / "Users/Shared/flotilla/state/thunderbolt.json").read_text())
    return table


def converge(lab: Laboratory) -> None:
    """Check, provision, boot, provision again; and look at what must never change."""
    others = {host.name: {k: v for k, v in services(host).items() if k != BRIDGE} for host in lab.hosts}
    state = remembered(lab)
    predicted = changes(play_json(lab, "site.yml", "--check", *TAGS))
    assert remembered(lab) == state
    done = changes(play_json(lab, "site.yml", *TAGS))
    assert done == predicted
    assert {host for host, _ in done} == {host.name for host in lab.hosts}
    for host in lab.hosts:
        now = {name: value for name, value in services(host).items() if name != BRIDGE and not name.startswith("Flotilla ")}
        assert now == others[host.name]
    boot(lab)
    assert changes(play_json(lab, "site.yml", *TAGS)) == set()


def put_back(lab: Laboratory, before: dict[str, dict[str, Any]]) -> None:
    """Tear down, and compare with what was there."""
    play(lab, "teardown.yml", *TAGS)
    assert remembered(lab) == before


@pytest.mark.parametrize("topology", ["chain3", "tb4", "dock", "dhcp"])
def test_bridge(mac_lab: MakeLab, topology: str) -> None:
    """One subnet on the Thunderbolt Bridge, which comes last in the order of services."""
    lab = mac_lab(make(topology, tools=True, brew=PYTHON), "bridge")
    before = remembered(lab)
    converge(lab)
    for host in lab.hosts:
        assert address_at(host, "bridge0") == [host.fast_address]
        assert list(services(host))[-1] == BRIDGE
        assert services(host)[BRIDGE]["ipv4"]["router"] == ""
        assert cables(host)["mode"] == "bridge"
        assert read_state(host.root)["power"]["profiles"]["AC Power"]["sleep"] == 0
    put_back(lab, before)


def test_two_of_three_cables_in_ports_with_odd_names(mac_lab: MakeLab) -> None:
    """Thunderbolt 2 of an M5 is en6: ports are found by name, and the same table is written on both Macs."""
    lab = mac_lab(make("m5_names", tools=True, brew=PYTHON), "cable")
    before = remembered(lab)
    converge(lab)
    alpha, beta = lab.hosts
    (cable,) = cables(alpha)["cables"]
    assert cables(beta) == cables(alpha)
    assert (cable["a"]["port"], cable["a"]["device"], cable["b"]["device"]) == ("Thunderbolt 2", "en6", "en2")
    assert (cable["rdma"], cable["a"]["rdma_device"], cable["b"]["rdma_device"]) == (True, "rdma_en6", "rdma_en2")
    assert address_at(alpha, "en6") == [cable["a"]["address"]] == [f"10.99.{lab.number}.1"]
    put_back(lab, before)


@pytest.mark.parametrize("topology", ["loop3", "tb5"])
def test_cables(mac_lab: MakeLab, topology: str) -> None:
    """A network for each cable; the bridge is off, down and empty of ports, also after a boot."""
    lab = mac_lab(make(topology, tools=True, brew=PYTHON), "cable")
    before = remembered(lab)
    converge(lab)
    for host in lab.hosts:
        own = [cable[side] for cable in cables(host)["cables"] for side in "ab" if cable[side]["host"] == host.name]
        assert own
        for end in own:
            assert services(host)[f"Flotilla {end['port']}"]["ipv4"]["mask"] == "255.255.255.252"
            assert address_at(host, end["device"]) == [end["address"]]
        bridge = read_state(host.root)["interfaces"]["bridge0"]
        assert (bridge["members"], bridge["up"], services(host)[BRIDGE]["enabled"]) == ([], False, False)
    put_back(lab, before)


def test_loop_on_the_bridge_is_refused(mac_lab: MakeLab) -> None:
    """Three cables between three Macs: the one to pull is named, and no Mac is changed."""
    lab = mac_lab(make("loop3", tools=True, brew=PYTHON), "bridge")
    done = play(lab, "site.yml", *TAGS, check=False)
    assert done.returncode != 0
    assert "form a loop" in done.stdout
    assert "Pull the cable" in done.stdout
    for host in lab.hosts:
        assert not [
            call for call in read_calls(host.root) if call["argv"][0] in ("networksetup", "ifconfig") and call["changed"]
        ]


def test_no_bridge(mac_lab: MakeLab) -> None:
    """A Mac whose bridge was deleted has its one cable's port addressed; the bridge does not come back."""
    lab = mac_lab(make("no_bridge", tools=True, brew=PYTHON), "bridge")
    before = remembered(lab)
    converge(lab)
    for host in lab.hosts:
        assert services(host)["Flotilla Thunderbolt 1"]["ipv4"]["address"] == host.fast_address
        assert "bridge0" not in read_state(host.root)["interfaces"]
    put_back(lab, before)


@pytest.mark.timeout(1800)  # a dozen playbooks on two machines, nine minutes where others compute too
def test_from_the_box_to_a_cluster(mac_lab: MakeLab) -> None:
    """Two Macs without anything: tools, Homebrew, Python, Open MPI, cluster; verified by an all-reduce; torn down."""
    lab = mac_lab(make("two"), "bridge")
    before, files = remembered(lab), {host.name: describe_host(host) for host in lab.hosts}
    foreseen = play(lab, "site.yml", "--check", "--tags", "homebrew", check=False).stdout
    assert foreseen.count("would install Homebrew in /opt/homebrew") == foreseen.count("cannot be foreseen without") // 2 == 2
    assert {host.name: describe_host(host) for host in lab.hosts} == files
    play(lab, "site.yml", "--tags", "homebrew")
    for host in lab.hosts:
        assert not [path for path in host.run(["ls", "/etc/sudoers.d"]).stdout.split() if "flotilla" in path]
    predicted = changes(play_json(lab, "site.yml", "--check", "--skip-tags", "artifacts"))
    done = changes(play_json(lab, "site.yml", "--skip-tags", "artifacts"))
    assert {change for change in done if change[0] != "localhost"} == {c for c in predicted if c[0] != "localhost"}
    assert changes(play_json(lab, "site.yml", "--skip-tags", "artifacts")) == set()
    assert changes(play_json(lab, "site.yml", "--check", "--skip-tags", "artifacts")) == set()
    assert {
        host.run(["/opt/homebrew/bin/brew", "list", "--versions", "open-mpi"], user=host.user).stdout for host in lab.hosts
    } == {"open-mpi 5.0.10\n"}
    write_inventory(lab, "bridge", provider="wheel")  # the simulated Homebrew has no libmpi that can be loaded
    play(lab, "site.yml", "--tags", "open_mpi")
    assert "2 ranks, fast link: " in play(lab, "verify.yml").stdout
    play(lab, "teardown.yml")
    assert changes(play_json(lab, "teardown.yml")) == set()
    assert remembered(lab) == before
    for host in lab.hosts:
        now, then = describe_host(host), files[host.name]
        gone = ("./opt/homebrew", "./Library/Developer", "./var/db", "content of /var/db", "./usr/local/lib/flotilla-mac")
        differs = {key for key in now.keys() | then.keys() if now.get(key) != then.get(key) and not key.startswith(gone)}
        assert differs == set()
