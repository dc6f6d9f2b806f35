"""Interfaces and their counters, from what Linux and macOS print."""

from __future__ import annotations

import json
import sys

import pytest

from trainer.cluster.traffic import sum_traffic
from trainer.interfaces import (
    Interface,
    count_since,
    find_on_network,
    find_owner,
    list_interfaces,
    outward,
    parse_ifconfig,
    parse_ip_addr,
    parse_netstat,
    parse_proc_net_dev,
    read_counters,
)

PROC_NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000       10    0    0    0     0          0         0     1000       10    0    0    0     0       0          0
  tb0:44829691   30000    0    0    0     0          0         0 56005675   40000    0    0    0     0       0          0
"""
NETSTAT = """\
Name       Mtu   Network       Address            Ipkts Ierrs     Ibytes    Opkts Oerrs     Obytes  Coll
lo0        16384 <Link#1>                        133204     0   27463527   133204     0   27463527     0
lo0        16384 127           127.0.0.1         133204     -   27463527   133204     -   27463527     -
gif0*      1280  <Link#2>                             0     0          0        0     0          0     0
en0        1500  <Link#11>   84:2f:57:44:d6:4f  5012345     0 6123456789  1234567     0  345678901     0
en0        1500  192.168.1     192.168.1.7      5012345     - 6123456789  1234567     -  345678901     -
bridge0    9000  <Link#12>   36:6a:0f:f5:b0:80    12345     0  123456789    54321     0  987654321     0
"""
IFCONFIG = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
	inet 127.0.0.1 netmask 0xff000000
	inet6 ::1 prefixlen 128
	inet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
	ether 84:2f:57:44:d6:4f
	inet 192.168.1.7 netmask 0xffffff00 broadcast 192.168.1.255
	media: autoselect
	status: active
en2: flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 9000
	status: active
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 9000
	options=63<RXCSUM,TXCSUM,TSO4,TSO6>
	ether 36:6a:0f:f5:b0:80
	inet 10.25.0.1 netmask 0xffffff00 broadcast 10.25.0.255
	Configuration:
		id 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0
		maxage 0 holdcnt 0 proto stp maxaddr 100 timeout 1200
	member: en2 flags=3<LEARNING,DISCOVER>
		ifmaxaddr 0 port 11 priority 0 path cost 0
	media: autoselect
	status: active
bridge1: flags=8822<BROADCAST,SMART,SIMPLEX,MULTICAST> mtu 1500
en5: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
	media: <unknown type>
	status: inactive
"""
IP_ADDR = json.dumps(
    [
        {
            "ifname": "lo",
            "flags": ["LOOPBACK", "UP"],
            "operstate": "UNKNOWN",
            "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}],
        },
        {
            "ifname": "tb0",
            "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
            "operstate": "UP",
            "addr_info": [{"local": "10.99.0.1", "prefixlen": 24}, {"local": "fe80::1", "prefixlen": 64}],
        },
        {"ifname": "tb1", "flags": ["NO-CARRIER", "UP"], "operstate": "DOWN", "master": "br0", "addr_info": []},
        {},
    ]
)


def test_counters_of_linux() -> None:
    """/proc/net/dev, also where no blank follows the colon."""
    assert parse_proc_net_dev(PROC_NET_DEV) == {
        "lo": {"rx": 1000, "tx": 1000},
        "tb0": {"rx": 44829691, "tx": 56005675},
    }


def test_counters_of_macos() -> None:
    """Only the line of the link counts, whether or not it has an address of its own; a star is no part of the name."""
    assert parse_netstat(NETSTAT) == {
        "lo0": {"rx": 27463527, "tx": 27463527},
        "gif0": {"rx": 0, "tx": 0},
        "en0": {"rx": 6123456789, "tx": 345678901},
        "bridge0": {"rx": 123456789, "tx": 987654321},
    }


def test_interfaces_of_linux() -> None:
    """Addresses with their width, the cable's state, and whose member an interface is."""
    assert parse_ip_addr(IP_ADDR) == [
        Interface("lo", ("127.0.0.1/8",), is_loopback=True),
        Interface("tb0", ("10.99.0.1/24", "fe80::1/64")),
        Interface("tb1", is_up=False, master="br0"),
    ]


def test_interfaces_of_macos() -> None:
    """The same from ifconfig: no cable is inactive, the bridge names its members."""
    found = {interface.name: interface for interface in parse_ifconfig(IFCONFIG)}
    assert list(found) == ["lo0", "en0", "en2", "bridge0", "bridge1", "en5"]
    assert found["lo0"] == Interface("lo0", ("127.0.0.1/8", "::1/128", "fe80::1/64"), is_loopback=True)
    assert found["bridge0"] == Interface("bridge0", ("10.25.0.1/24",))
    assert found["en2"].master == "bridge0"
    assert [name for name, interface in found.items() if not interface.is_up] == ["bridge1", "en5"]


