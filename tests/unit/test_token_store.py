"""The token store: what is in it is what the tokenizer makes, however it came about."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import write_tiny_data

from trainer.data.batch import make_batch
from trainer.data.checked import check_data
from trainer.data.fill import fill_store
from trainer.data.formats import SPLITS, read_samples
from trainer.data.prune import prune_stores
from trainer.data.store import TokenStore, digest_index, key_store, open_store, read_index
from trainer.data.tokens import tokenize_samples
from trainer.errors import InputError
from trainer.fingerprint import hash_files
from trainer.paths import PROJECT_ROOT
from trainer.tokenizer import load_tokenizer

GOOD = '{"messages": [{"role": "user", "content": "ahoy"}, {"role": "assistant", "content": "arr"}]}\n'
patient = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])  # no test of time


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.fixture
def store(tmp_path: Path, tiny_data: Path, tiny_model: Path) -> Path:
    """Return a store of the tiny data, made in one process."""
    fill_store(tmp_path / "store", tiny_data, tiny_model)
    return tmp_path / "store"


def test_rows_are_those_of_the_tokenizer(store: Path, tiny_data: Path, tokenizer: Any) -> None:
    """Every row of every split has the tokens and the mask that `tokenize_samples` returns, in the order of the lines."""
    for split, rows in open_store(store, tiny_data).items():
        expected = tokenize_samples(read_samples(tiny_data / f"{split}.jsonl"), tokenizer, 999)
        assert len(rows) == len(expected)
        for row, other in zip(rows, expected, strict=True):
            np.testing.assert_array_equal(row.tokens, other.tokens)
            np.testing.assert_array_equal(row.supervised, other.supervised)
            assert (row.tokens.dtype.name, row.supervised.dtype.name) == ("int32", "bool")
        assert rows.lengths.tolist() == [len(row) for row in expected]
        assert rows.num_tokens == sum(map(len, expected))
        assert rows.num_learned == sum(int(row.supervised.sum()) for row in expected)


def test_a_store_is_a_sequence_of_rows(store: Path, tiny_data: Path) -> None:
    """Negative numbers and slices work as in a list, a number beyond the end raises, and rows make batches."""
    rows = open_store(store, tiny_data)["train"]
    np.testing.assert_array_equal(rows[-1].tokens, rows[len(rows) - 1].tokens)
    assert [len(row) for row in rows[2:9:3]] == rows.lengths[2:9:3].tolist()
    with pytest.raises(IndexError, match="row 24 of 24"):
        rows[24]
    with pytest.raises(IndexError):
        rows[-25]
    batch = make_batch(rows[:4])
    assert batch.num_supervised == sum(row.num_supervised for row in rows[:4])


@patient
@given(part_bytes=st.integers(1, 4000))
def test_parts_of_any_size_give_the_same_bytes(
    part_bytes: int, tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_model: Path
) -> None:
    """Where a file is cut, in the middle of a line or of a character, leaves no trace in the store."""
    once, cut = (tmp_path_factory.mktemp("stores") / name for name in ("once", "cut"))
    fill_store(once, tiny_data, tiny_model)
    fill_store(cut, tiny_data, tiny_model, part_bytes=part_bytes)
    assert content(once) == content(cut)


def test_several_processes_give_the_same_bytes(store: Path, tmp_path: Path, tiny_data: Path, tiny_model: Path) -> None:
    """Two workers make what one does."""
    fill_store(tmp_path / "other", tiny_data, tiny_model, num_workers=2, part_bytes=500)
    assert content(store) == content(tmp_path / "other")


KILLED = """
import os, signal, sys
from pathlib import Path
import trainer.data.fill as fill

real, seen = os.replace, []
def replace(one, two):
    real(one, two)
    seen.append(two)
    if len(seen) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
