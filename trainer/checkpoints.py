"""Checkpoints on disk: a folder for each, whole or not there, with a manifest that knows every byte of it.

``checkpoints/step-00000040/`` holds ``manifest.json`` and the files that it names with size and SHA-256. It is written as
a hidden folder beside its place, file by file and the manifest last, each pushed to the disk, and renamed. So a process that
is killed at any byte leaves the checkpoints before it as they were. Who reads one checks all of it first.

Only the standard library is needed here: what is in the files is the concern of `trainer.engine.checkpoint`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_CHUNK_BYTES = 1 << 22


class DamagedError(Exception):
    """A checkpoint is not what was written; the text says which file and how it differs."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is whole. ``facts`` is what its writer wanted remembered; ``digest`` is that of all of it."""

    folder: Path
    step: int
    facts: Mapping[str, Any]
    digest: str
    size_bytes: int


def folder_of(parent: Path, step: int) -> Path:
    """Return where the checkpoint of ``step`` is, or would be."""
    return parent / f"step-{step:08d}"


def write_checkpoint(parent: Path, step: int, facts: Mapping[str, Any], files: Mapping[str, Sequence[Any]]) -> Checkpoint:
    """Write a checkpoint of ``files`` (name to portions, anything with bytes in it), replacing one of the same step.

    It is whole and on the disk when this returns. Raises `OSError`, then it is as if it had never been tried.
    """
    parent.mkdir(parents=True, exist_ok=True)
    target = folder_of(parent, step)
    scratch = parent / f".{target.name}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        entries = {name: _write_file(scratch / name, portions) for name, portions in files.items()}
        body = {"version": VERSION, "step": step, "files": entries, "facts": dict(facts)}
        digest = _digest(body)
        _write_file(scratch / MANIFEST, [json.dumps({"digest": digest, **body}, indent=1).encode()])
        _sync_folder(scratch)
        if target.exists():
            aside = parent / f".old-{target.name}-{os.getpid()}"
            os.rename(target, aside)
            os.rename(scratch, target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(scratch, target)
        _sync_folder(parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    size = sum(entry["size_bytes"] for entry in entries.values())
    return Checkpoint(folder=target, step=step, facts=facts, digest=digest, size_bytes=size)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in ``folder`` after looking at every byte of it; raises `DamagedError`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        digest = manifest.pop("digest")
        version, step, files = manifest["version"], manifest["step"], manifest["files"]
    except FileNotFoundError as error:
        raise DamagedError(f"{folder}: has no {MANIFEST}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{folder / MANIFEST}: cannot be read: {error}") from error
    if digest != _digest(manifest):
        raise DamagedError(f"{folder / MANIFEST}: is not what was written")
    if version != VERSION:
        raise DamagedError(f"{folder / MANIFEST}: has version {version}, this trainer reads {VERSION}")
    if folder.name != folder_of(folder, step).name:
        raise DamagedError(f"{folder}: is the checkpoint of step {step}")
    for name, entry in files.items():
        _check_file(folder / name, entry)
    size = sum(entry["size_bytes"] for entry in files.values())
    return Checkpoint(folder=folder, step=step, facts=manifest["facts"], digest=digest, size_bytes=size)


def list_steps(parent: Path) -> list[int]:
    """Return the steps of which there are checkpoints, whole or not, the newest first."""
    names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    return sorted((int(match[1]) for match in map(_NAME.fullmatch, names) if match), reverse=True)


def find_newest(parent: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is whole, and what is wrong with those that were passed over."""
    problems: list[str] = []
    for step in list_steps(parent):
        try:
            return read_checkpoint(folder_of(parent, step)), problems
        except DamagedError as error:
            problems.append(str(error))
    return None, problems


def keep_only(parent: Path, newest: int, *steps: int) -> None:
    """Remove all checkpoints but the ``newest`` so many and those of ``steps``, and what killed writers have left.

    A folder is renamed before it is emptied, so that half of one is never taken for a checkpoint.
    """
    unwanted = [folder_of(parent, step) for step in list_steps(parent)[newest:] if step not in steps]
    for folder in unwanted:
        _remove(folder)
    for folder in [*parent.glob(".step-*"), *parent.glob(".old-*")]:
        shutil.rmtree(folder, ignore_errors=True)


def discard_after(parent: Path, step: int) -> None:
    """Remove the checkpoints of later steps: the run takes those steps back, and does them again."""
    for later in list_steps(parent):
        if later > step:
            _remove(folder_of(parent, later))


def _remove(folder: Path) -> None:
    aside = folder.with_name(f".old-{folder.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _write_file(path: Path, portions: Iterable[Any]) -> dict[str, Any]:
    """Write ``portions``, push them to the disk, and return the manifest's entry for the file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("wb", buffering=0) as file:
        for portion in portions:
            view = memoryview(portion).cast("B")
            digest.update(view)
            size += len(view)
            while view:
                view = view[file.write(view[:_CHUNK_BYTES]) :]
        _push(file.fileno())
    return {"size_bytes": size, "sha256": digest.hexdigest()}


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != entry["size_bytes"]:
            raise DamagedError(f"{path}: has {size} bytes instead of {entry['size_bytes']}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise DamagedError(f"{path}: is not what was written")
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _push(descriptor: int) -> None:
    """Have the disk itself keep what was written: on macOS fsync leaves it in the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # not every file system can
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
