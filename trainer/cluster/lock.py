"""Locks that survive crashes: the kernel holds one for as long as the process that took it lives, and not a moment longer.

The file says who that is; a file without its lock means nothing. Only the standard library is needed: nodes are
asked for theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

HOST_LOCK = ".lock"  # in the folder of all runs: the ranks' own hold on their host
_REST_S = 0.05


class Lock:
    """A lock on ``path``. As a context manager it is released at the end of the block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self, about: Mapping[str, Any], patience_s: float = 0.2, clock: Callable[[], float] = time.monotonic) -> bool:
        """Take the lock and write down ``about`` whom; returns whether it could be had within ``patience_s``.

        Some patience is needed: whoever asks `find_holder` has it for a moment.
        """
        give_up_at = clock() + patience_s
        while (descriptor := self._open()) is None:
            if clock() >= give_up_at:
                return False
            time.sleep(_REST_S)
        self._descriptor = descriptor
        self.tell(about)
        return True

    def _open(self) -> int | None:
        """Return the locked file, None if another has it, or has just removed it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return None
        with contextlib.suppress(FileNotFoundError):
            if _try(descriptor, fcntl.LOCK_EX) and os.path.samestat(os.fstat(descriptor), self.path.stat()):
                return descriptor
        os.close(descriptor)
        return None

    def tell(self, about: Mapping[str, Any]) -> None:
        """Write down something else about the holder."""
        assert self._descriptor is not None
        data = json.dumps(dict(about)).encode()
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Give the lock back, if it was taken, and leave no file behind."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
        self.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def find_holder(path: Path) -> dict[str, Any] | None:
    """Return what the holder of a lock wrote down, None if nobody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if _try(descriptor, fcntl.LOCK_SH):
            return None
        with contextlib.suppress(ValueError):
            about = json.loads(os.pread(descriptor, 1 << 16, 0))
            return about if isinstance(about, dict) else {}
        return {}  # it is being written
    finally:
        os.close(descriptor)


def _try(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