fill.fill_store(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), part_bytes=400)
"""


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_build_that_was_killed_goes_on(parts: int, store: Path, tmp_path: Path, tiny_data: Path, tiny_model: Path) -> None:
    """After SIGKILL there is no store yet; the next build keeps the parts that were made and ends with the same bytes."""
    folder = tmp_path / "killed"
    arguments = [str(folder), str(tiny_data), str(tiny_model), str(parts)]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=PROJECT_ROOT, env={**os.environ, "PYTHONPATH": "."})
    assert ended.returncode == -signal.SIGKILL
    assert read_index(folder) is None
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".killed").glob("*.part")}
    assert len(kept) == parts
    made: list[Path] = []

    def look(_done: int, _total: int) -> None:
        made.extend(path for path in kept if path.stat().st_mtime_ns != kept[path])

    fill_store(folder, tiny_data, tiny_model, part_bytes=400, tick=look)
    assert not made
    assert content(folder) == content(store)
    assert not (tmp_path / ".killed").exists()


def test_a_whole_store_is_used_as_it_is(store: Path, tmp_path: Path, tiny_model: Path) -> None:
    """A store that is there is not made again: the data need not even be there."""
    assert fill_store(store, tmp_path / "nowhere", tiny_model) == read_index(store)


@pytest.mark.parametrize("name", ["train.tokens", "valid.learned", "test.offsets"])
def test_a_damaged_store_is_made_again(name: str, store: Path, tiny_data: Path, tiny_model: Path) -> None:
    """A bit that flipped, a file that was cut or is gone: found by hash, and the store is as it was."""
    good = content(store)
    for damage in (lambda old: bytes([old[0] ^ 1]) + old[1:], lambda old: old[:-1], None):
        (store / name).write_bytes(damage(good[name])) if damage else (store / name).unlink()
        fill_store(store, tiny_data, tiny_model)
        assert content(store) == good


def write_broken(folder: Path, lines: list[str]) -> Path:
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text(GOOD, "utf-8")
    (folder / "train.jsonl").write_text("".join(lines), "utf-8")
    return folder


@pytest.mark.parametrize("part_bytes", [50, 333, 1 << 20])
def test_what_is_wrong_is_told_with_the_files_own_lines(part_bytes: int, tmp_path: Path, tiny_model: Path) -> None:
    """Lines are counted over all parts, and nothing of the store appears."""
    bad = GOOD.replace("ahoy", "a<|im_end|>")
    data = write_broken(tmp_path, [GOOD] * 7 + [bad] + [GOOD] * 5 + ["{}\n"])
    (tmp_path / "valid.jsonl").write_text("")
    with pytest.raises(InputError) as caught:
        fill_store(tmp_path / "store", data, tiny_model, part_bytes=part_bytes)
    rule = "which the model reads as a control token; write it differently"
    assert str(caught.value) == (
        f"{data}/train.jsonl:8: messages[0].content: holds <|im_end|>, {rule}\n"
        f'{data}/train.jsonl:14: has no "messages", only nothing\n'
        f"{data}/valid.jsonl: the file is empty; it needs a chat sample on each line"
    )
    assert read_index(tmp_path / "store") is None


def test_rows_too_long_are_told_by_line(store: Path, tiny_data: Path) -> None:
    """The limit is no part of the store: it is held against the lengths when a run begins."""
    rows = open_store(store, tiny_data)["train"]
    longest = int(rows.lengths.max())
    rows.check_lengths(longest)
    line = int(rows.lengths.argmax()) + 1
    with pytest.raises(InputError) as caught:
        rows.check_lengths(longest - 1)
    said = str(caught.value).split("\n")
    assert f"{tiny_data}/train.jsonl:{line}: is {longest} tokens long, above data.max_tokens = {longest - 1}" in said


def test_the_key_is_that_of_data_tokenizer_and_template(tmp_path: Path, tiny_model: Path) -> None:
    """Other data, another template or vocabulary is another store; other weights or a file of macOS's are the same."""
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "model")
    first = key_store("a", model)
    assert first == key_store("a", tiny_model)
    assert first != key_store("b", model)
    (model / "model.safetensors").write_bytes(b"other")
    (model / "._tokenizer.json").write_bytes(b"strewn")
    assert first == key_store("a", model)
    (model / "chat_template.jinja").write_text("{{ 1 }}")
    assert first != key_store("a", model)


