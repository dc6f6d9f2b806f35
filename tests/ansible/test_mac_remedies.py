"""Failures that only Macs have: made on simulated ones, found by the doctor, named right, and gone after the printed remedy.

The tests stand on each other: one pair of simulated Macs, made a cluster by site.yml, becomes ill and is healed.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.macs.install import read_state
from tests.ansible.macs.lab import up
from tests.ansible.macs.stubs.mac import STATE
from tests.ansible.macs.topology import make
from tests.ansible.playbooks import play
from tests.lab.clinic import Act, Case, treat
from tests.lab.laboratory import Laboratory

SUDO = frozenset((("sudo", "alpha"), ("sudo", "beta")))
USUAL = SUDO | {("short-path", "alpha"), ("short-path", "beta")}
NETWORKSETUP, BRIDGE = "/usr/sbin/networksetup", "Thunderbolt Bridge"
BREW = "/opt/homebrew/bin/brew"
TOOLS = "/Library/Developer/CommandLineTools"
PYTHON = "/Users/Shared/flotilla/env/bin/python"
# What a bridge without its address means for the link is found too, in the link's own words.
LINK = ("no-address", "wrong-subnet", "link-down", "no-carrier", "route", "peer", "mesh", "wrong-link", "packet-filter")


@pytest.fixture(scope="module")
def mac_cluster() -> Iterator[Laboratory]:
    """Two simulated Macs that site.yml has made a cluster, with Homebrew's Open MPI beside the wheel's, which is used.

    ``FLOTILLA_MACS`` names a laboratory of them that is up and provisioned already, to be used and left as it is.
    """
    if lacking := Laboratory.missing():
        pytest.skip(f"a laboratory needs {', '.join(lacking)}")
    if kept := os.environ.get("FLOTILLA_MACS"):
        yield Laboratory.attach(kept)
        return
    states = make("two", tools=True, brew=("python@3.12", "open-mpi"))
    with up(f"clinic-{os.getpid()}", states, provider="wheel") as lab:
        play(lab, "site.yml", "--skip-tags", "artifacts")
        yield lab


def run(host: str, *argv: str) -> Act:
    """Return the act of running a command on a host as root."""
    return lambda lab: lab.host(host).run(list(argv))


def change(host: str, alter: Callable[[dict[str, Any]], object]) -> Act:
    """Return the act of changing what a simulated Mac is."""

    def act(lab: Laboratory) -> None:
        path = Path(f"{lab.host(host).root}{STATE}")
        state = read_state(lab.host(host).root)
        alter(state)
        path.write_text(json.dumps(state))

    return act


def brew(*calls: tuple[str, ...]) -> Act:
    """Return the act of calling alpha's brew, as its owner."""

    def act(lab: Laboratory) -> None:
        host = lab.host("alpha")
        for call in calls:
            host.run([BREW, *call], user=host.user, env={"HOMEBREW_NO_ASK": "1"})

    return act


def disguise(host: str, words: str, instead: str) -> Act:
    """Return the act of putting a script in place of the environment's Python, for calls with these words in them."""
    script = f'#!/bin/sh\ncase "$*" in *{words}*) {instead} ;; esac\nexec {PYTHON}.real "$@"\n'
    put = f"mv {PYTHON} {PYTHON}.real; printf %s {shlex.quote(script)} >{PYTHON}; chmod 755 {PYTHON}"
    return run(host, "sh", "-ec", put)


def keep_off_the_network(lab: Laboratory) -> None:
    """Let alpha's Python find no route to beta, as without the permission; Apple's nc, which is exempt, gets through."""
    denied = json.dumps({"beta": {"ssh": "EHOSTUNREACH", "from": "", "other": ""}})
    disguise("alpha", "socket", f"echo '{denied}'; exit")(lab)
    run("alpha", "sh", "-ec", "printf '#!/bin/sh\\n' >/usr/bin/nc; chmod 755 /usr/bin/nc")(lab)


def bus(state: dict[str, Any], port: int) -> dict[str, Any]:
    found: dict[str, Any] = next(bus for bus in state["thunderbolt"] if bus["receptacle"] == str(port))
    return found


