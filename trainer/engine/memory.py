"""The most memory that this process held: MLX's own count on a GPU, resident memory on a CPU."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import mlx.core as mx

_MIB = 1024 * 1024


def peak_memory_mib() -> float:
    """Return the peak since the process started, or since `reset_peak`, in MiB."""
    if mx.metal.is_available():
        return float(mx.get_peak_memory() / _MIB)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return float(peak / _MIB)
    with contextlib.suppress(OSError):
        if high := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE):
            return int(high[1]) / 1024
    return float(peak / 1024)


def keep_little() -> None:
    """Let MLX give memory back at once on a CPU, where keeping it for later saves no time."""
    if mx.default_device().type == mx.DeviceType.cpu:
        mx.set_cache_limit(0)


def reset_peak() -> None:
    """Begin to count anew, where the system can; the memory that MLX keeps for later is given back first."""
    mx.clear_cache()
    mx.reset_peak_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # Linux: forgets the peak of resident memory
