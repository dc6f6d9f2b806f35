"""The supervisor against real processes: small scripts that stand for mpirun, and mpirun itself at the end.

Nothing here waits for time to pass: a line, a signal or a process's end is waited for. A `Lifeline` is a named pipe that
a process holds open, so that its end, however it comes, is seen as the end of the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.cluster import processes, supervise
from trainer.cluster.openmpi import find_open_mpi
from trainer.cluster.outcome import Line, Outcome
from trainer.cluster.supervise import Supervisor
from trainer.events import Event

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = Outcome(130, "interrupted")
KILLED = "a rank was killed from outside, for example for want of memory"
LATE = "not all ranks had started after 300 s; check that every host answers (ssh HOST true), or raise launch.start_timeout_s"

PRELUDE = """
import json, os, signal, subprocess, sys
def say(text, stream=1):
    data = text if isinstance(text, bytes) else text.encode()
    while data:
        data = data[os.write(stream, data):]
def tell(kind, rank=0, **fields):
    event = json.dumps({"event": kind, "rank": rank, "time": 1.0, **fields})
    say(f"[1,{rank}]<stdout>: {event}\\n")
def hold(lifeline):
    return os.open(lifeline, os.O_WRONLY)
def answer_signals():  # a signal just before signal.pause() would have its handler called at the next one only
    asleep, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    while True:
        os.read(asleep, 1)
"""

# Started by a test as a process of its own, so that it can be sent signals as from a terminal.
SUPERVISING = """
import json, signal, sys
from trainer.cluster import processes, supervise
supervise._KILL_AFTER_S = float(sys.argv[1])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # whatever the tests were started under
def show(thing):
    print(thing["event"] if isinstance(thing, dict) else thing.text, flush=True)
outcome = supervise.Supervisor(show, show).run(sys.argv[2:], {})
print(json.dumps([outcome.exit_code, outcome.message]), flush=True)
"""

pytestmark = pytest.mark.timeout(60)  # what should have ended would be waited for without end


def script(code: str, *arguments: str | Path) -> list[str]:
    """The command of a script that stands for mpirun; it finds its arguments in sys.argv[1:]."""
    return [sys.executable, "-I", "-S", "-c", PRELUDE + code, *map(str, arguments)]


@dataclass
class Watched:
    """A supervisor with all that it handed out. ``react`` is called with each event and line as it comes."""

    react: Callable[[Event | Line], None] = lambda _: None
    timeout_s: float | None = None
    events: list[Event] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def run(self, argv: list[str], env: dict[str, str] | None = None) -> Outcome:
        return Supervisor(self._on_event, self._on_line, self.timeout_s).run(argv, env or {})

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        self.react(event)

    def _on_line(self, line: Line) -> None:
        self.lines.append(line)
        self.react(line)


class Lifeline:
    """A named pipe that processes hold open while they live."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def is_cut(self) -> bool:
        """Whether all processes that held the pipe have ended, or do so soon."""
        readable, _, _ = select.select([self._reader], [], [], 30)
        return bool(readable) and os.read(self._reader, 1) == b""

    def close(self) -> None:
        os.close(self._reader)


@pytest.fixture
def lifeline(tmp_path: Path) -> Iterator[Lifeline]:
    held = Lifeline(tmp_path / "lifeline")
    yield held
    held.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told to end is killed almost at once."""
    monkeypatch.setattr(supervise, "_KILL_AFTER_S", 0.1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The supervisor's clock, stopped: it goes where a test sets ``now``."""
    hands = SimpleNamespace(now=1000.0, asleep=0.0)
    times = SimpleNamespace(monotonic=lambda: hands.now, time=lambda: hands.now + hands.asleep)
    monkeypatch.setattr(supervise, "time", times)
    return hands


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The supervisor puts every signal handler back, however its job ended."""

    def own(*_: object) -> None:
        raise AssertionError("the signal was meant for the supervisor")

    before = {number: signal.signal(number, own) for number in SIGNALS}
    yield
    now = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in before.items():
        signal.signal(number, handler)
    assert now in ([own] * 3, [own, own, signal.SIG_IGN])


def is_event(thing: Event | Line, kind: str) -> bool:
    return isinstance(thing, dict) and thing["event"] == kind


def on(what: str, do: Callable[[], Any]) -> Callable[[Event | Line], None]:
    """A reaction to one kind of event, or to a line with just this text."""

    def react(thing: Event | Line) -> None:
        if (thing["event"] if isinstance(thing, dict) else thing.text) == what:
            do()

    return react


def event(kind: str, rank: int = 0, **fields: object) -> Event:
    return {"event": kind, "rank": rank, "time": 1.0, **fields}


def test_events_in_order() -> None:
    """Events of all ranks are handed out in the order in which they were written; other lines go elsewhere."""
    seen = Watched()
    code = """
