"""Filling the token store: files are cut into parts, parts tokenised by several processes, and put together in order.

A part is a range of a file's bytes, so it is the same whoever makes it; one that is made stays, so that a build that was killed
goes on where it was. The store appears under its name when all of it is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import SPLITS, Problem, Sample, parse_line, tell_problems
from trainer.data.store import PARTS, VERSION, find_damage, hash_file, read_index
from trainer.data.tokens import RowMaker
from trainer.errors import InputError
from trainer.workers import count_cores, map_in_order

PART_BYTES = 4 << 20
SMALL_BYTES = 8 << 20  # below this, starting processes takes longer than they save
_BATCH_ROWS = 64  # texts tokenised at once
_COPY_BYTES = 1 << 20
_MOST_TOLD = 100

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class PartJob:
    """The lines of ``source`` that begin in ``bytes`` [start, end), to be tokenised into ``target``."""

    source: Path
    start: int
    end: int
    target: Path


@dataclass(frozen=True)
class PartReport:
    """What became of a part: its lines, and what is wrong with them as (line in the part, text)."""

    num_lines: int
    problems: list[tuple[int, str]]
    num_problems: int


def fill_store(
    folder: Path, data: Path, model: Path, *, trust_remote_code: bool = False, tick: Tick = lambda _done, _total: None,
    num_workers: int | None = None, part_bytes: int = PART_BYTES,
) -> dict[str, Any]:  # fmt: skip
    """Make the store ``folder`` of the data set ``data`` if it is not whole, and return its index.

    Raises `InputError` naming every line that cannot be learned from. ``tick`` is told how many of all bytes are done.
    Of several processes that ask for the same store at once, one makes it and the others wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        index = read_index(folder)
        if index is not None:
            if not find_damage(folder, index):
                os.utime(folder)  # the last to be removed
                return index
            shutil.rmtree(folder)
        work = folder.parent / f".{folder.name}"
        work.mkdir(exist_ok=True)
        _make_parts(work, data, model, trust_remote_code, tick, num_workers, part_bytes)
        index = {"version": VERSION, "splits": {split: _assemble(work, split) for split in SPLITS}}
        (work / "index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
        for part in _list_parts(work):
            part.unlink()
        os.rename(work, folder)
    return index


def _make_parts(work: Path, data: Path, model: Path, trust: bool, tick: Tick, num_workers: int | None, part_bytes: int) -> None:
    jobs = {split: list(_cut(data / f"{split}.jsonl", work, part_bytes)) for split in SPLITS}
    _forget_parts(work, [job.target for each in jobs.values() for job in each])
    total = sum(job.end - job.start for each in jobs.values() for job in each)
    workers = num_workers or (count_cores() if total > SMALL_BYTES else 1)
    everything = [job for split in SPLITS for job in jobs[split]]
    reports = map_in_order("trainer.tokenizer:make_part_worker", (model, trust), everything, min(workers, len(everything)))
    done, tallies = 0, {split: Tally(data / f"{split}.jsonl") for split in SPLITS}
    with contextlib.closing(reports):
        for job, report in zip(everything, reports, strict=True):
            tallies[job.source.stem].add(report)
            done += job.end - job.start
            tick(done, total)
    if problems := [text for tally in tallies.values() for text in tally.tell()]:
        raise InputError(problems)


class Tally:
    """Adds up the parts of one file."""

    def __init__(self, path: Path) -> None:
        self._path, self._num_lines, self._num_problems = path, 0, 0
        self._told: list[str] = []

    def add(self, report: PartReport) -> None:
        """Add the next part."""
        room = _MOST_TOLD - len(self._told)
        self._told += [f"{self._path}:{self._num_lines + line}: {text}" for line, text in report.problems[:room]]
        self._num_lines += report.num_lines
        self._num_problems += report.num_problems

    def tell(self) -> tuple[str, ...]:
        """Return what is wrong with the file, with its numbers of lines."""
        if not self._num_lines:
            return (f"{self._path}: the file is empty; it needs a chat sample on each line",)
        return tell_problems(self._path, self._told, self._num_problems).problems if self._told else ()


def _cut(source: Path, work: Path, part_bytes: int) -> Iterator[PartJob]:
    size = source.stat().st_size
    for number, start in enumerate(range(0, size, part_bytes)):
        end = min(start + part_bytes, size)
        yield PartJob(source, start, end, work / f"{source.stem}-{number:06}-{start}-{end}.part")


def _list_parts(work: Path) -> list[Path]:
    return [path for path in work.iterdir() if path.suffix in (".part", ".making")]


def _forget_parts(work: Path, wanted: list[Path]) -> None:
    """Remove what an earlier, killed build left that is of no use to this one."""
    keep = set(wanted)
    for path in work.iterdir():
        if path not in keep:
            path.unlink()


def make_part(job: PartJob, maker: RowMaker, dtype: str) -> PartReport:
    """Tokenise one part into its file, unless that is there, and tell what is wrong with its lines."""
    if job.target.is_file():
        with _read_part(job.target) as (lengths, _):
            return PartReport(len(lengths), [], 0)
    rows, problems, line = [], [], 0
    for batch in _batch(_read_lines(job)):
        samples = [each for each in batch if isinstance(each, Sample)]
        made = iter(maker.make(samples))
        for each in batch:
            line += 1
            row = next(made) if isinstance(each, Sample) else each
            if isinstance(row, (Problem, ValueError)):
                problems.append((line, row.text if isinstance(row, Problem) else str(row)))
            else:
                rows.append((row.tokens.astype(dtype), row.supervised))
    if not problems:
        _write_part(job.target, rows, dtype)
    return PartReport(line, problems[:_MOST_TOLD], len(problems))


def _read_lines(job: PartJob) -> Iterator[Sample | Problem]:
    """Yield what the lines are that begin in the part; the numbers of their lines count from its first."""
    with job.source.open("rb") as file:
        if job.start:
            file.seek(job.start - 1)
            file.readline()
        else:
            file.seek(len(_BOM) if file.read(len(_BOM)) == _BOM else 0)
        number = 0
        while file.tell() < job.end and (raw := file.readline()):
            number += 1
            yield parse_line(raw, job.source, number)


_BOM = b"\xef\xbb\xbf"


def _batch(items: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_part(target: Path, rows: list[tuple[NDArray[Any], NDArray[np.bool_]]], dtype: str) -> None:
    """Write the number of rows, their lengths, their tokens and their mask, one byte a token; whole or not at all."""
    making = target.with_suffix(".making")
    with making.open("wb") as file:
        np.save(file, np.array([len(tokens) for tokens, _ in rows], dtype="<i8"))
        np.save(file, np.concatenate([np.zeros(0, dtype), *(tokens for tokens, _ in rows)]))
        np.save(file, np.concatenate([np.zeros(0, np.bool_), *(mask for _, mask in rows)]))
    os.replace(making, target)


@contextlib.contextmanager
def _read_part(path: Path) -> Iterator[tuple[NDArray[np.int64], BinaryIO]]:
    """Give the rows' lengths of a part, and the file, which tokens and mask can be loaded from next."""
    with path.open("rb") as file:
        yield np.load(file), file


def _assemble(work: Path, split: str) -> dict[str, Any]:
    """Put the parts of a split together; returns what the index says of it."""
    num_rows = num_tokens = 0
    dtype = "<u2"
    rest = np.zeros(0, np.bool_)  # mask bits that do not fill a byte yet
    with (
        (work / f"{split}.tokens").open("wb") as tokens,
        (work / f"{split}.learned").open("wb") as learned,
        (work / f"{split}.offsets").open("wb") as offsets,
    ):
        offsets.write(np.zeros(1, "<i8").tobytes())
        for path in sorted(work.glob(f"{split}-*.part")):
            with _read_part(path) as (lengths, file):
                found, mask = np.load(file), np.concatenate([rest, np.load(file)])
            dtype = found.dtype.str
            tokens.write(found.tobytes())
            whole = len(mask) // 8 * 8
            learned.write(np.packbits(mask[:whole]).tobytes())
            rest = mask[whole:]
            offsets.write((num_tokens + np.cumsum(lengths)).astype("<i8").tobytes())
            num_rows, num_tokens = num_rows + len(lengths), num_tokens + len(found)
        learned.write(np.packbits(rest).tobytes())
    files = {part: _describe(work / f"{split}.{part}") for part in PARTS}
    return {"rows": num_rows, "tokens": num_tokens, "dtype": dtype, "files": files}


def _describe(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": hash_file(path)}
