"""The Mac that the stubs pretend to be: where its state lies, who asks, and how a change is made one at a time."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

STATE = "/var/db/flotilla-mac/state.json"
CALLS = "/var/db/flotilla-mac/calls.jsonl"
LINK = "tb0"  # the laboratory's interface that carries what the Thunderbolt ports would
State = dict[str, Any]


class RefusalError(Exception):
    """The command ends here with this exit code; its text was what the real one says."""

    def __init__(self, code: int, text: str = "", *, on_stdout: bool = False) -> None:
        super().__init__(text)
        self.code, self.text, self.on_stdout = code, text, on_stdout


class Mac:
    """One simulated Mac, as one call of a stub sees it. ``root`` is empty in the laboratory, a folder in unit tests."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.root = os.environ.get("FLOTILLA_MAC_ROOT", "")
        self.uid = int(os.environ.get("FLOTILLA_MAC_UID", os.geteuid())) if self.root else os.geteuid()

    @property
    def is_root(self) -> bool:
        """Tell whether the caller may change the system."""
        return self.uid == 0

    def path(self, absolute: str) -> Path:
        """Return where this Mac's file of that name is."""
        return Path(self.root + absolute)

    @property
    def state(self) -> State:
        """Return the state as it is now; changes to it are lost, see `change`."""
        state: State = json.loads(self.path(STATE).read_text())
        return state

    @contextmanager
    def change(self) -> Iterator[State]:
        """Yield the state for changing; written back if the block ends without an exception. Noted in the journal."""
        with self._lock():
            state = self.state
            before = json.dumps(state)
            yield state
            after = json.dumps(state, indent=1)
            changed = json.loads(after) != json.loads(before)
            if changed:
                self._replace(STATE, after)
        self.note(changed)

    def note(self, changed: bool = True) -> None:
        """Note this call in the journal."""
        line = json.dumps({"argv": self.argv, "uid": self.uid, "changed": changed})
        with self.path(CALLS).open("a") as journal:
            journal.write(line + "\n")

    def interface(self, name: str) -> Path | None:
        """Return the kernel's folder of a real interface of this host; None in unit tests and where there is none."""
        folder = Path("/sys/class/net") / name
        return folder if not self.root and folder.exists() else None

    @property
    def is_cut(self) -> bool:
        """Tell whether the laboratory has pulled the cables: the link is up and has no carrier."""
        folder = self.interface(LINK)
        try:
            return folder is not None and (folder / "carrier").read_text().strip() == "0"
        except OSError:  # the link is down, so nobody knows
            return False

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a real command of the host."""
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    def _replace(self, path: str, text: str) -> None:
        target = self.path(path)
        fresh = target.with_suffix(".new")
        fresh.write_text(text)
        fresh.chmod(0o644)
        os.replace(fresh, target)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = os.open(self.path(STATE).parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def say(text: str) -> None:
    """Print a line; what cannot be encoded is replaced, as terminals do."""
    sys.stdout.write(text + "\n")


def refuse(code: int, text: str, *, on_stdout: bool = False) -> NoReturn:
    """End the command with these words."""
    raise RefusalError(code, text, on_stdout=on_stdout)