def join_second_ports(lab: Laboratory, connected: bool) -> None:
    """Lay or pull a second cable, between the second ports of both Macs."""
    alpha, beta = (read_state(host.root) for host in lab.hosts)
    for host, own, far in (("alpha", alpha, beta), ("beta", beta, alpha)):
        peer = {**bus(own, 1)["peer"], "domain": bus(far, 2)["domain"]} if connected else None
        change(host, lambda state, peer=peer: bus(state, 2).update(peer=peer))(lab)


SYSTEM = [
    Case(check="no-tools", host="alpha", make=run("alpha", "rm", "-r", TOOLS)),
    Case(check="brew-owner", host="beta", make=run("beta", "chown", "nobody", "/opt/homebrew")),
    Case(check="firewall", host="beta", make=change("beta", lambda state: state.update(firewall=1))),
    Case(check="sleep", host="alpha", make=run("alpha", "/usr/bin/pmset", "-a", "sleep", "10", "disablesleep", "0")),
    Case(check="wired-limit", host="beta", make=run("beta", "/usr/sbin/sysctl", "iogpu.wired_limit_mb=0"), severity="note"),
]

BREWED = [
    Case(
        check="brew-skew",
        host="beta",
        make=run("beta", "mv", "/opt/homebrew/Cellar/prrte/4.1.0_1", "/opt/homebrew/Cellar/prrte/4.1.0"),
    ),
]
GONE = [Case(check="no-brew", host="alpha", make=run("alpha", "rm", BREW))]

SERVICE = [
    Case(check="bridge-service", host="alpha", make=run("alpha", NETWORKSETUP, "-setnetworkserviceenabled", BRIDGE, "off")),
    Case(check="bridge-address", host="beta", make=run("beta", NETWORKSETUP, "-setdhcp", BRIDGE)),
]

# Intel's Python says so itself; what else it says is true.
INTEL = f"""{PYTHON}.real "$@" | sed 's/"platform": "linux"/"platform": "darwin"/'; exit"""
PYTHONS = [
    Case(check="rosetta", host="beta", make=disguise("beta", "importlib.metadata", INTEL), stub="the Python of Intel"),
    Case(
        check="local-network",
        host="alpha",
        make=keep_off_the_network,
        hand=run("alpha", "sh", "-ec", f"mv {PYTHON}.real {PYTHON}; rm /usr/bin/nc"),
    ),
]

CABLE = [
    Case(
        check="cable",
        host="alpha",
        make=change("alpha", lambda state: bus(state, 1).update(link_gbps=20)),
        hand=change("alpha", lambda state: bus(state, 1).update(link_gbps=40)),
    ),
]

LOOP = [
    Case(
        check="loop",
        host="alpha",
        make=lambda lab: join_second_ports(lab, connected=True),
        hand=lambda lab: join_second_ports(lab, connected=False),
    ),
]


@pytest.mark.parametrize(
    ("cases", "also"),
    [
        pytest.param(SYSTEM, (), id="system"),
        pytest.param(BREWED, (), id="brewed"),
        pytest.param(GONE, ("brew-owner", "brew-skew"), id="gone"),
        pytest.param(SERVICE, LINK, id="service"),
        pytest.param(PYTHONS, (), id="pythons"),
        pytest.param(CABLE, (), id="cable"),
        pytest.param(LOOP, (), id="loop"),
    ],
)
def test_a_failure_of_a_mac_is_found_named_and_mended(
    mac_cluster: Laboratory, cases: list[Case], also: tuple[str, ...]
) -> None:
    """Each failure is found on its Mac under its name, nothing else is, and after the remedies nothing is left."""
    print()
    treat(mac_cluster, cases, USUAL, also)


def test_the_path_of_ssh_sessions_can_be_mended(mac_cluster: Laboratory) -> None:
    """The note about the PATH prints a command after which ``ssh HOST mpirun`` is found, and the note is gone."""
    notes = [Case(check="short-path", host=host.name, make=lambda _: None, severity="note") for host in mac_cluster.hosts]
    treat(mac_cluster, notes, SUDO)


def test_another_mpi_on_the_path(mac_cluster: Laboratory) -> None:
    """With the PATH mended, an MPICH that took Open MPI's place there is noted; ``brew unlink mpich`` is what helps."""
    made = brew(("unlink", "open-mpi"), ("install", "mpich"))
    mended = brew(("unlink", "mpich"), ("link", "open-mpi"))
    case = Case(check="other-mpi-on-path", host="alpha", make=made, hand=mended, severity="note")
    treat(mac_cluster, [case], SUDO)
