"""`data.check`: a data set gone through as by a linter. Finds what training refuses, and what it would learn but should not."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import SPLITS, Message, Problem, Sample, parse_line, scan_samples
from trainer.data.tokens import RowMaker, say_too_long
from trainer.errors import InputError
from trainer.workshop import rules
from trainer.workshop.near import Signer, Spoken, find_pairs, hash_text, normalise, normalise_spoken, take_spoken

RULES = {  # (severity, what to do); an error is what training refuses, or what makes its figures untrue
    "sample": ("error", "mend the line, or have data.prepare drop it"),
    "leak": ("error", "take it out of one of the two splits"),
    "secret": ("error", "remove it, and replace it where it opens something"),
    "too-long": ("error", "split it between turns, or raise data.max_tokens"),
    "control-token": ("error", "write it differently"),
    "duplicate": ("warning", "keep one"),
    "near-duplicate": ("warning", "keep one"),
    "identical-turns": ("warning", "remove the sample"),
    "refusal": ("warning", "remove the sample, unless the model is to refuse"),
    "boilerplate": ("warning", "remove the sample"),
    "personal-data": ("warning", "replace it by something made up"),
    "control-character": ("warning", "remove it"),
    "encoding": ("warning", "read the source with its own encoding"),
}
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found; line 0 is the whole file."""

    path: Path
    line: int
    column: int
    rule: str
    message: str

    @property
    def severity(self) -> str:
        """Which it is, error or warning."""
        return RULES[self.rule][0]

    @property
    def fix(self) -> str:
        """What to do about it."""
        return RULES[self.rule][1]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.severity} {self.rule}: {self.message}; {self.fix}"

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON output says."""
        return {
            "file": str(self.path), "line": self.line, "column": self.column, "severity": self.severity, "rule": self.rule,
            "message": self.message, "fix": self.fix,
        }  # fmt: skip


def find_splits(path: Path) -> list[Path]:
    """Return the files of a data set's folder, or the one file; raises `InputError` if there is neither."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    return [path / f"{split}.jsonl" for split in SPLITS]


def check(
    path: Path, *, near: float, region: str, skip: Sequence[str] = (), maker: RowMaker | None = None, max_tokens: int = 0
) -> Iterator[Finding]:  # fmt: skip
    """Yield what is wrong with a data set: first what single samples have, file by file, then what is between samples.

    With a ``maker`` rows are also tokenised, and those above ``max_tokens`` told.
    """
    if unknown := [rule for rule in skip if rule not in RULES]:
        raise InputError([f"--skip {rule}: is not one of {', '.join(RULES)}" for rule in unknown])
    with tempfile.TemporaryDirectory(prefix="flotilla-check-") as scratch:
        index = _Index(Path(scratch))
        for file in find_splits(path):
            for batch in _batches(file):
                for finding in _check_batch(batch, index, region, maker, max_tokens):
                    if finding.rule not in skip:
                        yield finding
        yield from (finding for finding in index.find_repeated(near) if finding.rule not in skip)


def _batches(file: Path) -> Iterator[list[Sample | Problem]]:
    batch: list[Sample | Problem] = []
    for found in scan_samples(file):
        batch.append(found)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_batch(
    batch: list[Sample | Problem], index: _Index, region: str, maker: RowMaker | None, max_tokens: int
) -> Iterator[Finding]:
    samples = [found for found in batch if isinstance(found, Sample)]
    index.add(samples)
    rows = iter(maker.make(samples) if maker else [])
    for found in batch:
        if isinstance(found, Problem):
            yield Finding(path=found.path, line=found.line, column=found.column, rule="sample", message=found.text)
            continue
        yield from _check_sample(found, region, index.open_lines(found.path))
        if maker:
            row = next(rows)
            if isinstance(row, ValueError):
                rule = "control-token" if "control token" in str(row) else "sample"
                yield Finding(path=found.path, line=found.line, column=1, rule=rule, message=str(row))
            elif len(row) > max_tokens:
                said = say_too_long(len(row), max_tokens)
                yield Finding(path=found.path, line=found.line, column=1, rule="too-long", message=said)


def _check_sample(sample: Sample, region: str, lines: _Lines) -> Iterator[Finding]:
    messages = sample.messages
    for seen in (
        *rules.find_characters(messages),
        *rules.find_identical(messages),
        *rules.find_refusals(messages),
        *rules.find_private(messages, region),
    ):
        column = _find_column(sample, lines, seen.message, seen.start)
        said = f"messages[{seen.message}].content: {seen.text}"
        yield Finding(path=sample.path, line=sample.line, column=column, rule=seen.rule, message=said)