for step in range(200):
    tell("step", rank=step % 3, step=step)
    say(f"[1,{step % 3}]<stdout>: line {step}\\n")
"""
    assert seen.run(script(code)) == Outcome(0)
    assert seen.events == [event("step", rank=step % 3, step=step) for step in range(200)]
    assert seen.lines == [Line(step % 3, f"line {step}") for step in range(200)]


def test_whose_line() -> None:
    """A tagged line is its rank's, on either stream; one without a tag, or with half of one, is the launcher's."""
    seen = Watched()
    code = r"""
say("[1,0]<stdout>: out\n[1,12]<stdout>:no space\n[prterun-host-7@1,3]<stdout>:   indented\n[1,1]<stdout>: \n[1,1]<stdout>:\n")
say("plain\n\n[1,0]<stdout> no colon\n[1]<stdout>: no rank\n[1,x]<stdout>: no number\n [1,0]<stdout>: late\n[1,0]<stdin>: x\n")
say("[1,2]<stdout>: [1,0]<stdout>: a tag of its own\n")
os.close(1)
say("[1,0]<stderr>: err\nnot enough slots\n", 2)
"""
    assert seen.run(script(code)) == Outcome(0)
    assert seen.events == []
    by_stdout = [line for line in seen.lines if line.text not in ("err", "not enough slots")]
    assert by_stdout == [
        Line(0, "out"),
        Line(12, "no space"),
        Line(3, "  indented"),
        Line(1, ""),
        Line(1, ""),
        Line(None, "plain"),
        Line(None, ""),
        Line(None, "[1,0]<stdout> no colon"),
        Line(None, "[1]<stdout>: no rank"),
        Line(None, "[1,x]<stdout>: no number"),
        Line(None, " [1,0]<stdout>: late"),
        Line(None, "[1,0]<stdin>: x"),
        Line(2, "[1,0]<stdout>: a tag of its own"),
    ]
    assert [line for line in seen.lines if line not in by_stdout] == [Line(0, "err"), Line(None, "not enough slots")]


def test_events_come_on_stdout_only() -> None:
    """What looks like an event on standard error, in a traceback for example, is a line for the log."""
    seen = Watched()
    text = '{"event": "error", "rank": 0, "time": 1.0, "message": "quoted", "exit_code": 4}'
    assert seen.run(script(f"say('[1,0]<stderr>: {text}\\n{text}\\n', 2)")) == Outcome(0)
    assert seen.events == []
    assert seen.lines == [Line(0, text), Line(None, text)]


def test_without_launcher() -> None:
    """A single process without mpirun tells its events without a tag."""
    seen = Watched()
    argv = script('say(json.dumps({"event": "prepared", "rank": 0, "time": 1.0, "model": os.environ["WHERE"]}) + "\\n")')
    assert seen.run(argv, {"WHERE": "ö/x"}) == Outcome(0)
    assert seen.events == [event("prepared", model="ö/x")]
    assert seen.lines == []


@pytest.mark.parametrize("follower", ["error", "exit code", "none"])
def test_first_error_decides(follower: str) -> None:
    """The first error event gives code and message, whatever other ranks and the launcher say after it."""
    seen = Watched()
    code = """
tell("started")
tell("error", rank=2, message="step 7: the loss is nan", exit_code=4)
if sys.argv[1] == "error":
    tell("error", rank=0, message="lost a peer", exit_code=75)
    say("[1,1]<stderr>: MPI_ABORT was invoked\\n", 2)
sys.exit(0 if sys.argv[1] == "none" else 137)
"""
    assert seen.run(script(code, follower)) == Outcome(4, "step 7: the loss is nan")
    assert [e["event"] for e in seen.events] == ["started", "error", "error"][: 3 if follower == "error" else 2]


def test_a_cause_outranks_a_loss_heard_before_it() -> None:
    """A rank that lost another may be heard first; the other's own words still give code and message."""
    code = """
tell("started")
tell("error", rank=0, message="lost a peer", exit_code=75)
tell("error", rank=1, message="the disk is full", exit_code=70)
tell("error", rank=2, message="another", exit_code=4)
sys.exit(137)
"""
    assert Watched().run(script(code)) == Outcome(70, "the disk is full")


def test_error_with_the_code_of_success() -> None:
    """A job with an error event never counts as done, even if the event says exit code 0."""
    assert Watched().run(script("tell('error', message='odd', exit_code=0)")) == Outcome(70, "odd")


