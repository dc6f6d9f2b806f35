"""Mustering the hosts: what they say decides which link is taken, or that nothing starts. The hosts' answers are made up."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import PurePosixPath
from typing import Any

import pytest

from trainer.cluster import nodes, presence
from trainer.cluster.call import NotProvisionedError
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.nodes import muster
from trainer.errors import ClusterError

NAMES = ("alpha", "beta", "gamma")
HOSTS = tuple(
    Host(name=name, slots=1, management=f"10.77.0.{n}", is_local=False, fast=f"10.99.0.{n}") for n, name in enumerate(NAMES, 1)
)
CLUSTER = Cluster(
    hosts=HOSTS, network=ipaddress.ip_network("10.99.0.0/24"), root=PurePosixPath("/opt/flotilla"), source="pair.yml"
)
DOWN = "tb0, which has the address 10.99.0.2, is down or has no cable"


def answer(host: Host, **changes: Any) -> dict[str, Any]:
    """Return what a healthy node says."""
    number = host.management.rpartition(".")[2]
    interfaces = [
        {"name": "wifi0", "addresses": [f"10.77.0.{number}/24"], "is_up": True, "is_loopback": False, "master": ""},
        {"name": "tb0", "addresses": [f"10.99.0.{number}/24"], "is_up": True, "is_loopback": False, "master": ""},
    ]
    node = {"system": "Linux", "mpirun": "/opt/flotilla/env/bin/mpirun", "libmpi": "/l", "open_mpi": "5.0.11"}
    return {
        "node": node,
        "host_name": host.name,
        "uid": 1000,
        "reached_at": host.management,
        "interfaces": interfaces,
        "link": [],
        "cables": None,
        **changes,
    }


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets what hosts answer beside what healthy ones do; an exception is raised."""
    said: dict[str, dict[str, Any] | Exception] = {}
    asked: list[tuple[str, dict[str, Any]]] = []

    def ask(host: Host, root: PurePosixPath, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        asked.append((host.name, request))
        own = said.get(host.name, {})
        if isinstance(own, Exception):
            raise own
        return answer(host, **own)

    monkeypatch.setattr(nodes, "ask", ask)
    said_by_name: Any = lambda **own: said.update(own)  # noqa: E731
    said_by_name.asked = asked
    return said_by_name


def refuse(cluster: Cluster = CLUSTER) -> str:
    with pytest.raises(ClusterError) as caught:
        muster(cluster, allow_slow_link=False, say=lambda _: None)
    return str(caught.value)


def test_a_healthy_cluster(say: Any) -> None:
    """Every host is asked for the ways to all others; the fast addresses and their network stay."""
    fleet = muster(CLUSTER, allow_slow_link=False, say=pytest.fail)
    assert (fleet.cluster, fleet.is_slow) == (CLUSTER, False)
    assert str(fleet.python) == "/opt/flotilla/env/bin/python"
    asked = dict(say.asked)
    assert asked["beta"]["own"] == ["10.99.0.2"]
    assert asked["beta"]["peers"] == [("alpha", "10.99.0.1", 22, "10.99.0.2"), ("gamma", "10.99.0.3", 22, "10.99.0.2")]


def test_a_fast_link_that_is_down(say: Any) -> None:
    """Nothing starts; all problems of all hosts are listed, with both ways on."""
    say(beta={"link": [DOWN]}, alpha={"link": ["beta (10.99.0.2) does not answer over tb0: timed out"]})
    assert refuse() == (
        "the fast link is not up; nothing was sent or started:\n"
        "  alpha: beta (10.99.0.2) does not answer over tb0: timed out\n"
        f"  beta: {DOWN}\n"
        "./inv doctor -i pair.yml says how to mend it; --allow-slow-link trains over 10.77.0.0/24"
    )


def test_one_host_needs_no_link(say: Any) -> None:
    """A host alone, as after a loss, may have lost its only cable; it is asked nothing of it, and its ranks stay on it."""
    say(alpha={"link": [DOWN]})
    fleet = muster(dataclasses.replace(CLUSTER, hosts=HOSTS[:1]), allow_slow_link=False, say=pytest.fail)
    assert (fleet.cluster.hosts[0].address, fleet.cluster.network, fleet.is_slow) == ("10.77.0.1", None, False)


def test_the_slow_link_if_allowed(say: Any) -> None:
    """The management addresses and their network take over, and the person is told why."""
    say(beta={"link": [DOWN]})
    told: list[str] = []
    fleet = muster(CLUSTER, allow_slow_link=True, say=told.append)
    assert fleet.is_slow
    assert [host.address for host in fleet.cluster.hosts] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    assert str(fleet.cluster.network) == "10.77.0.0/24"
    assert told == [f"the fast link is not up, so the gradients go over 10.77.0.0/24:\n  beta: {DOWN}"]


def test_hosts_are_missed_by_the_link_that_they_take(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes over the slow link misses nobody whose fast link is down; one that goes over the fast link does."""

    def ask(_host: Host, _root: object, request: dict[str, Any], _timeout_s: float) -> dict[str, Any]:
        return {"link": [DOWN] if "10.99.0.2" in request["own"] else []}

    monkeypatch.setattr(presence, "ask", ask)
    say(beta={"link": [DOWN]})
    slow = muster(CLUSTER, allow_slow_link=True, say=lambda _: None)
    assert presence.by_link_of(slow)(CLUSTER, {}) == {}
    say(beta={"link": []})
    fast = muster(CLUSTER, allow_slow_link=True, say=pytest.fail)
    assert presence.by_link_of(fast)(CLUSTER, {}) == {"beta": DOWN}


def test_no_fast_link_at_all(say: Any) -> None:
    """An inventory without any fast address means the ordinary network; that is said, not refused."""
    plain = dataclasses.replace(CLUSTER, hosts=tuple(dataclasses.replace(host, fast=None) for host in HOSTS), network=None)
    told: list[str] = []
    fleet = muster(plain, allow_slow_link=False, say=told.append)
    assert str(fleet.cluster.network) == "10.77.0.0/24"
    assert told == ["no host has an address on a fast link in the inventory: the gradients go over 10.77.0.0/24"]


def test_a_host_without_a_fast_address_among_others(say: Any) -> None:
    """One forgotten address would draw all traffic to the slow network: refused."""
    forgotten = dataclasses.replace(CLUSTER, hosts=(*HOSTS[:2], dataclasses.replace(HOSTS[2], fast=None)))
    assert "  gamma: has no address in the inventory" in refuse(forgotten)


def test_all_that_do_not_answer_are_named(say: Any) -> None:
    """Unreachable hosts and bare ones together, with what to do."""
    say(
        alpha=ClusterError("alpha: cannot be reached by ssh (No route to host); …"),
        beta=NotProvisionedError("no python"),
        gamma={"node": None},
    )
    assert refuse() == (
        "alpha: cannot be reached by ssh (No route to host); …\n"
        "beta, gamma: not provisioned (no /opt/flotilla/node.json or no Python there); run ./inv provision -i pair.yml"
    )


@pytest.mark.parametrize("node", [{}, {"system": "Linux"}, [], "x"])
def test_a_node_json_of_another_kind(say: Any, node: Any) -> None:
    """What provisioning wrote is not what we read: the host is named."""
    say(beta={"node": node})
    assert refuse().startswith("beta: its node.json lacks ")


def test_two_versions_of_open_mpi(say: Any) -> None:
    """They would not find each other, or crash: refused with who has which."""
    say(beta={"node": {**answer(HOSTS[1])["node"], "open_mpi": "5.0.10"}})
    assert refuse() == (
        "Open MPI is not the same on all hosts: 5.0.11 on alpha, 5.0.10 on beta, 5.0.11 on gamma; "
        "set open_mpi_provider for all and provision again"
    )


def test_two_hosts_of_one_name(say: Any) -> None:
    """MPI would take them for one machine."""
    say(beta={"host_name": "alpha"})
    assert refuse() == "alpha, beta: all call themselves alpha, which MPI takes for one machine; give each a host name"


def test_cables_that_are_networks_of_their_own(say: Any) -> None:
    """In cable mode each way has its own addresses, and the hosts' are those of their cables to the head."""
    cables = [
        {"a": {"host": "alpha", "address": "10.99.0.1"}, "b": {"host": "beta", "address": "10.99.0.2"}},
        {"a": {"host": "alpha", "address": "10.99.1.1"}, "b": {"host": "gamma", "address": "10.99.1.2"}},
        {"a": {"host": "beta", "address": "10.99.2.1"}, "b": {"host": "gamma", "address": "10.99.2.2"}},
    ]
    say(alpha={"cables": {"mode": "cable", "cables": cables}})
    fleet = muster(dataclasses.replace(CLUSTER, mode="cable"), allow_slow_link=False, say=pytest.fail)
    assert [host.fast for host in fleet.cluster.hosts] == ["10.99.0.1", "10.99.0.2", "10.99.1.2"]
    asked = dict(say.asked)
    assert asked["gamma"]["own"] == ["10.99.1.2", "10.99.2.2"]
    assert asked["gamma"]["peers"] == [("alpha", "10.99.1.1", 22, "10.99.1.2"), ("beta", "10.99.2.1", 22, "10.99.2.2")]