def _find_column(sample: Sample, lines: _Lines, message: int, start: int) -> int:
    """Return the column, from 1 in characters, at which a place of a message stands in its line; 1 if that cannot be told."""
    raw = lines.read(sample.line).decode()
    content = sample.messages[message].content
    for ascii_only in (False, True):
        whole = json.dumps(content, ensure_ascii=ascii_only)
        before = [json.dumps(m.content, ensure_ascii=ascii_only) for m in sample.messages[:message]]
        at = 0
        for text in before:
            at = max(at, raw.find(text, at) + len(text)) if raw.find(text, at) >= 0 else at
        if (found := raw.find(whole, at)) >= 0:
            return found + len(json.dumps(content[:start], ensure_ascii=ascii_only))
    return 1


class _Lines:
    """The lines of a file by number. Where they begin is found out when the first is asked for: most files have no finding."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @functools.cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.fromiter(_find_offsets(self._path), np.int64)

    def read(self, number: int) -> bytes:
        """Return a line, from 1, without the file's byte order mark."""
        with self._path.open("rb") as file:
            file.seek(int(self._offsets[number - 1]))
            return file.readline().removeprefix(b"\xef\xbb\xbf")


class _Index:
    """What is between samples: numbers about each in files, compared at the end."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._signer = scratch, Signer()
        self.open_lines = functools.cache(_Lines)
        self._places: list[tuple[Path, int]] = []  # of each file: the number of its first row
        self._words, self._questions, self._lines = [], [], []  # type: ignore[var-annotated]
        self._rows = 0

    def add(self, samples: Sequence[Sample]) -> None:
        """Take samples of one file."""
        if not samples:
            return
        if not self._places or self._places[-1][0] != samples[0].path:
            self._places.append((samples[0].path, self._rows))
        texts = [normalise_spoken(sample.messages) for sample in samples]
        self._words.append(np.array([hash_text(text) for text in texts], np.uint64))
        self._questions.append(np.array([hash_text(_question(sample.messages)) for sample in samples], np.uint64))
        self._lines.append(np.array([sample.line for sample in samples], np.int64))
        for band, column in enumerate(self._signer.sign(texts).T):
            with (self._scratch / f"band-{band}").open("ab") as file:
                file.write(np.ascontiguousarray(column).tobytes())
        self._rows += len(samples)

    def find_repeated(self, near: float) -> Iterator[Finding]:
        """Yield duplicates within a split and leaks between splits."""
        if not self._rows:
            return
        words, questions, lines = (np.concatenate(parts) for parts in (self._words, self._questions, self._lines))
        rank = np.arange(self._rows)
        told: set[int] = set()
        for kind, pairs in (
            ("has the words of", _pair_equal(words)),
            ("asks what is asked in", self._across(_pair_equal(questions))),
            ("resembles", self._find_near(rank, lines, near)),
        ):
            for one, two in pairs:
                if two not in told:
                    told.add(two)
                    yield self._tell(kind, one, two, lines)

    def _tell(self, kind: str, one: int, two: int, lines: NDArray[np.int64]) -> Finding:
        path, other = self._place(two)[0], self._place(one)[0]
        rule = "leak" if path != other else "near-duplicate" if kind == "resembles" else "duplicate"
        return Finding(path=path, line=int(lines[two]), column=1, rule=rule, message=f"{kind} {other}:{lines[one]}")

    def _place(self, row: int) -> tuple[Path, int]:
        return next(place for place in reversed(self._places) if place[1] <= row)

    def _across(self, pairs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        return (pair for pair in pairs if self._place(pair[0]) != self._place(pair[1]))

    def _find_near(self, rank: NDArray[np.int64], lines: NDArray[np.int64], near: float) -> Iterator[tuple[int, int]]:
        def read_band(band: int) -> NDArray[np.uint64]:
            return np.fromfile(self._scratch / f"band-{band}", dtype="<u8")

        def read_spoken(row: int) -> Spoken:
            path, _first = self._place(row)
            line = int(lines[row])
            found = parse_line(self.open_lines(path).read(line), path, line)
            assert isinstance(found, Sample)
            return take_spoken(found.messages)

        yield from find_pairs(read_band, rank, read_spoken, near)


def _question(messages: Sequence[Message]) -> str:
    question = next(message.content for message in messages if message.role == "user")
    return normalise(question) or question


def _pair_equal(hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield (first, later) rows of the same hash, in the order of the later."""
    order = np.argsort(hashes, kind="stable")
    ends = np.concatenate([[True], hashes[order][1:] != hashes[order][:-1]])
    first = order[np.flatnonzero(ends)][np.cumsum(ends) - 1]
    later = np.flatnonzero(~ends)
    yield from sorted(zip(first[later].tolist(), order[later].tolist(), strict=True), key=lambda pair: pair[1])


def _find_offsets(path: Path) -> Iterator[int]:
    place = 0
    with path.open("rb") as file:
        for raw in file:
            yield place
            place += len(raw)
