"""The graph of a baseline's hosts and links: how fast each is, thicker for more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainer.measure.figures import median_of
from trainer.report.baseline import show_rate
from trainer.report.chart import FAULT, Edge, Network

_SLOWEST, _FASTEST = 1e7, 4e10  # bit/s: from a bad Wi-Fi to Thunderbolt
_FAST, _OTHER = 0, 1


def plot_network(baseline: Mapping[str, Any]) -> Network:
    """Return the graph of all links that were measured."""
    nodes = list(baseline["hosts"])
    for link in baseline["links"]:
        nodes += [name for name in link["hosts"] if name not in nodes]
    edges = [_edge(link, nodes) for link in baseline["links"]]
    networks = {link["network"]: link["is_fast"] for link in baseline["links"]}
    legend = [(name + (" (fast)" if is_fast else ""), _FAST if is_fast else _OTHER) for name, is_fast in networks.items()]
    return Network(
        name="network",
        title="Bandwidth",
        description="Measured bandwidth, the slower direction: " + "; ".join(edge.title for edge in edges) + ".",
        caption="Of each link the slower direction, thicker for more.",
        nodes=nodes,
        edges=edges,
        legend=legend,
    )


def bandwidth(link: Mapping[str, Any]) -> float:
    """Return the bytes a second of a link's slower direction, 0 where nothing was measured."""
    rates = [median_of(link.get(way)) for way in ("up_bytes_per_s", "down_bytes_per_s")]
    return min(rates)


def _edge(link: Mapping[str, Any], nodes: list[str]) -> Edge:
    first, second = link["hosts"]
    rate = bandwidth(link)
    told = "down" if link["problem"] else show_rate(rate) if rate else "not measured"
    scale = math.log(max(rate * 8, _SLOWEST) / _SLOWEST) / math.log(_FASTEST / _SLOWEST)
    return Edge(
        ends=(nodes.index(first), nodes.index(second)),
        text=told,
        title=f"{first} to {second} over {link['network']}: {link['problem'] or told}",
        weight=min(1.0, scale),
        colour=FAULT if link["problem"] else _FAST if link["is_fast"] else _OTHER,
        is_broken=bool(link["problem"]),
    )
