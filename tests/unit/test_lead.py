"""Leading mpirun for a control machine: a real `lead`, a script in mpirun's place, and the supervisor at the other end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trainer.cluster.outcome import Line, Outcome
from trainer.cluster.supervise import Supervisor
from trainer.errors import EXIT_INTERRUPTED
from trainer.events import Event
from trainer.paths import PROJECT_ROOT

LEAD = [sys.executable, "-P", "-m", "trainer", "lead"]
ENVIRONMENT = {"PYTHONPATH": str(PROJECT_ROOT)}
QUICK = (  # a lead whose patience is that of a test
    "import sys; from trainer.cluster import lead; lead._LOST_GRACE_S = lead._KILL_AFTER_S = 0.5; sys.exit(lead.lead())"
)
PRELUDE = """
import json, os, signal, sys, time
def tell(kind, **fields):
    line = json.dumps({"event": kind, "rank": 0, "time": 1.0, **fields})
    os.write(1, f"[x,0]<stdout>: {line}\\n".encode())
"""
TRAINING = """
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
tell("started")
while not asked:
    time.sleep(0.01)
tell("done", stopped=True)
"""
STUBBORN = """
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.write(2, f"no to {number}\\n".encode()))
tell("started")
while True:
    time.sleep(0.01)
"""


def order(code: str, **env: str) -> str:
    return json.dumps({"argv": [sys.executable, "-c", PRELUDE + code], "env": env})


class Watched:
    """Runs an order under a supervisor, and calls ``react`` at each event."""

    def __init__(self, react: Callable[[Event], None] = lambda _: None) -> None:
        self.events: list[Event] = []
        self.lines: list[str] = []
        self._react = react

    def run(self, text: str, argv: list[str] = LEAD) -> Outcome:
        return Supervisor(self.on_event, self.on_line, 60.0).run(argv, ENVIRONMENT, text)

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self._react(event)

    def on_line(self, line: Line) -> None:
        self.lines.append(line.text)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("tell('started')", Outcome(0)),
        ("tell('error', message='no', exit_code=4); sys.exit(9)", Outcome(4, "no")),
        ("tell('started'); sys.exit(9)", Outcome(70, "the job ended with exit code 9 and without a reason")),
        ("sys.exit(255)", Outcome(3, "the ranks could not be started (exit code 254)")),
        (
            "tell('started'); os.kill(os.getpid(), signal.SIGKILL)",
            Outcome(75, "a rank was killed from outside, for example for want of memory"),
        ),
    ],
)
def test_an_end_is_an_end_there_too(code: str, outcome: Outcome) -> None:
    """Exit codes, events and signals mean the same through a lead as directly."""
    assert Watched().run(order(code)) == outcome


def test_output_and_environment_arrive() -> None:
    """The environment of the order is the job's; its output and error come through, byte for byte and in order."""
    watched = Watched()
    assert (
        watched.run(
            order("os.write(1, os.environb[b'X'] + b'\\n'); os.write(2, b'e\\n'); tell('started')", X="ü & $(id)")
        ).exit_code
        == 0
    )
    assert sorted(watched.lines) == ["e", "ü & $(id)"]


def test_much_output() -> None:
    """More than any pipe holds, up to the last line."""
    watched = Watched()
    assert watched.run(order("tell('started'); [os.write(1, b'%06d\\n' % n) for n in range(50000)]")).exit_code == 0
    assert watched.lines == [f"{n:06d}" for n in range(50000)]


def test_a_program_that_is_not_there() -> None:
    """mpirun missing on the head: what and why, as a launch that failed."""
    said = "the ranks could not be started (exit code 127)\n/no/mpirun: cannot be started: No such file or directory"
    assert Watched().run(json.dumps({"argv": ["/no/mpirun"], "env": {}})) == Outcome(3, said)


def test_the_first_interruption_stops_after_the_step() -> None:
    """Ctrl-C becomes the word "stop", that SIGUSR1 for mpirun."""
    watched = Watched(lambda event: signal.raise_signal(signal.SIGINT) if event["event"] == "started" else None)
    assert watched.run(order(TRAINING)) == Outcome(EXIT_INTERRUPTED, "interrupted")
    assert [event["event"] for event in watched.events if event["event"] != "notice"] == ["started", "done"]


