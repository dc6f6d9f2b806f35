"""What each backend is told: the ring's addresses and ports, JACCL's devices; compared with MLX's own reader."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.cluster.hostfile import Cable, End, read_cables, render_backend
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.nodes import along_cables
from trainer.errors import ClusterError

RUN = Path("/opt/flotilla/runs/20260101-120000-pirate")


def host(name: str, number: int, slots: int = 1, fast: str | None = None) -> Host:
    return Host(name=name, slots=slots, management=f"{name}.local", is_local=False, fast=fast or f"10.99.0.{number}")


def cluster(*hosts: Host) -> Cluster:
    return Cluster(hosts=hosts, network=ipaddress.ip_network("10.99.0.0/16"))


def cable(index: int, a: str, b: str, device: str = "", other: str = "") -> Cable:
    """A cable with the network 10.99.<index>.0/30."""
    return Cable(a=End(a, f"10.99.{index}.1", device), b=End(b, f"10.99.{index}.2", other or device))


A, B, C = host("a", 1), host("b", 2), host("c", 3)
MESH = [cable(0, "a", "b", "rdma_en2", "rdma_en3"), cable(1, "a", "c", "rdma_en1"), cable(2, "b", "c", "rdma_en6", "rdma_en2")]


def render(backend: str, these: Cluster, cables: list[Cable] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    files, env = render_backend(backend, these, RUN, cables or [])
    return {name: json.loads(text) for name, text in files.items()}, env


def read_by_mlx(text: str, folder: Path) -> Any:
    """Return MLX's hostfile object."""
    from mlx._distributed_utils.common import Hostfile

    path = folder / "hosts.json"
    path.write_text(text)
    return Hostfile.from_file(path)


def test_mpi_needs_nothing_more() -> None:
    """Open MPI has its own hostfile; a world of one rank has nobody to talk to."""
    assert render_backend("mpi", cluster(A, B), RUN) == ({}, {})
    assert render_backend("ring", cluster(A), RUN) == ({}, {})


def test_the_ring_on_one_network() -> None:
    """Every rank listens at its host's fast address, each at a port of its own, though two share a host."""
    files, env = render("ring", cluster(host("a", 1, slots=2), B))
    [[first], [second], [third]] = files["ring.json"]
    assert [endpoint.rpartition(":")[0] for endpoint in (first, second, third)] == ["10.99.0.1", "10.99.0.1", "10.99.0.2"]
    ports = [int(endpoint.rpartition(":")[2]) for endpoint in (first, second, third)]
    assert ports == [ports[0], ports[0] + 1, ports[0] + 2]
    assert 20000 <= ports[0] < 30000
    assert env == {"MLX_HOSTFILE": f"{RUN}/ring.json"}


def test_another_run_has_other_ports() -> None:
    """Two runs at the same time on the same hosts do not meet."""
    own, other = (render_backend("ring", cluster(A, B), RUN.with_name(name))[0]["ring.json"] for name in ("one", "two"))
    assert own != other


def test_the_ring_along_cables() -> None:
    """Where every cable is a network of its own, a rank listens at its end of the cable to its left neighbour."""
    files, _ = render("ring", cluster(A, B, C), MESH)
    assert [[e.rpartition(":")[0] for e in rank] for rank in files["ring.json"]] == [
        ["10.99.1.1"],
        ["10.99.0.2"],
        ["10.99.2.2"],
    ]


def test_two_cables_carry_twice_as_much() -> None:
    """Two hosts with two cables get two connections, at ports that all differ."""
    files, _ = render("ring", cluster(A, B), [cable(0, "a", "b"), cable(1, "b", "a")])
    addresses = [[e.rpartition(":")[0] for e in rank] for rank in files["ring.json"]]
    assert addresses == [["10.99.0.1", "10.99.1.2"], ["10.99.0.2", "10.99.1.1"]]
    assert len({e.rpartition(":")[2] for rank in files["ring.json"] for e in rank}) == 4


def test_as_many_connections_to_the_left_as_to_the_right() -> None:
    """A second cable between only two of three hosts stays unused: MLX wants the same number all around."""
    files, _ = render("ring", cluster(A, B, C), [*MESH, cable(3, "a", "b")])
    assert [len(rank) for rank in files["ring.json"]] == [1, 1, 1]


def test_the_ring_on_this_machine() -> None:
    """Ranks of this machine meet at 127.0.0.1: MLX looks no names up."""
    here = Cluster(hosts=(Host(name="here", slots=2, management="localhost", is_local=True),))
    files, _ = render("ring", here)
    assert [rank[0].rpartition(":")[0] for rank in files["ring.json"]] == ["127.0.0.1", "127.0.0.1"]


