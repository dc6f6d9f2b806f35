"""The file of hidden states that enter the first adapted layer: one entry for each sample, written once, read every epoch.

    <cache>/trunk/<key>/   key: SHA-256 of all that the numbers depend on (`key_of`)
      meta.json            what that is, in words
      hidden.bin           the samples' hidden states one after the other, in the model's own type; sparse until written
      rows.bin             for each sample, once it is written, 2**32 + CRC-32 of its bytes (little-endian, 8 bytes)

An entry counts only if its checksum is right, and that is looked at every time it is read. So a file that was cut short, torn
by a crash or altered costs a computation and nothing else, and several ranks and runs may write the same entries at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_WRITTEN = 1 << 32
_ENTRY_BYTES = 8
_SPARE_BYTES = 2**30  # of the disk, left to others
VERSION = 1


def key_of(facts: Mapping[str, str]) -> str:
    """Return the name of the folder for what ``facts`` describe."""
    text = json.dumps({"version": VERSION, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class HiddenStore:
    """Entries of ``num_tokens[i]`` tokens of ``token_bytes`` bytes each. Several processes may share it."""

    def __init__(
        self, root: Path, facts: Mapping[str, str], num_tokens: Sequence[int] | NDArray[np.int64], token_bytes: int
    ) -> None:
        """Open or make the folder of ``facts`` in ``root``; raises `OSError` if it cannot be written there."""
        self.folder = root / key_of(facts)
        self._sizes = np.asarray(num_tokens, np.int64) * token_bytes
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "meta.json").write_text(json.dumps(dict(facts), indent=2) + "\n", "utf-8")
        self._data = os.open(self.folder / "hidden.bin", os.O_RDWR | os.O_CREAT, 0o644)
        self._marks = os.open(self.folder / "rows.bin", os.O_RDWR | os.O_CREAT, 0o644)
        os.utime(self.folder)  # the last to be thrown away

    @property
    def size_bytes(self) -> int:
        """What the file takes once it is full."""
        return int(self._starts[-1])

    def written(self) -> NDArray[np.bool_]:
        """Return for each entry whether it claims to be there; its checksum is looked at when it is read."""
        raw = os.pread(self._marks, len(self._sizes) * _ENTRY_BYTES, 0)
        marks = np.zeros(len(self._sizes), "<u8")
        whole = len(raw) // _ENTRY_BYTES
        marks[:whole] = np.frombuffer(raw[: whole * _ENTRY_BYTES], "<u8")
        return marks >= _WRITTEN

    def read(self, index: int) -> bytes | None:
        """Return the bytes of an entry, or None if it is not there, or not whole."""
        mark = os.pread(self._marks, _ENTRY_BYTES, index * _ENTRY_BYTES)
        size = int(self._sizes[index])
        data = os.pread(self._data, size, int(self._starts[index]))
        whole = len(mark) == _ENTRY_BYTES and len(data) == size
        return data if whole and int.from_bytes(mark, "little") == _WRITTEN + zlib.crc32(data) else None

    def write(self, index: int, data: bytes) -> None:
        """Write an entry, the mark last; raises `OSError` when the disk is full, and the entry is then not there."""
        assert len(data) == self._sizes[index]
        _write_all(self._data, data, int(self._starts[index]))
        _write_all(self._marks, (_WRITTEN + zlib.crc32(data)).to_bytes(_ENTRY_BYTES, "little"), index * _ENTRY_BYTES)

    def close(self) -> None:
        """Close the files."""
        os.close(self._data)
        os.close(self._marks)


def _write_all(descriptor: int, data: bytes, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], start + done)


def check_room(root: Path, size_bytes: int, limit_bytes: int, present_bytes: int = 0) -> str:
    """Return why a store of ``size_bytes`` must not be made in ``root``; empty if it may."""
    if size_bytes > limit_bytes:
        return f"it would take {_gib(size_bytes)}, above speed.trunk_cache_gib = {limit_bytes / 2**30:g}"
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size_bytes - present_bytes > free - _SPARE_BYTES:
        return f"it would take {_gib(size_bytes)}, and {root} has {_gib(max(free, 0))} free"
    return ""


def prune(root: Path, limit_bytes: int, keep: str) -> None:
    """Remove the stores used longest ago until all of them, ``keep`` counted whole, take no more than ``limit_bytes``."""
    folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda folder: -folder.stat().st_mtime)
    total = 0
    for folder in sorted(folders, key=lambda folder: folder.name != keep):
        total += sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        if total > limit_bytes and folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