def test_the_second_interruption_ends() -> None:
    """A job that does not stop is ended by the second Ctrl-C, against its will if need be."""

    def insist(event: Event) -> None:
        if event["event"] == "started":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    watched = Watched(insist)
    assert watched.run(order(STUBBORN), [sys.executable, "-P", "-c", QUICK]) == Outcome(EXIT_INTERRUPTED, "interrupted")
    assert f"no to {int(signal.SIGTERM)}" in watched.lines


def test_what_a_watcher_raises_ends_the_job() -> None:
    """A full disk on the control machine leaves nothing running on the head."""
    jobs = []

    def fail(event: Event) -> None:
        jobs.append(event["job"])
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        Watched(fail).run(order("tell('started', job=os.getpid()); time.sleep(60)"), [sys.executable, "-P", "-c", QUICK])
    assert not is_alive(jobs[0])


@contextlib.contextmanager
def leading(code: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a lead with a job, and yield both once the job runs."""
    command = [sys.executable, "-P", "-c", QUICK]
    pipe = subprocess.PIPE
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ready = 'tell("started")\n'  # from here on it answers signals
        assert ready in code
        process.stdin.write(order(code.replace(ready, ready + "os.write(1, b'%d\\n' % os.getpid())\n")).encode() + b"\n")
        process.stdin.flush()
        assert b"started" in process.stdout.readline()
        yield process, int(process.stdout.readline())
        process.wait(20)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_lost_connection_stops_the_job() -> None:
    """When standard input ends, the job is asked to stop, and what it still says is taken though nobody reads it."""
    told: dict[str, Any] = {}
    code = TRAINING + "os.write(1, b'x' * 10**6)\n"
    with leading(code) as (process, job):
        for stream in (process.stdout, process.stdin):
            assert stream is not None
            stream.close()
        told["code"] = process.wait(20)
    assert told["code"] == 0
    assert not is_alive(job)


def test_a_lost_connection_ends_a_job_that_does_not_stop() -> None:
    """A job that ignores the request, and SIGTERM after it, is killed with all that it started."""
    with leading(STUBBORN) as (process, job):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 128 + signal.SIGKILL
    assert not is_alive(job)


def test_a_kill_asks_nobody() -> None:
    """mpirun would wait for a host that is silent, so it is killed without being asked to end."""
    with leading(STUBBORN.replace("os.write(2", "os.write(1")) as (process, job):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"kill\n")
        process.stdin.flush()
        assert process.stdout.read() == b""
        assert process.wait(20) == 128 + signal.SIGKILL
    assert not is_alive(job)


def test_a_connection_that_never_spoke() -> None:
    """No order, no job."""
    done = subprocess.run(LEAD, input=b"", env={**os.environ, **ENVIRONMENT}, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (
            "os.write(2, b'ssh: connect to host alpha port 22: No route to host\\n'); sys.exit(255)",
            Outcome(3, "the head of the cluster cannot be reached: ssh: connect to host alpha port 22: No route to host"),
        ),
        (
            "tell('started'); os.write(2, b'client_loop: send disconnect: Broken pipe\\n'); sys.exit(255)",
            Outcome(75, "the connection to the head of the cluster broke off: client_loop: send disconnect: Broken pipe"),
        ),
    ],
)
def test_a_connection_that_fails(code: str, outcome: Outcome) -> None:
    """ssh's own exit code is told apart from the job's: nothing was started, or a run was lost."""
    assert Watched().run("{}", [sys.executable, "-c", PRELUDE + code]) == outcome


def test_a_lost_peer_is_named() -> None:
    """Open MPI's words about a peer that went away become a message with the host, whatever exit code it chooses."""
    words = (
        "An MPI communication peer process has unexpectedly disconnected.\\n  Local host: alpha\\n  Peer host:  gamma\\n"
        "*** MPI_ERRORS_ARE_FATAL (processes in this communicator will now abort,\\n"
    )
    code = f"tell('started'); os.write(2, b'{words}'); sys.exit(14)"
    said = "the connection to a rank on gamma broke off: it was killed, or its host is gone"
    assert Watched().run(order(code)) == Outcome(75, said)