def test_the_ring_takes_no_names() -> None:
    """A host without a fast address, known by name alone, cannot be in a ring."""
    nameless = Host(name="mini", slots=1, management="mini.local", is_local=False)
    with pytest.raises(ClusterError, match=r"^mini: launch.backend needs an IP address, not mini.local; set address"):
        render("ring", cluster(A, nameless))


def test_jaccl_over_a_full_mesh() -> None:
    """A matrix of devices: row by host, column by peer, nothing on the diagonal; the coordinator is at the head."""
    files, env = render("jaccl", cluster(A, B, C), MESH)
    assert files["rdma.json"] == [
        [None, "rdma_en2", "rdma_en1"],
        ["rdma_en3", None, "rdma_en6"],
        ["rdma_en1", "rdma_en2", None],
    ]
    assert env["MLX_IBV_DEVICES"] == f"{RUN}/rdma.json"
    assert env["MLX_JACCL_COORDINATOR"].startswith("10.99.1.1:2")


@pytest.mark.parametrize(
    ("hosts", "cables", "complaint"),
    [
        ((A, B), [], "needs a cable with RDMA between every two hosts; there is none from a to b, b to a;"),
        ((A, B), [cable(0, "a", "b")], "there is none from a to b, b to a;"),
        ((A, B, C), MESH[:2], "there is none from b to c, c to b;"),
        ((host("a", 1, slots=2), B), MESH, "takes one rank a host; set slots: 1 for a"),
    ],
)
def test_jaccl_where_it_cannot_work(hosts: tuple[Host, ...], cables: list[Cable], complaint: str) -> None:
    """Which cable is missing, or who has too many ranks, is told before anything starts."""
    with pytest.raises(ClusterError) as caught:
        render("jaccl", cluster(*hosts), cables)
    assert str(caught.value).startswith("launch.backend jaccl ")
    assert complaint in str(caught.value)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # MLX's open file
@pytest.mark.parametrize("backend", ["ring", "jaccl"])
def test_mlx_reads_the_hostfile(backend: str, tmp_path: Path) -> None:
    """MLX's own reader takes what we render and finds hosts, addresses and devices in it; its launcher's checks hold."""
    files, _ = render_backend(backend, cluster(A, B, C), RUN, MESH)
    read = read_by_mlx(files["mlx-hostfile.json"], tmp_path)
    assert read.backend == backend
    assert [each.ssh_hostname for each in read.hosts] == ["a.local", "b.local", "c.local"]
    assert read.to_json() == json.loads(files["mlx-hostfile.json"])
    assert all(ipaddress.ip_address(ip) for each in read.hosts for ip in each.ips)
    if backend == "jaccl":  # what mlx.launch requires, and hands to the ranks in MLX_IBV_DEVICES
        assert all(len(each.rdma) == len(read.hosts) and each.rdma[i] is None for i, each in enumerate(read.hosts))
        assert [each.rdma for each in read.hosts] == json.loads(files["rdma.json"])
    else:  # what mlx.launch writes into MLX_HOSTFILE, but for the ports
        ours = [[e.rpartition(":")[0] for e in rank] for rank in json.loads(files["ring.json"])]
        assert [each.ips for each in read.hosts] == ours


def state(**changes: Any) -> dict[str, Any]:
    ends = {
        "a": {"host": "a", "port": "Thunderbolt 1", "device": "en2", "address": "10.99.0.1", "rdma_device": "rdma_en2"},
        "b": {"host": "b", "port": "Thunderbolt 2", "device": "en3", "address": "10.99.0.2", "rdma_device": "rdma_en3"},
    }
    return {"version": 1, "mode": "cable", "cables": [{**ends, "speed_gbps": 80, "rdma": True}], **changes}


def test_cables_of_provisioning() -> None:
    """thunderbolt.json in cable mode: addresses and devices of both ends; no devices unless both ends are ready."""
    assert read_cables(state()) == [Cable(a=End("a", "10.99.0.1", "rdma_en2"), b=End("b", "10.99.0.2", "rdma_en3"))]
    unready = state(cables=[{**state()["cables"][0], "rdma": False}])
    assert read_cables(unready) == [Cable(a=End("a", "10.99.0.1"), b=End("b", "10.99.0.2"))]
    assert read_cables(None) == read_cables(state(mode="bridge")) == read_cables({}) == []
    with pytest.raises(ClusterError, match=r"^state/thunderbolt.json is not as ./inv provision writes it: KeyError"):
        read_cables(state(cables=[{"a": {}}]))


def test_addresses_along_cables() -> None:
    """Where every cable is a network of its own, each host is reached over its cable to the head, or not at all."""
    chain = [cable(0, "a", "b"), cable(1, "b", "c")]
    assert [each.fast for each in along_cables(cluster(A, B, C), chain).hosts] == ["10.99.0.1", "10.99.0.2", None]
    assert [each.fast for each in along_cables(cluster(B, A, C), chain).hosts] == ["10.99.0.2", "10.99.0.1", "10.99.1.2"]
