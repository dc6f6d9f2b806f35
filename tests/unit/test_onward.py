"""After a loss: what the policy says, with the hosts that are there; and a rank that stalls ends itself."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.cluster import presence
from trainer.cluster.hostfile import Cable, End
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.outcome import Outcome
from trainer.cluster.presence import find_absent, tell_absent, without
from trainer.config import LaunchConfig
from trainer.engine.pulse import Pulse
from trainer.errors import ClusterError
from trainer.events import Events
from trainer.onward import Onward

LOST = Outcome(75, "no sign of life from beta for 10 s")
ASLEEP = {"beta": "is unreachable"}
WHOLE_ASLEEP = dict.fromkeys(("alpha", "beta", "gamma"), "is unreachable")


def make_host(name: str, number: int) -> Host:
    return Host(name=name, slots=1, management=name, is_local=False, fast=f"10.0.0.{number}")


WHOLE = Cluster(hosts=tuple(make_host(name, number) for number, name in enumerate(("alpha", "beta", "gamma"), 1)))


class Story:
    """A run's attempts, as a test tells them: each is an outcome, or what is done in it."""

    def __init__(
        self, *attempts: Outcome | Callable[[Onward], Outcome], absent: Sequence[dict[str, str]] = (), **settings: Any
    ):
        self.attempts, self.absent = list(attempts), list(absent)
        self.starts: list[list[str]] = []
        self.said: list[str] = []
        self.known: list[Mapping[str, str]] = []
        self.rested = 0.0
        self.onward = Onward(
            WHOLE, LaunchConfig(**settings), self.said.append, absent=self._absent, rest=self._rest, clock=lambda: self.rested
        )

    def tell(self) -> Outcome:
        return self.onward.follow(self._start)

    def _start(self, cluster: Cluster, attach: Callable[[Any], None]) -> Outcome:
        self.starts.append([host.name for host in cluster.hosts])
        attempt = self.attempts.pop(0)
        attach(SimpleNamespace(stop=lambda: None))
        return attempt(self.onward) if callable(attempt) else attempt

    def _absent(self, _: Cluster, unreachable: Mapping[str, str]) -> Mapping[str, str]:
        self.known.append(unreachable)
        return self.absent.pop(0) if self.absent else {}

    def _rest(self, seconds: float) -> None:
        self.rested += seconds


def after_steps(newest: int, outcome: Outcome) -> Callable[[Onward], Outcome]:
    def attempt(onward: Onward) -> Outcome:
        onward.on_event({"event": "started"})
        onward.on_event({"event": "step", "step": newest})
        return outcome

    return attempt


@pytest.mark.parametrize("outcome", [Outcome(0), Outcome(130, "interrupted"), Outcome(4, "diverged"), Outcome(70, "bug")])
def test_what_is_no_loss_ends_the_run(outcome: Outcome) -> None:
    """Only a loss is gone on from."""
    story = Story(outcome)
    assert story.tell() == outcome
    assert len(story.starts) == 1


def test_stop_ends_at_a_loss() -> None:
    """on_loss=stop: the loss is the end, and nobody is asked."""
    assert Story(LOST, absent=[ASLEEP], on_loss="stop").tell() == LOST


def test_continue_goes_on_without_the_lost_host() -> None:
    """on_loss=continue: at once, on the others, and it is said why."""
    story = Story(after_steps(5, LOST), Outcome(0), absent=[ASLEEP])
    assert story.tell() == Outcome(0)
    assert story.starts == [["alpha", "beta", "gamma"], ["alpha", "gamma"]]
    assert story.said == [f"{LOST.message}; beta is unreachable: going on from the last checkpoint with 2 of 3 hosts"]


def test_a_crashed_rank_is_started_again_where_it_was() -> None:
    """If all hosts are there, all take part again."""
    story = Story(after_steps(5, Outcome(75, "a rank was killed")), Outcome(0))
    assert story.tell() == Outcome(0)
    assert story.starts == [["alpha", "beta", "gamma"]] * 2


@pytest.mark.parametrize(("settings", "patience"), [({"on_loss": "wait"}, 1), ({"min_hosts": 3}, 1)])
def test_waiting_for_the_host(settings: dict[str, Any], patience: int) -> None:
    """on_loss=wait, or too few hosts: the run goes on as soon as all, or enough, are there."""
    story = Story(after_steps(5, LOST), Outcome(0), absent=[ASLEEP] * 7, **settings)
    assert story.tell() == Outcome(0)
    assert story.starts == [["alpha", "beta", "gamma"]] * 2
    assert story.rested == 14
    assert story.said[0].endswith("waiting for up to 3600 s")


def test_a_wait_has_an_end() -> None:
    """After wait_s the loss is the end."""
    outcome = Story(after_steps(5, LOST), absent=[ASLEEP] * 99, on_loss="wait", wait_s=20).tell()
    assert outcome == Outcome(75, f"{LOST.message}; the hosts that are missing did not come back")


