"""The roll call before a run: the link check decides about the link, the doctor's quick look about the rest."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from doctor_answers import CLUSTER

from trainer.cluster import rollcall
from trainer.cluster.doctor import Finding
from trainer.cluster.nodes import Fleet
from trainer.cluster.rollcall import call_roll
from trainer.errors import ClusterError

FLEET = Fleet(cluster=CLUSTER, nodes={})
DOWN = ClusterError("the fast link is not up; nothing was sent or started:\n  book: tb0 has no cable")


def find(check: str, severity: Any = "problem", is_about_link: bool = False) -> Finding:
    return Finding(
        check=check,
        number=None,
        host="book",
        title=f"Title of {check}",
        severity=severity,
        detail="as seen",
        evidence=(),
        why="",
        remedy=f"./inv mend {check}",
        by_hand="",
        is_about_link=is_about_link,
    )


def call(*findings: Finding, error: ClusterError | None = None, allow_slow_link: bool = False) -> tuple[Fleet, list[str]]:
    """Call the roll of hosts about which the doctor finds this; return the fleet and what was said."""
    said: list[str] = []

    def muster(_: object, allowed: bool, say: Any) -> Fleet:
        if error and not allowed:
            raise error
        return FLEET

    return call_roll(CLUSTER, allow_slow_link, said.append, muster, lambda _: list(findings)), said


def test_healthy_hosts_are_mustered_without_a_word() -> None:
    """Nothing found, nothing said."""
    assert call() == (FLEET, [])


@pytest.mark.parametrize("check", ["environment", "other-environment", "disk-full", "tmp"])
def test_what_every_run_needs_is_refused_with_the_remedy(check: str) -> None:
    """A host without it: exit 3 with its name, the detail and the command, before anything is sent."""
    with pytest.raises(ClusterError) as refused:
        call(find(check), find("busy", "note"))
    assert str(refused.value) == (f"nothing was sent or started:\nbook: Title of {check} (as seen)\n  ./inv mend {check}")


def test_other_findings_are_told_and_the_run_goes_on() -> None:
    """A Mac that may fall asleep, a run that is going on: said, with the way out; the same way once."""
    _, said = call(find("sleep"), find("busy", "note"))
    assert said == [
        "book: Title of sleep (as seen)",
        "  ./inv mend sleep",
        "book: Title of busy (as seen)",
        "  ./inv mend busy",
    ]
    assert len(call(find("sleep"), find("sleep"))[1]) == 2


def test_the_link_check_has_the_last_word_about_the_link() -> None:
    """Down: its message first, then the doctor's remedy. Allowed to be slow, or up by another way: no word of the doctor's."""
    link = find("no-carrier", is_about_link=True)
    with pytest.raises(ClusterError) as refused:
        call(link, find("busy", "note"), error=DOWN)
    assert str(refused.value) == f"{DOWN}\nbook: Title of no-carrier (as seen)\n  ./inv mend no-carrier"
    assert call(link, error=DOWN, allow_slow_link=True) == (FLEET, [])
    assert call(link) == (FLEET, [])


def test_a_slow_doctor_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the hosts take too long to tell, the run goes on without the look."""
    monkeypatch.setattr(rollcall, "PATIENCE_S", 0.01)
    enough = threading.Event()

    def look(_: object) -> list[Finding]:
        enough.wait(10)
        return [find("tmp")]

    began = time.monotonic()
    assert call_roll(CLUSTER, False, print, lambda *_: FLEET, look) is FLEET
    enough.set()
    assert time.monotonic() - began < 5