def test_equal_stores_have_equal_digests(store: Path, tmp_path: Path, tiny_model: Path) -> None:
    """One hash over the index tells whether two hosts hold the same tokens."""
    other = write_tiny_data(tmp_path / "data", seed=1)
    one, two = read_index(store), fill_store(tmp_path / "two", other, tiny_model)
    assert one is not None
    assert digest_index(one) == digest_index(json.loads(json.dumps(one)))
    assert digest_index(one) != digest_index(two)


def test_a_large_vocabulary_is_kept_whole(tmp_path: Path) -> None:
    """Tokens above 65535 survive: the type follows the vocabulary."""
    tokens = np.array([70_000, 1, 2, 3, 99_999], "<i4")
    bits = np.packbits(np.array([0, 1, 1, 0, 1], np.bool_))
    rows = TokenStore(tokens, bits, np.array([0, 2, 5]), tmp_path)
    assert rows[1].tokens.tolist() == [2, 3, 99_999]
    assert rows[1].supervised.tolist() == [True, False, True]
    assert rows[0].supervised.tolist() == [False, True]


def test_data_that_was_gone_through_is_remembered_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look takes the hash alone; a changed byte is another data set; looking alone writes nothing."""
    data, cache = write_tiny_data(tmp_path / "data"), tmp_path / "cache"
    digest = check_data(data, cache, remembers=False)
    assert digest == hash_files(data, [f"{split}.jsonl" for split in SPLITS])
    assert not cache.exists()
    check_data(data, cache, remembers=True)
    monkeypatch.setattr("trainer.data.checked.check_splits", lambda _: pytest.fail("went through it again"))
    assert check_data(data, cache, remembers=False) == digest
    monkeypatch.undo()
    (data / "train.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match='has no "messages"'):
        check_data(data, cache, remembers=True)


def make_stores(root: Path, *names: str) -> None:
    """Make folders of 1000 bytes each, used one after the other."""
    for age, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "train.tokens").write_bytes(bytes(1000))
        os.utime(root / name, (age, age))


def test_stores_used_longest_ago_make_room(tmp_path: Path) -> None:
    """Above the bound the oldest go, half-made ones too, each with a word; the run's own stays though it is the oldest."""
    make_stores(tmp_path, "own", "a", ".b", "c", "d")
    assert list(prune_stores(tmp_path, "own", 5000)) == []
    told = list(prune_stores(tmp_path, "own", 3 * 1000))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"own", "c", "d"}
    assert sorted(text.split(": ")[0] for text in told) == [str(tmp_path / ".b"), str(tmp_path / "a")]
    assert all("of tokens of other data" in text for text in told)
    assert len(list(prune_stores(tmp_path, "own", 10))) == 2
    assert (tmp_path / "own" / "train.tokens").is_file()


def test_a_store_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    """Whoever makes or checks a store holds its lock; what is older goes instead."""
    make_stores(tmp_path, "own", "old", ".made")
    with (tmp_path / ".made.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert len(list(prune_stores(tmp_path, "own", 10))) == 1
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"own", ".made"}


def test_use_makes_a_store_young(store: Path, tmp_path: Path, tiny_data: Path, tiny_model: Path) -> None:
    """A store that is used again outlives one that was made later."""
    make_stores(tmp_path / "later", "other")
    (tmp_path / "later" / "other").rename(store.parent / "other")
    os.utime(store, (0, 0))
    os.utime(store.parent / "other", (1, 1))
    fill_store(store, tiny_data, tiny_model)
    assert store.stat().st_mtime > (store.parent / "other").stat().st_mtime