def test_losses_without_progress_are_given_up() -> None:
    """Three losses in a row without a new step between: it is not the hosts."""
    story = Story(after_steps(5, LOST), *[after_steps(5, LOST)] * 3)
    assert story.tell() == Outcome(75, f"{LOST.message} (again and again without a step between)")
    assert len(story.starts) == 4
    story = Story(*[after_steps(step, LOST) for step in range(1, 9)], Outcome(0))
    assert story.tell() == Outcome(0)


def test_a_start_that_is_refused_is_an_error_the_first_time_only() -> None:
    """The first start's ClusterError is the user's; later, it is one more loss."""

    def refuse(_: Onward) -> Outcome:
        raise ClusterError("the fast link is not up")

    with pytest.raises(ClusterError):
        Story(refuse).tell()
    assert Story(after_steps(1, LOST), refuse, Outcome(3, "not all ranks had started"), Outcome(0)).tell() == Outcome(0)


def test_a_host_that_is_back_is_taken_back_at_a_checkpoint() -> None:
    """On fewer hosts a thread looks out; at the next checkpoint the ranks are asked to stop, and all go on together."""

    def sail_short(onward: Onward) -> Outcome:
        onward._are_back.set()  # what the lookout does
        onward.on_event({"event": "checkpoint", "step": 8})
        onward.on_event({"event": "done", "stopped": True})
        return Outcome(0)

    story = Story(after_steps(5, LOST), sail_short, Outcome(0), absent=[ASLEEP])
    assert story.tell() == Outcome(0)
    assert story.starts == [["alpha", "beta", "gamma"], ["alpha", "gamma"], ["alpha", "beta", "gamma"]]
    assert story.said[1:] == ["the run goes on with the hosts that are back", "going on with all hosts"]


def test_a_host_that_is_back_and_cannot_take_part_is_left_out() -> None:
    """A returned host with which three starts come to nothing, before or after they have begun, must not end a healthy run."""

    def sail_short(onward: Onward) -> Outcome:
        onward._are_back.set()
        onward.on_event({"event": "started"})
        onward.on_event({"event": "step", "step": 8})
        onward.on_event({"event": "checkpoint", "step": 8})
        onward.on_event({"event": "done", "stopped": True})
        return Outcome(0)

    def refuse(onward: Onward) -> Outcome:
        raise ClusterError("Open MPI is not the same on all hosts")

    def begin_in_vain(onward: Onward) -> Outcome:
        onward.on_event({"event": "started"})
        return Outcome(3, "beta: its disk has no room for checkpoints")

    story = Story(after_steps(5, LOST), sail_short, refuse, refuse, begin_in_vain, Outcome(0), absent=[ASLEEP])
    assert story.tell() == Outcome(0)
    assert story.starts[-4:] == [["alpha", "beta", "gamma"]] * 3 + [["alpha", "gamma"]]
    assert "beta: its disk has no room for checkpoints: going on without beta" in story.said


def test_an_interruption_between_two_starts_ends_the_run() -> None:
    """While the hosts are swept or asked no supervisor is there to take Ctrl-C: the run does not go on all the same."""

    def be_lost(onward: Onward) -> Outcome:
        after_steps(5, LOST)(onward)
        signal.raise_signal(signal.SIGTERM)
        return LOST

    before = signal.getsignal(signal.SIGTERM)
    story = Story(be_lost)
    assert story.tell() == Outcome(130, f"interrupted between two starts; {LOST.message}")
    assert len(story.starts) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_hosts_that_vanish_after_a_recall_do_not_make_it_a_success() -> None:
    """The ranks have stopped well for hosts that were back, and then too few are there: the run has not ended, it is lost."""

    def stop_for_the_others(onward: Onward) -> Outcome:
        onward._are_back.set()
        onward.on_event({"event": "checkpoint", "step": 8})
        onward.on_event({"event": "done", "stopped": True})
        return Outcome(0)

    story = Story(after_steps(5, LOST), stop_for_the_others, absent=[ASLEEP, *[WHOLE_ASLEEP] * 99], wait_s=20)
    assert story.tell() == Outcome(75, "the hosts that are missing did not come back")


def answers(**told: Any) -> Callable[[Host], Sequence[str]]:
    def ask(host: Host) -> Sequence[str]:
        answer = told[host.name]
        if isinstance(answer, str):
            raise ClusterError(answer)
        return answer

    return ask


def test_what_the_end_has_shown_is_not_asked_again() -> None:
    """A host that did not answer at the loss is not asked a second time at once, but as long as it is awaited."""
    silence = {"beta": "beta: has not answered for 2 s"}
    lost = dataclasses.replace(LOST, unreachable=silence)
    story = Story(after_steps(5, lost), Outcome(0), absent=[ASLEEP] * 2, on_loss="wait")
    assert story.tell() == Outcome(0)
    assert story.known == [silence, {}, {}]

    asked = []

    def ask(host: Host) -> list[str]:
        asked.append(host.name)
        return []

    assert find_absent(WHOLE, silence, (), ask) == {"beta": "does not answer: it is asleep, hangs, or is off the network"}
    assert sorted(asked) == ["alpha", "gamma"]


NOT_REACHED = "beta (10.0.0.2) does not answer over tb0: timed out"


