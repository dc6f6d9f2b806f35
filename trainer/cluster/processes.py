"""Finding and ending processes of this machine: those of a session, those that mention a file.

Needs nothing but the standard library: the launcher sends this module's source to hosts that may not have the package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_TERM_GRACE_S = 1.0


def kill_session(session: int) -> None:
    """Kill all processes of a session. A process group is not enough: mpirun puts every rank into one of its own."""
    killed: set[int] = set()
    while members := {pid for pid in list_processes() if pid not in killed and _session_of(pid) == session}:
        _send(members, signal.SIGKILL)
        killed |= members


def list_processes() -> list[int]:
    """Return the numbers of all processes."""
    proc = Path("/proc")
    if proc.is_dir():
        return [int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()]
    listed = subprocess.run(["ps", "-axo", "pid="], capture_output=True, text=True, check=False)  # macOS
    return [int(pid) for pid in listed.stdout.split()]


def find_mentioning(word: str) -> list[int]:
    """Return the processes, this one excepted, that have ``word`` as a whole argument on their command line."""
    return [pid for pid, arguments in _list_arguments() if pid != os.getpid() and word in arguments]


def end_mentioning(word: str) -> int:
    """End the processes that have ``word`` as an argument, by SIGTERM and after a second by SIGKILL; returns how many."""
    found = set(find_mentioning(word))
    _send(found, signal.SIGTERM)
    give_up_at = time.monotonic() + _TERM_GRACE_S
    while (left := set(find_mentioning(word))) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    _send(left, signal.SIGKILL)
    return len(found | left)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _list_arguments() -> Iterator[tuple[int, list[str]]]:
    """Yield each process with the words of its command line."""
    if Path("/proc").is_dir():
        for pid in list_processes():
            with contextlib.suppress(OSError):  # it may have ended meanwhile
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        return
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=False)  # macOS
    for line in listed.stdout.splitlines():
        number, *words = line.split()  # our paths hold no blanks
        yield int(number), words


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