@pytest.mark.parametrize(
    "line",
    ['{"event": "error"}', '{"event": "error", "rank": 0, "time": 1.0, "message": 5, "exit_code": "x"}', '{"event": 7}'],
)
def test_broken_error_event(line: str) -> None:
    """An error event without message and code is a line like any other, and the exit code decides."""
    seen = Watched()
    assert seen.run(script(f"say('[1,0]<stdout>: {line}\\n'); sys.exit(9)")) == Outcome(
        70, "the job ended with exit code 9 and without a reason"
    )
    assert (seen.events, seen.lines) == ([], [Line(0, line)])


def test_long_lines() -> None:
    """Lines of megabytes arrive whole, as events and as text, on both streams."""
    seen = Watched()
    code = """
tell("answered", replies="ü" * 1_000_000)
say("[1,1]<stderr>: " + "x" * 3_000_000 + "\\n", 2)
say("[1,1]<stdout>: " + "[," * 500_000 + "\\n")
"""
    assert seen.run(script(code)) == Outcome(0)
    assert seen.events == [event("answered", replies="ü" * 1_000_000)]
    assert sorted(seen.lines, key=lambda line: line.text) == [Line(1, "[," * 500_000), Line(1, "x" * 3_000_000)]


def test_hostile_bytes() -> None:
    """Invalid UTF-8 is replaced; carriage returns of a rank's terminal go; nothing else ends a line than a newline."""
    seen = Watched()
    code = r"""
say(b"[1,0]<stdout>: caf\xe9 \xff\xfe\x00 \xf0\x9f\n")
say('[1,0]<stdout>: {"event": "step", "rank": 0, "time": 1.0}\r\n')
say("[1,0]<stdout>: 1%\r2%\x0b\x0c\x1c\x85\u2028 end\r\n")
say(b'[1,0]<stdout>: {"event": "\xff", "rank": 0, "time": 1.0}\n')
"""
    assert seen.run(script(code)) == Outcome(0)
    assert seen.events == [event("step"), event("\ufffd")]
    assert seen.lines == [Line(0, "caf\ufffd \ufffd\ufffd\x00 \ufffd"), Line(0, "1%\r2%\x0b\x0c\x1c\x85\u2028 end")]


def test_no_newline_at_the_end() -> None:
    """What comes after the last newline is handed out too, on both streams, an event included."""
    seen = Watched()
    code = """
say("last words", 2)
say('[1,0]<stdout>: {"event": "done", "rank": 0, "time": 1.0}')
"""
    assert seen.run(script(code)) == Outcome(0)
    assert (seen.events, seen.lines) == ([event("done")], [Line(None, "last words")])


def test_half_lines_are_joined(tmp_path: Path) -> None:
    """A line that comes in pieces is handed out once, when it is whole, however late the rest comes."""
    os.mkfifo(tmp_path / "go")
    seen = Watched(react=on("first half is here", lambda: (tmp_path / "go").write_text("go")))
    code = r"""
say('[1,0]<stdout>: {"event": "ste')
say("first half is here\n", 2)
open(sys.argv[1]).read()
say('p", "rank": 0, ')
say('"time": 1.0}\n')
"""
    assert seen.run(script(code, tmp_path / "go")) == Outcome(0)
    assert (seen.events, seen.lines) == ([event("step")], [Line(None, "first half is here")])


