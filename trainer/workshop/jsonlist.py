"""The values of a JSON file, lists element by element: a file larger than memory is read in the memory of one element."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from trainer.schema import show_value

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Broken:
    """A record that could not be read."""

    text: str


def read_json(file: IO[str]) -> Iterator[tuple[int, Any]]:
    """Yield the elements of each list (or of the lists in an object), without ever holding all of one; what is broken ends it.

    Several values may follow each other, as `jq` writes them and as files are that were put together.
    """
    stream = _JsonStream(file)
    if stream.peek() == "":
        yield 1, Broken("the file is empty")
        return
    is_first = True
    while head := stream.peek():
        for line, value in _read_next(stream, head, is_first):
            yield line, value
            if isinstance(value, Broken):
                return
        is_first = False


def _read_next(stream: _JsonStream, head: str, is_first: bool) -> Iterator[tuple[int, Any]]:
    """Yield the records of the value that begins here with ``head``."""
    if head == "[":
        yield from stream.read_list()
    elif head == "{":
        yield from _open_object(stream)
    elif is_first:
        yield stream.line, Broken("is not a list of samples")
    else:
        yield (
            stream.line,
            Broken(f"{show_value(head)} begins neither an object nor a list of samples; nothing after it is read"),
        )


def _open_object(stream: _JsonStream) -> Iterator[tuple[int, Any]]:
    line, value = stream.line, stream.read_value()
    if isinstance(value, Broken):
        yield line, value
        return
    lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    is_sample = any(isinstance(inner, str) for inner in value.values()) or "messages" in value or "conversations" in value
    if lists and not is_sample:  # {"data": [...]}, {"train": [...], "test": [...]}
        yield from ((line, item) for inner in lists for item in inner)
    else:
        yield line, value


class _JsonStream:
    """Reads JSON values one after the other from a file."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._place, self.line = file, "", 0, 1
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Return the next character that is no white space, "" at the end."""
        while True:
            match = _BLANK.match(self._text, self._place)
            assert match is not None
            self._move(match.end())
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def read_list(self) -> Iterator[tuple[int, Any]]:
        """Yield (line, element) of the list that begins here; what is broken ends it."""
        self._move(self._place + 1)
        while (head := self.peek()) != "]":
            line = self.line
            if head == "":
                yield line, Broken("the list never ends: the file is cut off")
                return
            value = self.read_value()
            yield line, value
            if isinstance(value, Broken):
                return
            if (head := self.peek()) == ",":
                self._move(self._place + 1)
            elif head not in ("]", ""):
                yield self.line, Broken(f"is not JSON: a comma is missing before {head}")
                return
        self._move(self._place + 1)

    def read_value(self) -> Any:
        """Return the value that begins here, or what is wrong with it."""
        while True:
            text, place = self._text, self._place
            try:
                value, end = self._decode(text, place)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                lines = text.count("\n", place, error.pos)
                where = f" on line {self.line + lines}" if lines else ""
                return Broken(f"is not JSON: {error.msg.removesuffix(' at')}{where}; nothing after it is read")
            except (ValueError, RecursionError):
                return Broken("is not a sample: nested too deeply, or a number too long; nothing after it is read")
            if end == len(text) and self._more():  # a number may go on
                continue
            end -= place - self._place  # reading on moves the text
            self._move(end)
            return value

    def _more(self) -> bool:
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._place))  # twice as much each time: no quadratic cost
        self._text, self._place = self._text[self._place :] + chunk, 0
        return bool(chunk)

    def _move(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place


_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
