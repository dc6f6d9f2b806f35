"""Reading chat samples from JSON Lines, with every problem named by file and line."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.schema import show_value, suggest

SPLITS = ("train", "valid", "test")
ROLES = ("system", "user", "assistant")
_BOM = b"\xef\xbb\xbf"
_NOT_UTF8 = "is not UTF-8 text; save the file as UTF-8"
_MOST_PROBLEMS = 20
_MOST_KEYS = 5
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One conversation and the file and line (from 1) that it came from."""

    messages: tuple[Message, ...]
    path: Path
    line: int

    @property
    def where(self) -> str:
        """``file:line``, as errors name it."""
        return f"{self.path}:{self.line}"

    def as_dicts(self) -> list[dict[str, str]]:
        """Return the messages as chat templates take them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


@dataclass(frozen=True)
class Problem:
    """A line that is no sample, and the column (from 1, in characters) where that shows; line 0 is the whole file."""

    path: Path
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}" if self.line else f"{self.path}: {self.text}"


class _BrokenLineError(ValueError):
    def __init__(self, text: str, column: int = 1) -> None:
        super().__init__(text)
        self.column = column


def read_splits(folder: Path) -> dict[str, list[Sample]]:
    """Return the samples of ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``; raises `InputError` with all problems.

    They are all in memory together: `check_splits` and `scan_samples` go through files of any size.
    """
    splits: dict[str, list[Sample]] = {}
    _for_each_split(folder, lambda path: splits.update({path.stem: read_samples(path)}))
    return splits


def check_splits(folder: Path) -> None:
    """Go through the three files that `read_splits` would read, in constant memory; raises the same `InputError`."""

    def check(path: Path) -> None:
        for _ in _demand_samples(path):
            pass

    _for_each_split(folder, check)


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of one JSON Lines file in order; raises `InputError` with a problem per broken line."""
    return list(_demand_samples(path))


def read_first_questions(path: Path) -> list[str]:
    """Return the first user turn of each sample of a file that was checked."""
    return [next(m.content for m in sample.messages if m.role == "user") for sample in _demand_samples(path)]


def scan_samples(path: Path) -> Iterator[Sample | Problem]:
    """Yield what each line of a JSON Lines file is, in order and in the memory of one line.

    A file that cannot be read, is not UTF-8 text or is empty ends in a `Problem`.
    """
    line = 0
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if line == 1 and not raw.removeprefix(_BOM):
                    break
                found = parse_line(raw.removeprefix(_BOM) if line == 1 else raw, path, line)
                yield found
                if isinstance(found, Problem) and found.text == _NOT_UTF8:
                    return
            else:
                if line:
                    return
    except OSError as error:
        yield Problem(path, 0, 1, f"cannot be read: {error.strerror}")
        return
    yield Problem(path, 0, 1, "the file is empty; it needs a chat sample on each line")


def parse_line(raw: bytes, path: Path, line: int) -> Sample | Problem:
    """Return the sample that a line holds, with or without its line break, or what is wrong with it."""
    try:
        text = raw.decode().removesuffix("\n")
        if not text.strip():
            return Problem(path, line, 1, "the line is empty")
        return Sample(_parse_messages(text), path, line)
    except UnicodeDecodeError as error:
        return Problem(path, line, len(raw[: error.start].decode(errors="replace")) + 1, _NOT_UTF8)
    except _BrokenLineError as error:
        return Problem(path, line, error.column, str(error))
    except ValueError as error:
        return Problem(path, line, 1, str(error))
    except RecursionError:
        return Problem(path, line, 1, "is not a chat sample: it is nested too deeply")


def tell_problems(path: Path, problems: Sequence[str], num_problems: int) -> InputError:
    """Return the error that tells the first of a file's problems and counts the rest."""
    told = list(problems[:_MOST_PROBLEMS])
    rest = num_problems - len(told)
    return InputError([*told, f"{path}: and {rest} more problems"] if rest > 0 else told)


def _for_each_split(folder: Path, work: Callable[[Path], None]) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of data; data.path names it")
    problems: list[str] = []
    for split in SPLITS:
        try:
            work(folder / f"{split}.jsonl")
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


def _demand_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a file; raises `InputError` at its end if a line was broken."""
    told: list[str] = []
    num_problems = 0
    for found in scan_samples(path):
        if isinstance(found, Sample):
            yield found
            continue
        if found.text == _NOT_UTF8:  # what came before may have been read wrongly, too
            raise InputError(str(found))
        num_problems += 1
        told += [str(found)] if len(told) < _MOST_PROBLEMS else []
    if told:
        raise tell_problems(path, told, num_problems)


def _parse_messages(text: str) -> tuple[Message, ...]:
    """Return the messages of one line; raises `ValueError` saying what is wrong with it."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise _BrokenLineError(f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}", error.colno) from error
    except ValueError as error:  # Python's word for thousands of digits
        raise ValueError("is not a chat sample: it holds a number that is too long") from error
    if not isinstance(row, dict):
        raise ValueError(f'is {show_value(row)}, not an object such as {{"messages": [...]}}')
    if "messages" not in row:
        shown = ", ".join([show_value(key) for key in itertools.islice(row, _MOST_KEYS)]) or "nothing"
        hint = next(filter(None, (suggest(key, ["messages"]) for key in row)), "")
        raise ValueError(f'has no "messages", only {shown}{", …" if len(row) > _MOST_KEYS else ""}{hint}')
    if not isinstance(row["messages"], list) or not row["messages"]:
        raise ValueError(f"messages: {show_value(row['messages'])} is not a list of messages")
    messages = tuple(_parse_message(index, item) for index, item in enumerate(row["messages"]))
    if complaint := next(_find_misplaced(messages), ""):
        raise ValueError(complaint)
    return messages


def _parse_message(index: int, item: Any) -> Message:
    where = f"messages[{index}]"
    if not isinstance(item, dict):
        raise ValueError(f'{where}: {show_value(item)} is not an object with "role" and "content"')
    for key in ("role", "content"):
        if key not in item:
            raise ValueError(f"{where}.{key}: is missing")
        if not isinstance(item[key], str):
            raise ValueError(f"{where}.{key}: {show_value(item[key])} is not a text")
    role, content = item["role"], item["content"]
    if role not in ROLES:
        raise ValueError(f"{where}.role: {show_value(role)} is not one of {', '.join(ROLES)}{suggest(role, ROLES)}")
    if not content.strip():
        raise ValueError(f"{where}.content: is empty")
    if found := _NO_TEXT.search(content):
        kind = "a null character" if found[0] == "\0" else "half of a character (a lone surrogate)"
        raise ValueError(f"{where}.content: holds {kind} at position {found.start()}, which is no text")
    return Message(role, content)


def _find_misplaced(messages: tuple[Message, ...]) -> Iterator[str]:
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        yield "has no assistant turn, so there is nothing to learn from it"
    if "system" in roles[1:]:
        yield f"messages[{roles.index('system', 1)}]: a system message may only come first"
    turns = [role for role in roles if role != "system"]
    if turns and turns[0] != "user":
        yield "the conversation does not begin with a user turn"
    for index, (one, two) in enumerate(itertools.pairwise(roles), start=1):
        if one == two:
            yield f"messages[{index}]: two {two} turns in a row; make them one"
