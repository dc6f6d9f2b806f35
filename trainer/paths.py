"""Where files live: the user's cache, and relative paths of recipes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainer.errors import InputError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Return the folder for what can be made again: converted models, repaired libraries. Not created here.

    ``FLOTILLA_CACHE`` wins, then the platform's custom: ``~/Library/Caches`` on macOS, ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if chosen := os.environ.get("FLOTILLA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "flotilla"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flotilla"


def runs_dir() -> Path:
    """Return the folder of all runs: ``FLOTILLA_RUNS``, or ``runs/`` in the project. Not created here."""
    chosen = os.environ.get("FLOTILLA_RUNS")
    return Path(chosen).expanduser().resolve() if chosen else PROJECT_ROOT / "runs"


def baselines_dir() -> Path:
    """Return the folder of all baselines: ``FLOTILLA_BASELINES``, or ``baselines/`` in the project. Not created here."""
    chosen = os.environ.get("FLOTILLA_BASELINES")
    return Path(chosen).expanduser().resolve() if chosen else PROJECT_ROOT / "baselines"


def point_latest(folder: Path) -> None:
    """Let ``latest`` beside ``folder`` point at it, atomically; a file of the user's under that name is left alone."""
    latest = folder.parent / "latest"
    if latest.exists() and not latest.is_symlink():
        return
    scratch = folder.parent / f".latest-{folder.name}"
    scratch.symlink_to(folder.name)
    os.replace(scratch, latest)


def find_beside(path: str | Path, *roots: Path) -> Path:
    """Return the absolute form of ``path``: as it is from the current folder if that exists, else from the first of
    ``roots`` where it exists, else from the current folder. Raises `InputError` for what cannot be a path.
    """
    try:
        given = Path(path).expanduser()
        candidates = [Path.cwd() / given, *(root / given for root in roots)]
        return next((c for c in candidates if c.exists()), candidates[0]).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user's home, a null byte
        raise InputError(f"{path!s:.60}: is not a path: {getattr(error, 'strerror', None) or error}") from error
