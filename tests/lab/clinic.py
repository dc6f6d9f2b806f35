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
from trainer.cluster.doctor.view import shorten
from trainer.paths import PROJECT_ROOT, cache_dir

Act = Callable[[Laboratory], object]
REMEDY_TIMEOUT_S = 240
PLAYBOOK = "./inv provision "


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


@dataclass(kw_only=True)
class Row:
    """A line of the table that is shown when the tests have ended."""

    case: Case
    finding: dict[str, Any]
    is_green: bool = False

    def cells(self) -> tuple[str, ...]:
        """Return number, host, check, what was found, what was done, and the doctor's word after it."""
        done = "by hand" if self.case.hand else f"run ({self.case.stub} is a stub)" if self.case.stub else "run"
        told = (self.finding["by_hand"] if self.case.hand else "") or self.finding["remedy"]
        after = "green" if self.is_green else "RED"
        number = str(self.finding["number"] or "-")
        return number, self.case.host, self.case.check, self.finding["detail"], f"{done}: {told}", after


TABLE: list[Row] = []  # of the test under way: tests/conftest.py takes them along


def render_table(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of the table of all failures that were made, with the remedy as it was printed."""
    head = ("#", "host", "check", "found", "remedy", "doctor")
    rows = [(*cells[:3], shorten(cells[3], width=48), *cells[4:]) for cells in table]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(4)]
    lines = [[cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)] for row in (head, *rows)]
    return ["  ".join([*line, row[5].ljust(6), row[4]]) for line, row in zip(lines, (head, *rows), strict=True)]


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
    shown = [Row(case=case, finding=finding) for case, finding in rows]
    TABLE.extend(shown)
    for case, finding in rows:
        print(f"{case.host:6} {case.check:18} found: {finding['title']} ({finding['detail']})")
    _mend(lab, rows)
    after = examine(lab)
    known = [each for each in after["findings"] if each["severity"] != "unknown"]
    left = [each for each in known if (each["check"], each["host"]) not in usual]
    assert not left, json.dumps(left, indent=1)
    print(f"doctor: {after['problems']} problems left")
    for row in shown:
        row.is_green = True


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


def _mend(lab: Laboratory, rows: Sequence[tuple[Case, dict[str, Any]]]) -> None:
    """Do what is done by hand, then run the remedies; one that several end with, such as a playbook, once and last."""
    for case, finding in rows:
        if case.hand:
            print(f"by hand: {finding['by_hand'] or finding['remedy']}")
            case.hand(lab)
    split = [finding["remedy"].rpartition(PLAYBOOK) for case, finding in rows if not case.hand]
    own = [first.removesuffix(" && ") if mark else last for first, mark, last in split]
    common = [mark + last for _, mark, last in split if mark]
    for command in dict.fromkeys([*filter(None, own), *common]):
        print(f"run: {command}")
        code, said = type_in(lab, command)
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
