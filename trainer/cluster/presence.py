"""Which hosts of a cluster can take part now, and what has become of the others: asked after a loss, and while waiting."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from trainer.cluster.call import ask
from trainer.cluster.hostfile import Cables, read_cables
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.nodes import Fleet, find_ways
from trainer.cluster.ssh import on_all
from trainer.errors import ClusterError

_TIMEOUT_S = 8.0  # ssh itself gives a host 5 s to greet
_WITHOUT_ANSWER = re.compile(r"has not answered|timed out|banner exchange")
_PEER_NAMED = re.compile(r"(\S+) \(\S+\) (?:does not answer|refuses)")

Ask = Callable[[Host], Sequence[str]]  # what keeps a host from the fast link, or from others over it, in words
Absent = Callable[[Cluster, Mapping[str, str]], Mapping[str, str]]  # as `find_absent`: a cluster, and who is unreachable


def find_absent(
    cluster: Cluster, unreachable: Mapping[str, str], cables: Cables = (), ask_host: Ask | None = None
) -> dict[str, str]:
    """Return the hosts that cannot take part, each with the reason in words; all are asked at the same time.

    A host is absent if it does not answer over the management network, if its own fast link is down, or if most of the others
    do not reach it over theirs. If the link of all is down, as that of a Mac whose one cable leads to another that is off, the
    first of them stays: alone it needs none. ``cables`` are the hosts' own, where each is a network. Those that are known to be
    ``unreachable``, with ssh's error, are not asked again.
    """
    asked = [host for host in cluster.hosts if host.name not in unreachable]
    look = ask_host or _make_look(dataclasses.replace(cluster, hosts=tuple(asked)), cables)
    hosts = [host for host in asked if not (cluster.is_local and host.is_local)]
    reasons = {name: describe_silence(error) for name, error in unreachable.items()}
    complaints: dict[str, Sequence[str]] = {}

    def examine(host: Host) -> None:
        try:
            complaints[host.name] = look(host)
        except ClusterError as error:
            reasons[host.name] = describe_silence(str(error))

    on_all(hosts, examine)
    own = {name: [text for text in problems if not _PEER_NAMED.match(text)] for name, problems in complaints.items()}
    cut_off = {name: problems[0] for name, problems in own.items() if problems}
    answering = [host.name for host in cluster.hosts if host.name not in reasons]
    if len(cut_off) == len(answering) and cut_off:
        del cut_off[answering[0]]
    reasons |= cut_off
    return {**reasons, **_outvoted(complaints, reasons)}


def by_link_of(fleet: Fleet) -> Absent:
    """Return what finds absent hosts by the link that the runs of ``fleet`` take: over the slow one, none has to be up."""
    cables = read_cables(fleet.head.cables)
    if fleet.is_slow:
        return lambda cluster, unreachable: find_absent(cluster.over_management(None), unreachable)
    return lambda cluster, unreachable: find_absent(cluster, unreachable, cables)


def describe_silence(error: str) -> str:
    """Return what it means that ssh came to nothing."""
    if "Connection refused" in error:
        return "is on, but takes no connections (it may be starting)"
    if _WITHOUT_ANSWER.search(error):
        return "does not answer: it is asleep, hangs, or is off the network"
    return "is unreachable: it is switched off, asleep, or off the network"


def without(cluster: Cluster, absent: Mapping[str, str]) -> Cluster:
    """Return the cluster of the hosts that are there; the first of them is its head."""
    return dataclasses.replace(cluster, hosts=tuple(host for host in cluster.hosts if host.name not in absent))


def tell_absent(absent: Mapping[str, str]) -> str:
    """Return the absent hosts in one sentence."""
    return "; ".join(f"{name} {reason}" for name, reason in absent.items())


def _make_look(cluster: Cluster, cables: Cables) -> Ask:
    """Return what asks a host how its fast link is, to those of ``cluster``."""

    def look(host: Host) -> Sequence[str]:
        # a cable that leads to a host that is off says nothing of its other end
        own = [host.fast] if host.fast and not cables else []
        request = {"verb": "survey", "root": str(cluster.root), "own": own, "peers": find_ways(host, cluster, cables)}
        problems: Sequence[str] = ask(host, cluster.root, request, _TIMEOUT_S)["link"]
        return problems

    return look


def _outvoted(complaints: Mapping[str, Sequence[str]], reasons: Mapping[str, str]) -> dict[str, str]:
    """Return the hosts that are there by all other signs, but that the others do not reach, the most named one first."""
    out: dict[str, str] = {}
    while True:
        gone = {*reasons, *out}
        named = Counter(
            match[1]
            for name, problems in complaints.items()
            for problem in problems
            if name not in gone and (match := _PEER_NAMED.match(problem)) and match[1] not in gone
        )
        if not named:
            return out
        # of two that do not reach each other, the later one in the inventory goes
        most = max(named.values())
        worst = [name for name in complaints if named[name] == most][-1]
        out[worst] = "is not reached by the others over the fast link"
