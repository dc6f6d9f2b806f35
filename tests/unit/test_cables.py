"""The graph of Thunderbolt cables, drawn from what Macs say about their buses."""

from __future__ import annotations

import dataclasses

import pytest
from doctor_answers import PORTS, mac_says

from trainer.cluster.cables import draw_graph, find_islands, find_loops
from trainer.errors import ClusterError


def test_a_loop_is_found_and_the_slow_cable_is_to_be_pulled() -> None:
    """Of three cables in a ring the slowest is named; without it no loop is left and all are connected."""
    graph = draw_graph(
        {
            "a": (mac_says("a", (1, "b-1"), (2, "c-2")), PORTS),
            "b": (mac_says("b", (1, "a-1"), (2, "c-1"), (3, "")), PORTS),
            "c": (mac_says("c", (1, "b-2"), (2, "a-2"), speed="40 Gb/s"), PORTS),
        }
    )
    assert [str(cable) for cable in graph.cables] == [
        "a Thunderbolt 1 (en1) - b Thunderbolt 1 (en1), 80 Gb/s",
        "a Thunderbolt 2 (en2) - c Thunderbolt 2 (en2), 40 Gb/s",
        "b Thunderbolt 2 (en2) - c Thunderbolt 1 (en1), 40 Gb/s",
    ]
    (loop,) = find_loops(graph)
    assert str(loop.pull) == "b Thunderbolt 2 (en2) - c Thunderbolt 1 (en1), 40 Gb/s"
    assert len(loop.cables) == 3
    open_graph = dataclasses.replace(graph, cables=tuple(cable for cable in graph.cables if cable != loop.pull))
    assert find_loops(open_graph) == []
    assert find_islands(open_graph) == [("a", "b", "c")]


def test_two_cables_between_two_macs_are_a_loop() -> None:
    """So is a cable from a Mac to itself; a Mac that is not in the inventory is a stray."""
    twice = {name: (mac_says(name, (1, f"{peer}-1"), (2, f"{peer}-2")), PORTS) for name, peer in (("a", "b"), ("b", "a"))}
    assert len(find_loops(draw_graph(twice))) == 1
    own = draw_graph({"a": (mac_says("a", (1, "a-2"), (2, "a-1"), (3, "elsewhere")), PORTS)})
    assert len(find_loops(own)) == 1
    assert [(stray.end.device, stray.peer) for stray in own.strays] == [("en6", "Mac Studio")]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"SPThunderboltDataType": 3}', "[" * 5000, '{"SPThunderboltDataType": [1]}'])
def test_a_mac_that_answers_nonsense_is_named(text: str) -> None:
    """The error says which host it was."""
    with pytest.raises(ClusterError, match=r"^mini: system_profiler SPThunderboltDataType -json did not answer as a Mac does$"):
        draw_graph({"mini": (text, "")})