def test_no_output() -> None:
    """A job may be silent."""
    seen = Watched()
    assert seen.run(script("")) == Outcome(0)
    assert (seen.events, seen.lines) == ([], [])


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("sys.exit(0)", Outcome(0)),
        ("sys.exit(1)", Outcome(70, "the job ended with exit code 1 and without a reason")),
        ("sys.exit(75)", Outcome(70, "the job ended with exit code 75 and without a reason")),
        ("sys.exit(128)", Outcome(70, "the job ended with exit code 128 and without a reason")),
        ("sys.exit(255)", Outcome(70, "the job ended with exit code 255 and without a reason")),
        ("sys.exit(137)", Outcome(75, KILLED)),
        ("os.kill(os.getpid(), signal.SIGKILL)", Outcome(75, KILLED)),
        ("signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM)", Outcome(75, KILLED)),
    ],
)
def test_ends_without_a_word(code: str, outcome: Outcome) -> None:
    """Without an error event the launcher's exit code decides: done, our bug, or killed by a signal of a rank or its own."""
    assert Watched().run(script(code)) == outcome


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("sys.exit(255)", Outcome(3, "the ranks could not be started (exit code 255)")),
        (
            "say('mini: no route to host\\n', 2); say('A daemon failed to report back.', 2); sys.exit(255)",
            Outcome(
                3, "the ranks could not be started (exit code 255)\nmini: no route to host\nA daemon failed to report back."
            ),
        ),
        (
            "[say(f'{n}\\n', 2) for n in range(99)]; sys.exit(1)",
            Outcome(3, "\n".join(["the ranks could not be started (exit code 1)", *map(str, range(79, 99))])),
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", Outcome(75, KILLED)),
        (
            "say('[1,0]<stderr>: Traceback\\n', 2); sys.exit(1)",
            Outcome(70, "the job ended with exit code 1 and without a reason"),
        ),
        ("tell('started'); sys.exit(1)", Outcome(70, "the job ended with exit code 1 and without a reason")),
        ("tell('error', message='no libmpi', exit_code=3); sys.exit(1)", Outcome(3, "no libmpi")),
        ("say('lost gamma\\n', 2)", Outcome(3, "the ranks could not be started (exit code 0)\nlost gamma")),
        ("tell('started'); say('a warning\\n', 2)", Outcome(0)),
    ],
)
def test_ranks_never_started(code: str, outcome: Outcome) -> None:
    """A launcher that ends before any rank has said a word, as with a host out of reach, is quoted, with exit code 3.

    Also if it thinks that all is well, as mpirun does when another host loses power.
    """
    assert Watched(timeout_s=300.0).run(script(code)) == outcome


def test_cannot_be_started(tmp_path: Path) -> None:
    """A launcher that does not exist or is no program is a message and exit code 3."""
    missing, text = tmp_path / "mpirun", tmp_path / "text"
    text.write_text("")
    assert Watched().run([str(missing)]) == Outcome(3, f"{missing}: cannot be started: No such file or directory")
    assert Watched().run([str(text)]) == Outcome(3, f"{text}: cannot be started: Permission denied")


def test_session_and_input() -> None:
    """The job has a session of its own, where a terminal's Ctrl-C does not reach it, and nothing to read."""
    seen = Watched()
    typed, keyboard = os.pipe()
    os.write(keyboard, b"typed by the user")
    os.close(keyboard)
    own = os.dup(0)
    try:
        os.dup2(typed, 0)
        outcome = seen.run(script("say(f'{os.getsid(0) == os.getpid()} {sys.stdin.read()!r}\\n')"))
    finally:
        os.dup2(own, 0)
        os.close(own)
        os.close(typed)
    assert outcome == Outcome(0)
    assert seen.lines == [Line(None, "True ''")]


def test_streams_end_before_the_process(tmp_path: Path) -> None:
    """A launcher that closes its output and lives on is followed to its end, and its exit code counts."""
    os.mkfifo(tmp_path / "go")
    code = "os.close(1); os.close(2); open(sys.argv[1]).read(); os._exit(5)"
    writer = threading.Thread(target=lambda: (tmp_path / "go").write_text("go"))  # waits until the reader is there
    writer.start()
    outcome = Watched().run(script(code, tmp_path / "go"))
    writer.join()
    assert outcome == Outcome(70, "the job ended with exit code 5 and without a reason")


@pytest.mark.parametrize("group", ["None", "0"], ids=["same group", "group of its own"])
@pytest.mark.parametrize("ending", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["end", "killed"])
def test_orphans_are_ended(lifeline: Lifeline, group: str, ending: str) -> None:
    """Ranks that outlive the launcher, deaf and holding its output open, are ended, in a process group of their own too."""
    seen = Watched()
    code = f"""
rank = PRELUDE + '''
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
held = hold(sys.argv[1])
say("[1,0]<stdout>: alive\\\\n")
os.write(int(sys.argv[2]), b"!")
answer_signals()
'''
reader, writer = os.pipe()
command = [sys.executable, "-I", "-S", "-c", rank, sys.argv[1], str(writer)]
subprocess.Popen(command, pass_fds=[writer], process_group={group})
os.read(reader, 1)
{ending}
"""
    outcome = seen.run(script(f"PRELUDE = {PRELUDE!r}" + code, lifeline.path))
    assert outcome == (Outcome(0) if "exit" in ending else Outcome(75, KILLED))
    assert seen.lines == [Line(0, "alive")]
    assert lifeline.is_cut()


@pytest.mark.parametrize("body", ["open(sys.argv[1]).read()", "while True: say('x' * 4095 + '\\n')"], ids=["still", "noisy"])
def test_a_stranger_holds_the_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A process that left for a session of its own, output still open, holds nobody up; it is left alone."""
    monkeypatch.setattr(supervise, "_LAST_READS", 4)

    def dawdle(_: Event | Line) -> None:
        hashlib.sha256(bytes(500_000))  # meanwhile the noisy one fills the pipe again

    quit_pipe = tmp_path / "quit"
    os.mkfifo(quit_pipe)
    seen = Watched(react=dawdle)
    code = f"""
