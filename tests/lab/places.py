"""Where laboratories keep their state on this machine, and who may change that at a time."""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATE = Path("/var/tmp/flotilla-lab")
_MADE_BY_US = "trusted.flotilla-lab"


def names() -> list[str]:
    """Return the names of all laboratories, those included of which a crash left something."""
    return sorted(entry.name for entry in STATE.iterdir()) if STATE.is_dir() else []


def ssh_folder() -> Path:
    """Return the folder that OpenSSH reads: in the home of the user database, whatever HOME says."""
    return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"


def make_ssh_folder() -> None:
    """Make an ``.ssh`` where there is none, for a laboratory's own can only be bound over one that exists."""
    if not ssh_folder().exists():
        ssh_folder().mkdir(mode=0o700)
        os.setxattr(ssh_folder(), _MADE_BY_US, b"y")


def remove_ssh_folder() -> None:
    """Remove an ``.ssh`` that `make_ssh_folder` made and in which nothing is."""
    folder = ssh_folder()
    if folder.is_dir() and _MADE_BY_US in os.listxattr(folder) and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def lock() -> Iterator[None]:
    """Let one process at a time make or remove laboratories; the lock is on a folder that stays, so leaves no file."""
    descriptor = os.open(STATE.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
