"""Making hosts of the laboratory ill, and healing them as the doctor says."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.laboratory import LabError, Laboratory
from trainer.paths import PROJECT_ROOT, cache_dir

Act = Callable[[Laboratory], object]
REMEDY_TIMEOUT_S = 240


@dataclass(frozen=True, kw_only=True)
class Case:
    """A failure: how it is made, on which host the doctor must find which check, and what is done about it.

    ``hand`` is what a person would do where nothing can be scripted; otherwise the printed remedy is run as it is.
    ``stub`` says which program of the host stands in for one that the laboratory has not.
    """

    check: str
    host: str
    make: Act
    hand: Act | None = None
    stub: str = ""
    severity: str = "problem"


def examine(lab: Laboratory) -> dict[str, Any]:
    """Return what ``./inv doctor --json`` tells; its exit code must agree with it."""
    done = lab.control(["./inv", "doctor", "-i", str(lab.inventory), "--json"], cwd=PROJECT_ROOT, check=False)
    assert done.returncode in (0, 3), done.stdout[-2000:] + done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (3 if told["problems"] else 0)
    assert told["problems"] == sum(finding["severity"] == "problem" for finding in told["findings"])
    return told


def find(told: dict[str, Any], case: Case) -> dict[str, Any] | None:
    """Return the finding of a case; None if it was not made."""
    known = (each for each in told["findings"] if each["severity"] != "unknown")
    return next((each for each in known if each["check"] == case.check and each["host"] == case.host), None)


def treat(lab: Laboratory, cases: Sequence[Case], usual: frozenset[tuple[str, str]], also: Sequence[str] = ()) -> None:
    """Make all failures of ``cases``, see each found and named, mend each as told, and see the doctor green again.

    ``usual`` are the notes of healthy hosts, ``also`` the checks that find the same failures in their own way.
    """
    made = [case for case in cases if _make(lab, case)]
    told = examine(lab)
    rows = [(case, _get(told, case)) for case in made]
    expected = {*usual, *((case.check, case.host) for case in made)}
    known = [each for each in told["findings"] if each["severity"] != "unknown" and each["check"] not in also]
    strangers = [each for each in known if (each["check"], each["host"]) not in expected]
    assert not strangers, json.dumps(strangers, indent=1)
    for case, finding in rows:
        print(f"{case.host:6} {case.check:18} found: {finding['title']} ({finding['detail']})")
        _mend(lab, case, finding)
    after = examine(lab)
    known = [each for each in after["findings"] if each["severity"] != "unknown"]
    left = [each for each in known if (each["check"], each["host"]) not in usual]
    assert not left, json.dumps(left, indent=1)
    print(f"doctor: {after['problems']} problems left")


def _make(lab: Laboratory, case: Case) -> bool:
    try:
        case.make(lab)
    except LabError as error:
        print(f"{case.host:6} {case.check:18} not made here: {error}")
        return False
    return True


def _get(told: dict[str, Any], case: Case) -> dict[str, Any]:
    finding = find(told, case)
    assert finding, (case.check, case.host, told["findings"])
    assert finding["severity"] == case.severity
    assert finding["why"]
    assert finding["evidence"] or finding["detail"]
    assert finding["remedy"] or finding["by_hand"]
    return finding


def _mend(lab: Laboratory, case: Case, finding: dict[str, Any]) -> None:
    if case.hand:
        print(f"       by hand: {finding['by_hand'] or finding['remedy']}")
        case.hand(lab)
        return
    print(f"       run{f' ({case.stub} is a stub)' if case.stub else ''}: {finding['remedy']}")
    code, said = type_in(lab, finding["remedy"])
    assert code == 0, said[-4000:]


def type_in(lab: Laboratory, command: str) -> tuple[int, str]:
    """Run a shell command on the control machine's terminal, giving the password to whoever asks for one.

    Returns the exit code and all that was printed.
    """
    primary, secondary = pty.openpty()
    argv = lab.control_argv(["setsid", "--wait", "--ctty", "sh", "-c", command])
    environment = {**lab.control_env, "FLOTILLA_CACHE": str(cache_dir()), "TERM": "dumb", "ANSIBLE_NOCOLOR": "1"}
    process = subprocess.Popen(
        argv, stdin=secondary, stdout=secondary, stderr=secondary, cwd=PROJECT_ROOT, env=environment, close_fds=True
    )
    os.close(secondary)
    try:
        said = _converse(primary, process, lab.password)
        return process.wait(timeout=10), said
    finally:
        process.kill()
        os.close(primary)


def _converse(terminal: int, process: subprocess.Popen[bytes], password: str) -> str:
    said, answered, give_up_at = b"", 0, time.monotonic() + REMEDY_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # what Linux answers when nobody holds the other side any more
                break
            said += part
            last = said[answered:].lower().rpartition(b"\n")[2]
            if b"password" in last and last.rstrip().endswith(b":"):
                os.write(terminal, f"{password}\n".encode())
                answered = len(said)
        elif process.poll() is not None:
            break
    return said.decode("utf-8", "replace")
