"""The file of hidden states: an entry is there whole or not at all, whatever happened to the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data import hidden
from trainer.data.hidden import HiddenStore, check_room, key_of, prune

FACTS = {"model": "m", "data": "d", "depth": "22"}
TOKENS, TOKEN_BYTES = [3, 1, 5], 8
ENTRIES = [bytes([index + 1]) * (tokens * TOKEN_BYTES) for index, tokens in enumerate(TOKENS)]


def open_store(root: Path) -> HiddenStore:
    return HiddenStore(root, FACTS, TOKENS, TOKEN_BYTES)


def fill(root: Path) -> HiddenStore:
    store = open_store(root)
    for index, data in enumerate(ENTRIES):
        store.write(index, data)
    return store


def test_what_was_written_is_read_by_others(tmp_path: Path) -> None:
    """A second process's store of the same facts has what the first wrote, and nothing before it was written."""
    early = open_store(tmp_path)
    assert not early.written().any()
    assert [early.read(index) for index in range(3)] == [None] * 3
    fill(tmp_path)
    assert early.written().all()
    assert [early.read(index) for index in range(3)] == ENTRIES
    assert early.size_bytes == sum(map(len, ENTRIES))


def test_other_facts_are_another_file(tmp_path: Path) -> None:
    """Another model, other data or another depth finds nothing of ours."""
    fill(tmp_path)
    for name in FACTS:
        other = HiddenStore(tmp_path, {**FACTS, name: "x"}, TOKENS, TOKEN_BYTES)
        assert not other.written().any()
        assert other.read(0) is None


@pytest.mark.parametrize("name", ["hidden.bin", "rows.bin"])
@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short(tmp_path_factory: pytest.TempPathFactory, name: str, share: float) -> None:
    """Cut at any byte, either file costs the entries that it does not hold whole, and no other."""
    store = fill(tmp_path_factory.mktemp("store"))
    path = store.folder / name
    left = int(path.stat().st_size * share)
    os.truncate(path, left)
    ends = [24, 32, 72] if name == "hidden.bin" else [8, 16, 24]
    assert [store.read(index) for index in range(3)] == [ENTRIES[i] if ends[i] <= left else None for i in range(3)]
    store.write(2, ENTRIES[2])
    assert store.read(2) == ENTRIES[2]


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 71), bit=st.integers(0, 7))
def test_an_altered_byte(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    """A bit that changed anywhere makes its entry, and no other, one that is not there."""
    store = fill(tmp_path_factory.mktemp("store"))
    path = store.folder / "hidden.bin"
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)
    hit = 0 if place < 24 else 1 if place < 32 else 2
    assert [store.read(index) is None for index in range(3)] == [index == hit for index in range(3)]


def test_files_deleted_during_a_run(tmp_path: Path) -> None:
    """Who has the files open goes on with them; who opens them anew begins anew."""
    store = fill(tmp_path)
    for path in store.folder.iterdir():
        path.unlink()
    assert store.read(1) == ENTRIES[1]
    assert open_store(tmp_path).read(1) is None


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle of an entry, the writer is told and the entry is not there."""
    store, real = open_store(tmp_path), os.pwrite

    def pwrite(descriptor: int, data: bytes, start: int) -> int:
        if len(data) > 10:
            return real(descriptor, data[:10], start)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hidden.os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space left"):
        store.write(0, ENTRIES[0])
    monkeypatch.undo()
    assert store.read(0) is None


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the setting, or with less than a GiB left to others, the store is refused in a sentence."""
    gib = 2**30
    assert check_room(tmp_path / "not" / "there", gib // 100, gib) == ""
    assert check_room(tmp_path, 3 * gib, 2 * gib) == "it would take 3.0 GiB, above speed.trunk_cache_gib = 2"
    monkeypatch.setattr(hidden.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3 * gib}))
    assert check_room(tmp_path, 3 * gib, 9 * gib) == f"it would take 3.0 GiB, and {tmp_path} has 3.0 GiB free"
    assert check_room(tmp_path, 3 * gib, 9 * gib, present_bytes=gib) == ""


def test_the_longest_unused_stores_make_room(tmp_path: Path) -> None:
    """Above the limit the stores used longest ago go, never the one that is kept."""
    folders = [HiddenStore(tmp_path, {"data": str(n)}, [1000], 8).folder for n in range(3)]
    for age, folder in enumerate(folders):
        (folder / "hidden.bin").write_bytes(b"x" * 64 * 1024)
        os.utime(folder, (1_000_000 + age, 1_000_000 + age))
    prune(tmp_path, 200 * 1024, keep=key_of({"data": "0"}))
    assert [folder.exists() for folder in folders] == [True, False, True]