say("[1,0]<stdout>: before\\n")
tell("done")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {body}
    os._exit(0)
os.wait()
"""
    assert seen.run(script(code, quit_pipe)) == Outcome(0)
    assert seen.lines[0] == Line(0, "before")
    assert seen.events == [event("done")]
    assert len(seen.lines) < 3000
    if "open" in body:
        quit_pipe.write_text("its end; it was alive, or this would wait for a reader")


def test_late_start(clock: SimpleNamespace, lifeline: Lifeline) -> None:
    """A job that has not started in time is ended with exit code 3, though it talks all the while."""
    seen = Watched(timeout_s=300.0, react=on("waiting 50", lambda: setattr(clock, "now", 1300.1)))
    code = """
held = hold(sys.argv[1])
number = 0
while True:
    number += 1
    say(f"waiting {number}\\n")
"""
    assert seen.run(script(code, lifeline.path)) == Outcome(3, LATE)
    assert lifeline.is_cut()


def test_late_start_in_silence(clock: SimpleNamespace) -> None:
    """A job that closed its output and hangs before it has started is ended as well."""
    seen = Watched(timeout_s=300.0, react=on("bye", lambda: setattr(clock, "now", 1300.1)))
    assert seen.run(script("say('bye\\n'); os.close(1); os.close(2); answer_signals()")) == Outcome(3, LATE)


def test_started_in_time(clock: SimpleNamespace, tmp_path: Path) -> None:
    """After the started event the job may take as long as it likes."""
    os.mkfifo(tmp_path / "go")

    def react(thing: Event | Line) -> None:
        on("started", lambda: setattr(clock, "now", 1e9))(thing)
        on("hours later", lambda: (tmp_path / "go").write_text("go"))(thing)

    code = "tell('started'); say('hours later\\n'); open(sys.argv[1]).read(); tell('done')"
    assert Watched(timeout_s=300.0, react=react).run(script(code, tmp_path / "go")) == Outcome(0)


def test_error_before_late(clock: SimpleNamespace) -> None:
    """A rank that says why it failed is believed, even if the others then hang until the time is over."""
    seen = Watched(timeout_s=300.0, react=on("error", lambda: setattr(clock, "now", 1300.1)))
    code = "tell('error', message='the hosts do not agree', exit_code=3); answer_signals()"
    assert seen.run(script(code)) == Outcome(3, "the hosts do not agree")


def test_deaf_and_late(clock: SimpleNamespace, lifeline: Lifeline) -> None:
    """A late job that ignores all signals is killed five seconds after it was told to end."""

    def react(thing: Event | Line) -> None:
        on("deaf", lambda: setattr(clock, "now", 1300.1))(thing)
        on("told", lambda: setattr(clock, "now", clock.now + 5.1))(thing)

    code = """
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: say("told\\n"))
held = hold(sys.argv[1])
say("deaf\\n")
answer_signals()
"""
    assert Watched(timeout_s=300.0, react=react).run(script(code, lifeline.path)) == Outcome(3, LATE)
    assert lifeline.is_cut()


@pytest.mark.parametrize("where", ["event", "line"])
@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.usefixtures("impatient")
def test_exception_of_a_watcher(lifeline: Lifeline, where: str, deaf: bool) -> None:
    """An exception of on_event or on_line ends the job, deaf or not, with all its processes, and reaches the caller."""

    def fail() -> None:
        raise OSError("No space left on device")

    code = """
if sys.argv[2] == "True":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setpgid(0, 0)
held = hold(sys.argv[1])
while True:
    tell("event")
    say("line\\n")
"""
    with pytest.raises(OSError, match=r"^No space left on device$"):
        Watched(react=on(where, fail)).run(script(code, lifeline.path, str(deaf)))
    assert lifeline.is_cut()


def test_callers_thread() -> None:
    """on_event and on_line run in the thread that called run."""
    threads: set[int] = set()
    Watched(react=lambda _: threads.add(threading.get_ident())).run(script("tell('step'); say('x\\n'); say('y\\n', 2)"))
    assert threads == {threading.get_ident()}


def test_in_another_thread() -> None:
    """A job may be supervised in another thread; interruptions then stay what they were."""
    outcomes: list[Outcome] = []
    handler = signal.getsignal(signal.SIGINT)
    seen = Watched(react=lambda _: outcomes.append(Outcome(int(signal.getsignal(signal.SIGINT) is handler))))
    thread = threading.Thread(target=lambda: outcomes.append(seen.run(script("tell('step'); sys.exit(1)"))))
    thread.start()
    thread.join()
    assert outcomes == [Outcome(1), Outcome(70, "the job ended with exit code 1 and without a reason")]


def test_ignored_signals_stay_ignored() -> None:
    """Under nohup a closed terminal ends nothing."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen = Watched(react=on("started", lambda: signal.raise_signal(signal.SIGHUP)))
    assert seen.run(script("tell('started'); tell('done')")) == Outcome(0)
    assert [e["event"] for e in seen.events] == ["started", "done"]


