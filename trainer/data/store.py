"""The token store: a data set tokenised once, in files that all ranks of a host share and of which each reads only its rows.

```
<cache>/tokens/<key>/                key: SHA-256 of data, tokenizer with template, and versions
  index.json                         written last: rows, tokens, type and SHA-256 of each file
  train.tokens                       all tokens, one row behind the other: uint16, or int32 for a vocabulary above 65536
  train.learned                      a bit for each token, set where it is supervised (NumPy's packbits)
  train.offsets                      int64 [rows + 1]: where each row begins; row i is line i + 1 of train.jsonl
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import SPLITS, tell_problems
from trainer.data.tokens import TokenRow, say_too_long
from trainer.errors import InputError
from trainer.fingerprint import hash_files

VERSION = 1
_CHUNK_BYTES = 1 << 22
_CHUNK_ROWS = 1 << 16
_MOST_TOLD = 100
PARTS = ("tokens", "learned", "offsets")
_TOKENIZER_STEMS = ("tokenizer", "chat_template", "special_tokens_map", "added_tokens", "vocab", "merges", "spiece")


@dataclass(frozen=True)
class TokenStore(Sequence[TokenRow]):
    """One split's rows. ``offsets``: int64 [N + 1], as tokens and mask in a file of which only what is asked for is read."""

    tokens: NDArray[Any]
    learned: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    path: Path

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, int64 [N], 8 bytes of memory each; touches no row."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows together."""
        return int(self.offsets[-1])

    @property
    def num_learned(self) -> int:
        """Supervised tokens of all rows together; goes through the mask's file."""
        chunks = range(0, len(self.learned), _CHUNK_BYTES)
        return sum(int(np.bitwise_count(self.learned[i : i + _CHUNK_BYTES]).sum()) for i in chunks)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, end = (int(self.offsets[index % len(self) + i]) for i in (0, 1))
        bits = np.unpackbits(self.learned[start // 8 : -(-end // 8)], count=end - start // 8 * 8)[start % 8 :]
        return TokenRow(self.tokens[start:end].astype(np.int32), bits.astype(np.bool_))

    def check_lengths(self, max_tokens: int) -> None:
        """Raise `InputError` naming the file and line of every row that is longer than ``max_tokens``."""
        said: list[str] = []
        num_long = 0
        for start in range(0, len(self), _CHUNK_ROWS):
            lengths = np.diff(self.offsets[start : start + _CHUNK_ROWS + 1])
            long = np.flatnonzero(lengths > max_tokens)
            num_long += len(long)
            for row in long[: _MOST_TOLD - len(said)].tolist():
                said.append(f"{self.path}:{start + row + 1}: {say_too_long(int(lengths[row]), max_tokens)}")
        if num_long:
            raise tell_problems(self.path, said, num_long)


def lengths_of(rows: Sequence[TokenRow]) -> NDArray[np.int64]:
    """Return the tokens of each row, int64 [N]; of a store, without touching the rows."""
    return rows.lengths if isinstance(rows, TokenStore) else np.array([len(row) for row in rows], np.int64)


def key_store(data_digest: str, model: Path) -> str:
    """Return the name of the store of a data set for the tokenizer in a model's folder."""
    import importlib.metadata

    names = [path.name for path in model.iterdir() if path.is_file() and _is_of_tokenizer(path)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("tokenizers", "transformers")]
    facts = [f"version {VERSION}", data_digest, hash_files(model, names), *versions]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def open_store(folder: Path, data: Path) -> dict[str, TokenStore]:
    """Return the splits of a whole store; ``data`` is the folder that rows are named after in errors."""
    index = read_index(folder)
    assert index is not None
    return {split: _open_split(folder, split, index["splits"][split], data / f"{split}.jsonl") for split in SPLITS}


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index of a store, or nothing while it is not whole."""
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return index


def find_damage(folder: Path, index: dict[str, Any]) -> list[str]:
    """Return the files of a store that are not what its index says, by size and SHA-256."""
    damaged = []
    for split in SPLITS:
        for part in PARTS:
            path, expected = folder / f"{split}.{part}", index["splits"][split]["files"][part]
            if not path.is_file() or path.stat().st_size != expected["size_bytes"] or hash_file(path) != expected["sha256"]:
                damaged.append(path.name)
    return damaged


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_index(index: dict[str, Any]) -> str:
    """Return one SHA-256 (hex) over all that a store holds: equal on two hosts that hold the same tokens."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _is_of_tokenizer(path: Path) -> bool:
    return path.name.startswith(_TOKENIZER_STEMS) or path.suffix in (".model", ".tiktoken", ".py")


def _open_split(folder: Path, split: str, index: dict[str, Any], path: Path) -> TokenStore:
    def load(part: str, dtype: str) -> NDArray[Any]:
        file = folder / f"{split}.{part}"
        return np.asarray(np.memmap(file, np.dtype(dtype), "r")) if file.stat().st_size else np.zeros(0, dtype)

    offsets = load("offsets", "<i8")
    if len(offsets) != index["rows"] + 1 or offsets[-1] != index["tokens"]:
        raise InputError(f"{folder}: is damaged; remove this folder, it will be made again")
    return TokenStore(load("tokens", index["dtype"]), load("learned", "u1"), offsets, path)


def check_all_lengths(splits: Iterable[TokenStore], max_tokens: int) -> None:
    """Raise one `InputError` for the rows of all splits that are longer than ``max_tokens``."""
    problems: list[str] = []
    for store in splits:
        try:
            store.check_lengths(max_tokens)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
