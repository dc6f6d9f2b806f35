"""Where samples come from: files, folders and the Hugging Face hub, gone through a portion at a time.

A `Portion` is either lines of JSON, still to be parsed (by whichever process curates them), or records with their places.
"""

from __future__ import annotations

import collections
import csv
import glob
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.errors import InputError
from trainer.workshop.encodings import find_encoding
from trainer.workshop.jsonlist import Broken, read_json
from trainer.workshop.prose import read_document

LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
COLUMNS = (".parquet", ".arrow", ".feather")
TEXTS = (".txt", ".md", ".markdown", ".text")
SUFFIXES = (*LINES, ".json", *TABLES, *COLUMNS, *TEXTS)
_PORTION_BYTES = 1 << 20
_CHUNK = 1 << 20
_MOST_CELL = 1 << 30
_HUB_ID = re.compile(r"(?:hf:)?([\w-]+/[\w.-]+)")
_GET_PARQUET = ".venv/bin/python -m pip install --require-hashes -r requirements-parquet.lock"


@dataclass(frozen=True)
class Portion:
    """Some records of one file: (line, value). A value of bytes is a line of JSON that nobody has parsed yet."""

    path: Path
    records: list[tuple[int, Any]]


def find_files(sources: Sequence[str], fetch: Callable[[str], Path]) -> list[Path]:
    """Return the files that ``sources`` name, in a fixed order; raises `InputError` with all problems.

    Of a folder, what it holds at any depth, in sorted order, without hidden files. ``fetch`` brings a data set of the Hugging
    Face hub ("owner/name" where no such path exists, or "hf:owner/name") and returns its folder.
    """
    files: list[Path] = []
    problems: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        try:
            if not path.exists() and glob.has_magic(source):
                matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - pathlib takes no absolute patterns
                files += [file for match in matches for file in _list_files(Path(match))]
                if not matches:
                    problems.append(f"{source}: matches no file")
                continue
            if not path.exists() and (hub_id := _HUB_ID.fullmatch(source)):
                path = fetch(hub_id[1])
            files += _list_files(path)
        except InputError as error:
            problems += error.problems
        except (OSError, ValueError) as error:
            problems.append(f"{source!s:.80}: is not a path: {error}")
    if problems:
        raise InputError(problems)
    return list(dict.fromkeys(files))


def _list_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{path}: files that end in {path.suffix or 'nothing'} are not read; these are: {' '.join(SUFFIXES)}"
            )
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    below = (file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    found = sorted(file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts))
    # what tells of the data, beside data that is not prose, is no data
    rest = [file for file in found if file.suffix.lower() not in TEXTS and file.name not in _ABOUT]
    if rest:
        return rest
    if not found:
        raise InputError(f"{path}: the folder holds no file that is read; these are: {' '.join(SUFFIXES)}")
    return found


_ABOUT = ("manifest.json", "dataset_info.json", "state.json", "dataset_infos.json", "package.json")


def read_portions(path: Path) -> Iterator[Portion]:
    """Yield what a file holds, a portion at a time; raises `InputError` for one that cannot be read at all."""
    gathered: list[tuple[int, Any]] = []
    size = 0
    try:
        for line, value in _read(path):
            gathered.append((line, value))
            size += len(value) if isinstance(value, bytes) else _weigh(value)
            if size > _PORTION_BYTES:
                yield Portion(path, gathered)
                gathered, size = [], 0
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: looks like {error.encoding}, but is not: {error.reason}; save it as UTF-8") from error
    if gathered:
        yield Portion(path, gathered)


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    suffix = path.suffix.lower()
    if suffix in COLUMNS:
        yield from _read_columns(path)
    elif suffix in LINES or (suffix == ".json" and _is_lines(path)):
        yield from _read_lines(path)
    else:
        with path.open(encoding=find_encoding(path), errors="surrogateescape", newline="") as file:
            if suffix == ".json":
                yield from read_json(file)
            elif suffix in TABLES:
                yield from _read_table(path, file, "\t" if suffix == ".tsv" else None)
            else:
                yield from read_document_lines(file.read())