@pytest.mark.parametrize(("address", "owner"), [("10.25.0.1", "bridge0"), ("192.168.1.7", "en0"), ("10.25.0.2", None)])
def test_who_owns_an_address(address: str, owner: str | None) -> None:
    """An address belongs to the interface that has it, not to one in whose network it lies."""
    found = find_owner(address, parse_ifconfig(IFCONFIG))
    assert (found.name if found else None) == owner


def test_a_bridge_counts_once() -> None:
    """What goes over the Thunderbolt Bridge goes over its members too; loopback never leaves the machine."""
    counters = {name: {"rx": 1, "tx": 1} for name in ("lo0", "en0", "en2", "bridge0", "utun3")}
    assert list(outward(counters, parse_ifconfig(IFCONFIG))) == ["en0", "bridge0", "utun3"]


def test_interfaces_on_a_network() -> None:
    """In cable mode several interfaces lie in the fast network."""
    interfaces = [
        Interface("en2", ("10.99.0.1/30",)),
        Interface("en3", ("10.99.1.1/30",)),
        Interface("en0", ("192.168.1.7/24",)),
    ]
    assert find_on_network("10.99.0.0/16", interfaces) == ["en2", "en3"]


def test_what_was_carried_between_two_readings() -> None:
    """An interface that came in between counts in full, one whose counter was reset counts nothing."""
    before = {"a": {"rx": 5, "tx": 7}, "c": {"rx": 100, "tx": 100}}
    after = {"a": {"rx": 6, "tx": 9}, "b": {"rx": 3, "tx": 4}, "c": {"rx": 1, "tx": 1}}
    assert count_since(before, after) == {"a": {"rx": 1, "tx": 2}, "b": {"rx": 3, "tx": 4}, "c": {"rx": 0, "tx": 0}}


def told(rank: int, host: str, when: str, fast: int, slow: int) -> dict[str, object]:
    counters = {"tb0": {"rx": fast, "tx": fast}, "wifi0": {"rx": slow, "tx": slow}}
    return {
        "event": "traffic",
        "rank": rank,
        "when": when,
        "host": host,
        "network": "10.99.0.0/24",
        "fast": ["tb0"],
        "counters": counters,
    }


def test_the_share_of_the_fast_link() -> None:
    """All hosts' bytes between start and end count, also where two hosts bear one name; half a pair counts nothing."""
    events = [
        told(0, "a", "start", 100, 50),
        told(2, "b", "start", 0, 0),
        told(3, "c", "start", 0, 0),
        told(0, "a", "end", 1090, 60),
        told(2, "b", "end", 990, 10),
    ]
    traffic = sum_traffic(events)
    assert traffic is not None
    assert traffic["share"] == 0.99
    assert traffic["bytes"] == 4000
    assert traffic["hosts"]["a"] == {"tb0": {"rx": 990, "tx": 990}, "wifi0": {"rx": 10, "tx": 10}}


def test_the_traffic_of_several_starts() -> None:
    """After a loss a host may have another's rank; what each start carried adds up, and what had no end counts nothing."""
    events = [
        *(told(0, "a", "start", 0, 0), told(1, "b", "start", 500, 500), told(2, "c", "start", 0, 0)),
        *(
            told(0, "a", "start", 5, 0),
            told(1, "c", "start", 7000, 3),
            told(0, "a", "end", 15, 0),
            told(1, "c", "end", 7010, 3),
        ),
        *(told(0, "a", "start", 20, 0), told(0, "a", "end", 30, 0)),
    ]
    traffic = sum_traffic(events)
    assert traffic is not None
    assert traffic["hosts"] == {
        "a": {"tb0": {"rx": 20, "tx": 20}, "wifi0": {"rx": 0, "tx": 0}},
        "c": {"tb0": {"rx": 10, "tx": 10}, "wifi0": {"rx": 0, "tx": 0}},
    }
    assert (traffic["bytes"], traffic["share"]) == (60, 1.0)


def test_no_traffic_no_share() -> None:
    """Runs on one host tell of no traffic; a run that carried nothing has no share."""
    assert sum_traffic([]) is None
    assert sum_traffic([told(0, "a", "start", 1, 1)]) is None
    idle = sum_traffic([told(0, "a", "start", 1, 1), told(0, "a", "end", 1, 1)])
    assert idle is not None
    assert idle["share"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine() -> None:
    """Of a real machine: there is a loopback interface with an address, and it has counters."""
    owner = find_owner("127.0.0.1", list_interfaces())
    assert owner is None or (owner.is_loopback and owner.name in read_counters())
