"""Where samples come from: files, folders and the Hugging Face hub, gone through a portion at a time.

A `Portion` is either lines of JSON, still to be parsed (by whichever process curates them), or records with their places.
"""

from __future__ import annotations

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
from trainer.workshop.tables import read_table

LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
COLUMNS = (".parquet", ".arrow", ".feather")
TEXTS = (".txt", ".md", ".markdown", ".text")
SUFFIXES = (*LINES, ".json", *TABLES, *COLUMNS, *TEXTS)
_PORTION_BYTES = 1 << 20
_CHUNK = 1 << 20
_HUB_ID = re.compile(r"(?:hf:)?([\w-]+/[\w.-]+)")
_GET_PARQUET = ".venv/bin/python -m pip install --require-hashes -r requirements-parquet.lock"


@dataclass(frozen=True)
class Portion:
    """Some records of one file: (line, value). A value of bytes is a line of JSON that nobody has parsed yet."""

    path: Path
    records: list[tuple[int, Any]]


def find_sources(sources: Sequence[str], fetch: Callable[[str], Path]) -> tuple[list[Path], list[Path]]:
    """Return the files that ``sources`` name, in a fixed order, and those of their folders that are passed over.

    Of a folder, what it holds at any depth, in sorted order, without hidden files, which nobody means. ``fetch`` brings a data
    set of the Hugging Face hub ("owner/name" where no such path exists, or "hf:owner/name") and returns its folder. Raises
    `InputError` with all problems.
    """
    files: list[Path] = []
    passed_over: list[Path] = []
    problems: list[str] = []
    for source in sources:
        try:
            for path in _resolve(source, fetch):
                taken, rest = _list_files(path)
                files += taken
                passed_over += rest
        except InputError as error:
            problems += error.problems
        except (OSError, ValueError) as error:
            problems.append(f"{source!s:.80}: is not a path: {error}")
    if problems:
        raise InputError(problems)
    taken_anyway = {file.resolve() for file in files}
    return list(dict.fromkeys(files)), [file for file in dict.fromkeys(passed_over) if file.resolve() not in taken_anyway]


def _resolve(source: str, fetch: Callable[[str], Path]) -> list[Path]:
    """Return the paths that a source means: itself, what matches it, or the folder of a data set of the hub."""
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    if glob.has_magic(source):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - pathlib takes no absolute patterns
        if not matches:
            raise InputError(f"{source}: matches no file")
        return [Path(match) for match in matches]
    hub_id = _HUB_ID.fullmatch(source)
    return [fetch(hub_id[1]) if hub_id else path]


def _list_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the files to read of a path, and those of a folder that are passed over."""
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{path}: files that end in {path.suffix or 'nothing'} are not read; these are: {' '.join(SUFFIXES)}"
            )
        return [path], []
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    below = [file for file in sorted(path.rglob("*")) if file.is_file()]
    seen = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    readable = [file for file in seen if file.suffix.lower() in SUFFIXES]
    if not readable:
        raise InputError(f"{path}: the folder holds no file that is read; these are: {' '.join(SUFFIXES)}")
    # what tells of the data, beside data that is not prose, is no data
    taken = [file for file in readable if file.suffix.lower() not in TEXTS and file.name not in _ABOUT] or readable
    kept = set(taken)
    return taken, [file for file in seen if file not in kept and file.name not in _ABOUT]


_ABOUT = ("manifest.json", "dataset_info.json", "state.json", "dataset_infos.json", "package.json")


def say_passed_over(files: Sequence[Path]) -> list[str]:
    """Return a line for files that could be read and are not, and one for those of other kinds."""
    prose = sorted({file.name for file in files if file.suffix.lower() in SUFFIXES})
    other = sorted({file.name for file in files if file.suffix.lower() not in SUFFIXES})
    kinds = (
        (prose, "prose beside data; name the files to take them"),
        (other, f"of no kind that is read; these are: {' '.join(SUFFIXES)}"),
    )
    return [f"passed over: {_enumerate(names)}: {why}" for names, why in kinds if names]


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
                yield from read_table(path, file, "\t" if suffix == ".tsv" else None)
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