def read_document_lines(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the conversations that a document makes, as records of chat."""
    if not text.strip():
        yield 1, Broken("the file is empty")
        return
    num_made = 0
    for line, made in read_document(text.replace("\r\n", "\n").removeprefix("\ufeff")):
        num_made += 1
        if isinstance(made, Broken):
            yield line, made
        else:
            yield line, {"messages": [{"role": turn.role, "content": turn.content} for turn in made]}
    if not num_made:
        yield 1, Broken("is a text of one passage, with nothing to learn its continuation from")


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    encoding = find_encoding(path)
    if encoding in ("utf-8", "utf-8-sig"):
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                yield line, raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
        return
    with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as text:
        for line, each in enumerate(text, start=1):
            yield line, each.encode("utf-8", "surrogatepass")


def _is_lines(path: Path) -> bool:
    """Whether a .json file is JSON Lines by another name: its first line is a whole object, and there are more."""
    with path.open(encoding=find_encoding(path), errors="replace") as file:
        first = file.readline(_CHUNK)
        try:
            return isinstance(json.loads(first.removeprefix("\ufeff")), dict) and bool(file.read(_CHUNK).strip())
        except (ValueError, RecursionError):
            return False


def _read_table(path: Path, file: IO[str], delimiter: str | None) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(_MOST_CELL)
    head = file.readline().removeprefix("\ufeff")
    if not head.strip():
        yield 1, Broken("the file is empty" if not head else "the first line is empty; it must name the columns")
        return
    delimiter = delimiter or max(",;\t|", key=head.count)
    names = next(csv.reader([head.rstrip("\r\n")], delimiter=delimiter))
    yield from _read_rows(path, _Lines(file), names, delimiter)


def _read_rows(path: Path, lines: _Lines, names: Sequence[str], delimiter: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, row); a row that is no CSV is broken by itself, and reading goes on with its second line."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    is_after_broken = False
    while True:
        line = lines.begin()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            is_closing = lines.has_ended and is_after_broken  # the quote is the broken row's last, and opens nothing
            if (lines.has_ended and not is_closing) or sum(map(len, lines.row)) > _MOST_CELL:
                raise InputError(_say_never_closed(path, line, lines, delimiter)) from error
            lines.give_back()
            is_after_broken = True
            yield line, Broken(_REMAINDER if is_closing else f"is not CSV: {error}; write a quote within a quoted cell twice")
            continue
        if not any(cell.strip() for cell in row):
            continue
        is_after_broken = is_after_broken and _is_remainder(row, lines.row, names)
        if is_after_broken:
            yield line, Broken(_REMAINDER)
        elif len(row) > len(names):
            yield line, Broken(f"has {len(row)} cells for {len(names)} columns; quote cells that hold a {delimiter!r}")
        else:
            yield line, dict(zip(names, row, strict=False))


_REMAINDER = "is not CSV: looks like more of the broken row above it"


def _is_remainder(row: Sequence[str], lines: Sequence[str], names: Sequence[str]) -> bool:
    """Whether what follows a broken row looks like more of it: cells are missing, or a quote has no other."""
    return len(row) < len(names) or sum(line.count('"') for line in lines) % 2 == 1


def _say_never_closed(path: Path, line: int, lines: _Lines, delimiter: str) -> str:
    if lines.has_ended:
        cell = next(csv.reader(lines.row, delimiter=delimiter))[-1]
        line += len(lines.row) - max(1, len(re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", cell)))
    return f"{path}:{line}: a quoted cell opens here and is never closed; close it, or write the quote twice if it is text"


class _Lines:
    """The lines of a table. Those that a row took are kept until the next one begins: what was too many is given back."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._waiting = file, collections.deque[str]()
        self.row: list[str] = []
        self.has_ended = False
        self._next_line = 2

    def begin(self) -> int:
        """Forget the last row's lines; return the number of the line that comes next."""
        self._next_line += len(self.row)
        self.row = []
        return self._next_line

    def give_back(self) -> None:
        """Have all lines of this row come again, but its first."""
        self._waiting.extendleft(reversed(self.row[1:]))
        del self.row[1:]
        self.has_ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = self._waiting.popleft() if self._waiting else next(self._file)
        except StopIteration:
            self.has_ended = True
            raise
        line = line.replace("\0", "\ufffd")  # some versions of csv refuse null characters
        self.row.append(line)
        return line


def _read_columns(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.feather
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: reading {path.suffix} needs pyarrow; {_GET_PARQUET} brings it") from error
    try:
        with path.open("rb") as file:
            number = 0
            for batch in _open_batches(pyarrow, path, file):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: cannot be read as {path.suffix.removeprefix('.')}: {str(error).splitlines()[0]}") from error


def _open_batches(pyarrow: Any, path: Path, file: IO[bytes]) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024)
        return
    try:
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    except pyarrow.ArrowInvalid:  # as `datasets` writes it
        file.seek(0)
        yield from pyarrow.ipc.open_stream(file)


def _weigh(value: Any) -> int:
    """Return about how many bytes a record takes."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return 64 + sum(map(_weigh, value.values()))
    return 64 + sum(map(_weigh, value)) if isinstance(value, list) else 32
