"""A simulated Mac in a folder: its commands can be called without a laboratory and without being root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.ansible.macs.install import install, program, read_calls, read_state
from tests.ansible.macs.models import MacState

USER = 501


class Bench:
    """A Mac on the workbench, whose root is a folder."""

    def __init__(self, root: Path, state: MacState) -> None:
        self.root = root
        install(root, state)

    def run(
        self, command: str, *args: str, uid: int = 0, env: dict[str, str] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Call a command as root, or as this user."""
        own = {"FLOTILLA_MAC_ROOT": str(self.root), "FLOTILLA_MAC_UID": str(uid), "PATH": os.defpath}
        argv = [str(program(self.root, command)), *args]
        return subprocess.run(argv, env=own | (env or {}), input=stdin, capture_output=True, text=True, check=False, timeout=60)

    def ask(self, command: str, *args: str, uid: int = 0, **options: Any) -> str:
        """Return what a command says, which must end well and complain of nothing."""
        done = self.run(command, *args, uid=uid, **options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    @property
    def state(self) -> dict[str, Any]:
        """Return the state as it is now."""
        return read_state(self.root)

    @property
    def calls(self) -> list[list[str]]:
        """Return the calls that changed something."""
        return [call["argv"] for call in read_calls(self.root) if call["changed"]]
