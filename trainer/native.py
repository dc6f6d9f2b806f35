"""Native libraries that must be loaded before MLX.

On Linux, MLX's CPU wheel is linked against the reference BLAS, whose float32 products are 60 to 100 times slower
than OpenBLAS (docs/benchmarks.md). Loading OpenBLAS first with global symbols makes the dynamic linker bind MLX's
``cblas_*`` calls to it. Every package of ours that imports MLX calls `load_blas` in its ``__init__``, which runs
before any of its modules can import MLX.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import sys
from pathlib import Path

BLAS_WHEEL = "cmeel-openblas"


def find_blas() -> Path | None:
    """Return the shared library inside the OpenBLAS wheel, or None where there is no need for it (macOS) or no wheel."""
    if sys.platform != "linux":
        return None
    try:
        files = importlib.metadata.files(BLAS_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "libopenblas.so.0":
            return Path(str(file.locate()))
    return None


@functools.cache
def load_blas() -> Path | None:
    """Load OpenBLAS with global symbols, once a process; must run before the first ``import mlx.core``.

    Returns its path, or None where it is not used. Set ``OPENBLAS_NUM_THREADS`` beforehand: the library reads it
    while loading.
    """
    path = find_blas()
    if path is not None:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return path
