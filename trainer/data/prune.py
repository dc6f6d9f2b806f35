"""Token stores of earlier data: kept while they fit, and given up by age."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 32 << 30  # of all stores of a host


def prune_stores(root: Path, keep: str, most_bytes: int = MOST_BYTES) -> Iterator[str]:
    """Remove the stores in ``root`` used longest ago until all of them take at most ``most_bytes``; yields a word on each.

    Half-made ones of builds that were killed are among them. The store ``keep`` stays, and so does one that another process
    is making or looking at. A run that reads what is removed keeps its files until it ends: they are mapped.
    """
    stores: list[tuple[bool, float, int, Path]] = []
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # removed by another process just now; or a file, such as a lock
            size = sum(file.stat().st_size for file in folder.iterdir())
            stores.append((folder.name != keep, -folder.stat().st_mtime, size, folder))
    total = 0
    for is_other, _, size, folder in sorted(stores):
        if total + size > most_bytes and is_other and _remove(folder):
            yield f"{folder}: removed {_gib(size)} of tokens of other data, for all together take more than {_gib(most_bytes)}"
        else:
            total += size


def _remove(folder: Path) -> bool:
    """Remove a store unless somebody holds its lock."""
    with (folder.parent / f".{folder.name.removeprefix('.')}.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.3g} GiB"