def test_interrupted_while_starting(monkeypatch: pytest.MonkeyPatch, lifeline: Lifeline) -> None:
    """A Ctrl-C that comes while the process is being made is not lost, and neither is the process."""
    start = supervise._start

    def start_and_interrupt(*arguments: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments)
        os.close(os.open(lifeline.path, os.O_RDONLY))  # returns when the process holds the other end
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(supervise, "_start", start_and_interrupt)
    assert Watched().run(script("held = hold(sys.argv[1]); answer_signals()", lifeline.path)) == INTERRUPTED
    assert lifeline.is_cut()


TRAINING = """
asked = 0
def on_ask(*_):
    say("[1,0]<stdout>: asked to stop at the next step\\n")
    if sys.argv[1] == "stops":
        tell("done", stopped=True)
        os._exit(0)
    if sys.argv[1] == "fails":
        tell("error", message="the disk is full", exit_code=2)
        os._exit(1)
def on_end(*_):
    say("[1,0]<stdout>: told to end\\n")
    if sys.argv[1] != "deaf":
        tell("error", message="lost a peer", exit_code=75)
        os._exit(143)
signal.signal(signal.SIGUSR1, on_ask)
signal.signal(signal.SIGTERM, on_end)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
if sys.argv[2] == "started":
    tell("started")
say("[1,0]<stdout>: ready\\n")
answer_signals()
"""


