"""How much memory a host has for a run. Sent to the nodes with `trainer.cluster.onnode`: the standard library only."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_MIB = 1024 * 1024
_LARGE_MAC = 36 * 1024 * _MIB


def read_room(root: Path = Path("/")) -> dict[str, Any]:
    """Return ``{"size_bytes": …, "what": …}``: what a run may take here, and what that is; size 0 where it is not told.

    On a Mac the limit of wired memory, which is what the GPU may use; elsewhere the available memory, or what is left below
    the limit of a control group if that is less.
    """
    return _read_mac() if sys.platform == "darwin" else _read_linux(root)


def _read_mac() -> dict[str, Any]:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["/usr/sbin/sysctl", "hw.memsize", "iogpu.wired_limit_mb"]
        return judge_mac(subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout)
    return {"size_bytes": 0, "what": "memory"}


def judge_mac(said: str) -> dict[str, Any]:
    """Return the room of a Mac from what sysctl says of ``hw.memsize`` and ``iogpu.wired_limit_mb``.

    A limit of 0 is the system's own: about two thirds of the memory up to 36 GB, three quarters above.
    """
    numbers = {name: int(value) for name, value in re.findall(r"^([\w.]+): (\d+)$", said, re.MULTILINE)}
    if limit := numbers.get("iogpu.wired_limit_mb", 0):
        return {"size_bytes": limit * _MIB, "what": "wired limit"}
    memory = numbers.get("hw.memsize", 0)
    share = memory * 3 // 4 if memory > _LARGE_MAC else memory * 2 // 3
    return {"size_bytes": share, "what": "wired limit (the system's)"}


def _read_linux(root: Path) -> dict[str, Any]:
    free = _number(root / "proc/meminfo", r"^MemAvailable:\s+(\d+) kB") * 1024
    left = [found for folder in _groups(root) if (found := _left_in(folder)) is not None]
    if left and (not free or min(left) < free):
        return {"size_bytes": max(min(left), 0), "what": "control group's limit"}
    return {"size_bytes": free, "what": "available"}


def _groups(root: Path) -> list[Path]:
    """Return the folders of this process's control group and of those around it, versions 2 and 1."""
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
        for line in lines:
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                top = root / "sys/fs/cgroup" / kinds
                own = top / path.lstrip("/")
                return [own, *(each for each in own.parents if each == top or top in each.parents)]
    return []


def _left_in(folder: Path) -> int | None:
    """Return how many bytes are left below a control group's limit; None if it has none."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        most = _number(folder / limit, r"^(\d+)$")
        if most and most < 1 << 60:  # version 1 says "none" by a huge number
            # files that are only cached count as used, and are dropped when memory is wanted
            return most - _number(folder / used, r"^(\d+)$") + _number(folder / "memory.stat", r"^inactive_file (\d+)$")
    return None


def _number(path: Path, pattern: str) -> int:
    with contextlib.suppress(OSError):
        if match := re.search(pattern, path.read_text("utf-8"), re.MULTILINE):
            return int(match[1])
    return 0