def test_absent_hosts_and_why() -> None:
    """Off, hanging, with its own cable out, and one that only the others do not reach: four different sentences."""
    off = answers(alpha=[], beta="beta: cannot be reached by ssh (No route to host); is it on?", gamma=[])
    assert find_absent(WHOLE, {}, (), off) == {"beta": "is unreachable: it is switched off, asleep, or off the network"}
    hanging = answers(alpha=[NOT_REACHED], beta="beta: has not answered for 8 s", gamma=[NOT_REACHED])
    assert find_absent(WHOLE, {}, (), hanging) == {"beta": "does not answer: it is asleep, hangs, or is off the network"}
    cable = "tb0, which has the address 10.0.0.2, is down or has no cable"
    assert find_absent(WHOLE, {}, (), answers(alpha=[NOT_REACHED], beta=[cable], gamma=[NOT_REACHED])) == {"beta": cable}
    far = ["alpha (10.0.0.1) does not answer over tb0: x", "gamma (10.0.0.3) does not answer over tb0: x"]
    deaf = answers(alpha=[NOT_REACHED], beta=far, gamma=[NOT_REACHED])
    assert find_absent(WHOLE, {}, (), deaf) == {"beta": "is not reached by the others over the fast link"}
    assert find_absent(WHOLE, {}, (), answers(alpha=[], beta=[], gamma=[])) == {}
    assert tell_absent({"beta": "is off"}) == "beta is off"
    assert [host.name for host in without(WHOLE, {"alpha": ""}).hosts] == ["beta", "gamma"]


def test_a_host_alone_needs_no_link() -> None:
    """On two Macs with one cable, the link of the one that is left is down as well: it goes on alone, and so does the first."""
    cable = "bridge0, which has the address 10.0.0.1, is down or has no cable"
    pair = Cluster(hosts=WHOLE.hosts[:2])
    off = answers(alpha=[cable], beta="beta: cannot be reached by ssh (No route to host); is it on?")
    assert list(find_absent(pair, {}, (), off)) == ["beta"]
    assert find_absent(pair, {}, (), answers(alpha=[cable], beta=[cable])) == {"beta": cable}


def test_cables_are_asked_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each cable is a network, one that leads to a host that is off says nothing of its other end; the others count."""
    ends = [("alpha", "beta"), ("alpha", "gamma"), ("beta", "gamma")]
    cables = [Cable(a=End(a, f"10.{n}.0.1"), b=End(b, f"10.{n}.0.2")) for n, (a, b) in enumerate(ends)]
    asked = {}

    def ask(host: Host, _root: object, request: dict[str, Any], _timeout_s: float) -> dict[str, Any]:
        asked[host.name] = (request["own"], request["peers"])
        return {"link": []}

    monkeypatch.setattr(presence, "ask", ask)
    nameless = Cluster(hosts=tuple(dataclasses.replace(host, fast=None) for host in WHOLE.hosts), mode="cable")
    assert list(find_absent(nameless, {"beta": "beta: has not answered for 4 s"}, cables)) == ["beta"]
    assert asked == {
        "alpha": ([], [("gamma", "10.1.0.2", 22, "10.1.0.1")]),
        "gamma": ([], [("alpha", "10.1.0.1", 22, "10.1.0.2")]),
    }


def test_of_two_hosts_that_do_not_reach_each_other_the_first_goes_on() -> None:
    """A cable between the two is cut and neither sees it: the head stays."""
    pair = Cluster(hosts=WHOLE.hosts[:2])
    told = answers(alpha=[NOT_REACHED], beta=["alpha (10.0.0.1) does not answer over tb0: timed out"])
    assert list(find_absent(pair, {}, (), told)) == ["beta"]


def test_a_rank_that_stalls_ends_itself() -> None:
    """Ten times the usual step and at least stall_s: 75, and the reason as an event; other phases may take longer."""
    hands = SimpleNamespace(now=0.0)
    stream, ended = io.StringIO(), []
    pulse = Pulse(Events(rank=2, stream=stream), 60.0, is_heard=False, end=ended.append, clock=lambda: hands.now)

    def wait(seconds: float) -> None:
        hands.now += seconds
        pulse.check()

    wait(599)  # loading
    pulse.note("step")
    for _ in range(5):
        wait(20)
        pulse.note("step")
    wait(199)
    assert ended == []
    wait(2)
    assert ended == [75]
    event = json.loads(stream.getvalue())
    assert (event["event"], event["rank"], event["exit_code"]) == ("error", 2, 75)
    assert event["message"].endswith(" has made no progress for 201 s")
    pulse.note("checkpoint")  # a step comes after it
    wait(201)
    assert ended == [75, 75]
    pulse.note("validated")
    wait(599)
    assert ended == [75, 75]


def test_a_host_is_heard_at_once() -> None:
    """Who is gone within the first second is missed all the same: a short run may have made its steps by then."""
    stream = io.StringIO()
    with Pulse(Events(rank=1, stream=stream), 60.0, is_heard=True):
        pass
    assert json.loads(stream.getvalue().splitlines()[0])["event"] == "heartbeat"