class Supervising:
    """A process that supervises `TRAINING`, as ./inv does."""

    def __init__(self, kill_after_s: float, *arguments: str) -> None:
        command = [sys.executable, "-c", SUPERVISING, str(kill_after_s), *script(TRAINING, *arguments)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.notices = 0

    def read_until(self, text: str) -> list[str]:
        """What it shows up to and with a line."""
        assert self.process.stdout is not None
        shown: list[str] = []
        for line in self.process.stdout:
            if line == "notice\n":  # may come before or after what a rank says
                self.notices += 1
                continue
            shown.append(line.rstrip("\n"))
            if shown[-1] == text:
                return shown
        raise AssertionError(f"ended without {text!r}: {shown}")

    def finish(self) -> list[str]:
        """The rest of what it shows, but for notices."""
        rest, _ = self.process.communicate()
        assert self.process.returncode == 0
        lines = rest.splitlines()
        self.notices += lines.count("notice")
        return [line for line in lines if line != "notice"]


@pytest.fixture
def supervising() -> Iterator[Callable[..., Supervising]]:
    started: list[Supervising] = []

    def start(*arguments: str, kill_after_s: float = 5.0) -> Supervising:
        started.append(Supervising(kill_after_s, *arguments))
        return started[-1]

    yield start
    for each in started:
        with each.process:
            each.process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_first_interruption_asks(supervising: Callable[..., Supervising], number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM or a closed terminal: the ranks are asked by SIGUSR1, finish their step, and the exit code is 130."""
    job = supervising("stops", "started")
    assert job.read_until("ready") == ["started", "ready"]
    job.process.send_signal(number)
    assert job.finish() == ["asked to stop at the next step", "done", '[130, "interrupted"]']
    assert job.notices == 1


def test_second_interruption_ends(supervising: Callable[..., Supervising]) -> None:
    """The second Ctrl-C ends a job that has not stopped; what the ranks then complain of is not the reason."""
    job = supervising("goes on", "started")
    job.read_until("ready")
    job.process.send_signal(signal.SIGINT)
    job.read_until("asked to stop at the next step")
    job.process.send_signal(signal.SIGINT)
    assert job.finish() == ["told to end", "error", '[130, "interrupted"]']


def test_second_interruption_kills(supervising: Callable[..., Supervising]) -> None:
    """A job that ignores even that is killed."""
    job = supervising("deaf", "started", kill_after_s=1.0)
    job.read_until("ready")
    job.process.send_signal(signal.SIGINT)
    job.read_until("asked to stop at the next step")
    job.process.send_signal(signal.SIGINT)
    assert job.finish() == ["told to end", '[130, "interrupted"]']


def test_interruption_before_the_start(supervising: Callable[..., Supervising]) -> None:
    """Before the ranks have started there is no step to wait for: the first Ctrl-C ends the job."""
    job = supervising("stops", "not yet")
    job.read_until("ready")
    job.process.send_signal(signal.SIGINT)
    assert job.finish() == ["told to end", "error", '[130, "interrupted"]']


@pytest.mark.parametrize(
    ("started", "text"),
    [
        ("started", "stopping after what is under way, the adapter is kept; Ctrl-C again ends at once"),
        ("not yet", "stopping"),
    ],
)
def test_interruption_is_answered(started: str, text: str) -> None:
    """The user is told once what the first Ctrl-C does."""
    seen = Watched(react=on("ready", lambda: signal.raise_signal(signal.SIGINT)))
    assert seen.run(script(TRAINING, "stops", started)) == INTERRUPTED
    assert [e["text"] for e in seen.events if e["event"] == "notice"] == [text]


def test_error_after_asking() -> None:
    """What goes wrong between being asked and stopping is told, not hidden behind the interruption."""
    seen = Watched(react=on("ready", lambda: signal.raise_signal(signal.SIGINT)))
    assert seen.run(script(TRAINING, "fails", "started")) == Outcome(2, "the disk is full")


def mpirun(code: str) -> list[str]:
    """Two ranks under the real mpirun."""
    options = [
        "--map-by",
        "slot:OVERSUBSCRIBE",
        "--bind-to",
        "none",
        "--output",
        "tag",
        "--prtemca",
        "prte_tmpdir_base",
        "/tmp",
    ]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [str(find_open_mpi().mpirun), *root, "-np", "2", *options, *script(code)]


def test_real_mpirun() -> None:
    """Open MPI's tags are understood, long lines and half lines included, and it passes SIGUSR1 on to the ranks."""
    code = r"""
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
def on_ask(*_):
    say("asked\n", 2)
    os._exit(0)
signal.signal(signal.SIGUSR1, on_ask)
say('{"event": "answered", "rank": %d, "time": 1.0, "pad": "%s"}\n' % (rank, "x" * 100_000))
say("ha")
say("lf\n")
say('{"event": "started", "rank": %d, "time": 1.0}\n' % rank)
answer_signals()
"""
    started: list[Event] = []

    def react(thing: Event | Line) -> None:
        if isinstance(thing, dict) and thing["event"] == "started":
            started.append(thing)
            if len(started) == 2:
                signal.raise_signal(signal.SIGINT)

    seen = Watched(react=react)
    assert seen.run(mpirun(code)) == INTERRUPTED
    answered = sorted((e for e in seen.events if e["event"] == "answered"), key=lambda e: int(e["rank"]))
    assert answered == [event("answered", rank=rank, pad="x" * 100_000) for rank in (0, 1)]
    lines = sorted((line for line in seen.lines if line.rank is not None), key=lambda line: (line.text, line.rank))
    assert lines == [Line(0, "asked"), Line(1, "asked"), Line(0, "half"), Line(1, "half")]


def test_real_mpirun_killed(lifeline: Lifeline) -> None:
    """When mpirun itself is killed, its ranks on this machine, which do not notice, are ended with it."""
    code = f"""
held = hold({str(lifeline.path)!r})
say(json.dumps({{"event": "started", "rank": 0, "time": 1.0, "launcher": os.getsid(0)}}) + "\\n")
answer_signals()
"""
    launchers: list[int] = []

    def react(thing: Event | Line) -> None:
        if isinstance(thing, dict) and thing["event"] == "started":
            launchers.append(thing["launcher"])
            if len(launchers) == 2:
                os.kill(launchers[0], signal.SIGKILL)

    assert Watched(react=react).run(mpirun(code)) == Outcome(75, KILLED)
    assert len(set(launchers)) == 1
    assert lifeline.is_cut()


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps: install procps")
def test_processes_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, ps tells which processes there are."""
    with_proc = os.getpid() in processes.list_processes()
    monkeypatch.setattr(processes, "Path", lambda _: Path("/no/such/folder"))
    assert (with_proc, os.getpid() in processes.list_processes()) == (True, True)


def test_outcome_is_plain_data() -> None:
    """An outcome can be compared and shown; success has no message."""
    assert json.loads(json.dumps(vars(Outcome(0)))) == {"exit_code": 0, "message": "", "silent": [], "unreachable": {}}


PATIENT = "signal.signal(signal.SIGUSR1, signal.SIG_IGN)"
BEATING = """
tell("started")
tell("heartbeat", host="alpha")
tell("heartbeat", rank=1, host="beta")
tell("step")
tell("heartbeat", host="alpha")
tell("again")
sys.stdin.read()
import time; time.sleep(60)
"""


def test_a_silent_host_ends_the_job(clock: SimpleNamespace) -> None:
    """A host that has beaten and does no more, while another goes on, is lost: 75, its name. Heartbeats are not handed out."""
    seen: list[str] = []

    def take(event: Event) -> None:
        seen.append(event["event"])
        clock.now += {"step": 1.1, "again": 0.6}.get(event["event"], 0.0)

    def rest(_: Line) -> None: ...

    supervisor = Supervisor(take, rest, silence_s=1.5)  # in all less than a sleep of our own, should all lines come at once
    assert supervisor.run(script(BEATING), {}) == Outcome(75, "no sign of life from beta for 2 s", silent=("beta",))
    assert seen == ["started", "step", "again", "notice"]  # said at once: to end the others takes seconds


def test_all_hosts_are_silent_if_the_head_is(clock: SimpleNamespace) -> None:
    """What all hosts say comes by way of the head: if it hangs nobody is heard, and whose beat was the last means nothing."""

    def take(event: Event) -> None:
        clock.now += {"step": 0.3, "again": 1.3}.get(event["event"], 0.0)

    supervisor = Supervisor(take, lambda _: None, silence_s=1.5)
    lost = Outcome(75, "no sign of life from alpha and beta for 2 s", silent=("alpha", "beta"))
    assert supervisor.run(script(BEATING), {}) == lost


@pytest.mark.parametrize("is_still", [False, True], ids=["all clocks go on", "one stands still"])
def test_a_sleep_of_our_own_is_no_silence_of_others(clock: SimpleNamespace, is_still: bool) -> None:
    """The control machine was asleep for an hour: nobody was heard meanwhile, and nobody is lost.

    On some systems the clock that only goes forward stands still meanwhile. Awake again, it waits for its network, not longer.
    """
    head = SimpleNamespace(stdin=io.BytesIO(), pid=0)
    supervisor = Supervisor(lambda _: None, lambda _: None, silence_s=8.0)
    supervisor._beats = {"alpha": clock.now}

    def wait(seconds: float, *, is_asleep: bool = False) -> bytes:
        if is_asleep and is_still:
            clock.asleep += seconds
        else:
            clock.now += seconds
        supervisor._listen(head, clock.now)  # type: ignore[arg-type]
        return head.stdin.getvalue()

    wait(7.9)
    assert wait(3600, is_asleep=True) == b""
    assert [wait(1.9) for _ in range(19)][-1] == b""
    assert wait(1.95) == b"kill\n"


def test_a_loss_after_an_interruption_is_no_reason_to_go_on(clock: SimpleNamespace) -> None:
    """Ctrl-C while a host hangs: the ranks cannot stop after the step, and are ended; but the run has been interrupted."""

    def take(event: Event) -> None:
        if event["event"] == "step":
            signal.raise_signal(signal.SIGINT)
        clock.now += {"step": 1.1, "again": 0.6}.get(event["event"], 0.0)

    outcome = Supervisor(take, lambda _: None, silence_s=1.5).run(script(PATIENT + BEATING), {})
    assert outcome == Outcome(130, "interrupted; no sign of life from beta for 2 s", silent=("beta",))


def test_ranks_that_do_not_part_have_done_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last word of the ranks a host freezes: mpirun waits for it in vain, is killed, and the run has ended well."""
    monkeypatch.setattr(supervise, "_PARTING_S", 0.2)
    code = 'tell("started"); tell("heartbeat", host="alpha"); tell("done", stopped=False); sys.stdin.read(); answer_signals()'
    assert Watched(timeout_s=300.0).run(script(code)) == Outcome(0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("", "mpirun ended with exit code 0: somebody or something ended it"),
        (
            "  HNP daemon   : [prterun-1@0,0] on node alpha\\n  Remote daemon: [prterun-1@0,1] on node beta\\n",
            "the connection to a rank on beta broke off: it was killed, or its host is gone",
        ),
    ],
)
def test_an_end_without_an_error_is_a_loss_unless_the_ranks_were_done(said: str, message: str) -> None:
    """When a host that is not the head loses power, mpirun says so and ends with 0, as after a run that has ended well."""
    code = f'tell("started"); tell("heartbeat", host="alpha"); tell("step"); sys.stderr.write("{said}")'
    seen = Watched()
    assert seen.run(script(code)) == Outcome(75, message)
    assert seen.events[-1]["event"] == "notice"
    assert Watched().run(script(code.replace("step", "done"))) == Outcome(0)
