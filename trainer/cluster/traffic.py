"""Which link carried what: the ranks' ``traffic`` events added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.events import Event
from trainer.interfaces import count_since


def sum_traffic(events: list[Event]) -> dict[str, Any] | None:
    """Return what the hosts' interfaces carried between the ``traffic`` events of start and end, and the share of the
    network that was meant to carry it; None unless there is a pair.
    """
    starts: dict[tuple[int, str], Event] = {}
    hosts: dict[str, dict[str, dict[str, int]]] = {}
    total = on_fast = 0
    network = ""
    for event in events:  # in their order: after a loss the same host may have another rank, and its start is a new one
        who = event["rank"], event["host"]
        if event["when"] == "start":
            starts[who] = event
        elif start := starts.pop(who, None):
            carried = count_since(start["counters"], event["counters"])
            _add(hosts.setdefault(event["host"], {}), carried)
            amounts = {name: sum(ways.values()) for name, ways in carried.items()}
            total += sum(amounts.values())
            on_fast += sum(amounts.get(name, 0) for name in event["fast"])
            network = network or event["network"]
    if not hosts:
        return None
    return {"network": network, "share": on_fast / total if total else None, "bytes": total, "hosts": hosts}


def _add(sums: dict[str, dict[str, int]], carried: Mapping[str, Mapping[str, int]]) -> None:
    for name, ways in carried.items():
        own = sums.setdefault(name, dict.fromkeys(ways, 0))
        for way, amount in ways.items():
            own[way] += amount
