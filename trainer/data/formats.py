"""Reading chat samples from JSON Lines, with every problem named by file and line."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.schema import show_value, suggest

SPLITS = ("train", "valid", "test")
ROLES = ("system", "user", "assistant")
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


def read_splits(folder: Path) -> dict[str, list[Sample]]:
    """Return the samples of ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``; raises `InputError` with all problems."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of data; data.path names it")
    splits: dict[str, list[Sample]] = {}
    problems: list[str] = []
    for split in SPLITS:
        try:
            splits[split] = read_samples(folder / f"{split}.jsonl")
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return splits


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of one JSON Lines file in order; raises `InputError` with a problem per broken line."""
    samples: list[Sample] = []
    problems: list[str] = []
    for line, text in enumerate(_read_lines(path), start=1):
        if not text.strip():
            problems.append(f"{path}:{line}: the line is empty")
            continue
        try:
            samples.append(Sample(_parse_messages(text), path, line))
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
        except RecursionError:
            problems.append(f"{path}:{line}: is not a chat sample: it is nested too deeply")
    if problems:
        rest = len(problems) - _MOST_PROBLEMS
        raise InputError(problems[:_MOST_PROBLEMS] + ([f"{path}: and {rest} more problems"] if rest > 0 else []))
    if not samples:
        raise InputError(f"{path}: the file is empty; it needs a chat sample on each line")
    return samples


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from error
    return text.removesuffix("\n").split("\n") if text else []


def _parse_messages(text: str) -> tuple[Message, ...]:
    """Return the messages of one line; raises `ValueError` saying what is wrong with it."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from error
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
