"""Where Open MPI's processes on a host find each other: a folder in /tmp for each start of a run.

In /tmp because a socket's name must be short, and macOS's own temporary folder is long. A folder of the run's own because a
launcher that is killed leaves its session behind, named after its process number: among those of all runs it would keep a later
mpirun that happens to get the same number from starting.

Needs nothing but the standard library: the launcher sends this module's source to hosts that may not have the package.
"""

from __future__ import annotations

import glob
import hashlib
import shutil
from pathlib import Path

_NAME_DIGITS = 8


def name_session(plan_file: Path, attempt: int) -> Path:
    """Return the folder of the ``attempt``-th start of the run whose plan is ``plan_file``, the same on all hosts."""
    return Path(f"{_prefix(plan_file)}.{attempt}")


def remove_sessions(plan_file: Path) -> None:
    """Remove what all starts of a run have left on this host; none of it may be going on."""
    for folder in glob.glob(f"{_prefix(plan_file)}.*"):  # noqa: PTH207, Path's takes no absolute pattern
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(plan_file: Path) -> str:
    digest = hashlib.sha256(str(plan_file).encode()).hexdigest()
    return f"/tmp/flotilla-{digest[:_NAME_DIGITS]}"  # noqa: S108
