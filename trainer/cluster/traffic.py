"""Which link carried what: the ranks' ``traffic`` events added up."""

from __future__ import annotations

from typing import Any

from trainer.events import Event
from trainer.interfaces import count_since


def sum_traffic(events: list[Event]) -> dict[str, Any] | None:
    """Return what the hosts' interfaces carried between the ``traffic`` events of start and end, and the share of the
    network that was meant to carry it; None unless there is a pair.
    """
    starts = {event["rank"]: event for event in events if event["when"] == "start"}
    pairs = [(starts[event["rank"]], event) for event in events if event["when"] == "end" and event["rank"] in starts]
    if not pairs:
        return None
    carried = {(end["rank"], end["host"]): count_since(start["counters"], end["counters"]) for start, end in pairs}
    fast = {(end["rank"], end["host"]): end["fast"] for _, end in pairs}
    amounts = {who: sum(sum(count.values()) for count in counters.values()) for who, counters in carried.items()}
    on_fast = sum(sum(carried[who].get(name, {}).values()) for who, names in fast.items() for name in names)
    total = sum(amounts.values())
    return {
        "network": pairs[0][1]["network"],
        "share": on_fast / total if total else None,
        "bytes": total,
        "hosts": {host: counters for (_, host), counters in carried.items()},
    }
