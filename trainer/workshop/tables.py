"""Tables of separated values, row by row: what is broken costs its own row, and what would swallow the rest is refused."""

from __future__ import annotations

import collections
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from trainer.errors import InputError
from trainer.workshop.jsonlist import Broken

_MOST_CELL = 1 << 30


def read_table(path: Path, file: IO[str], delimiter: str | None) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) for each row of an open table, without a ``delimiter`` with the one that its head has most of.

    Raises `InputError` for a quoted cell that is never closed.
    """
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
        is_after_broken = is_after_broken and _is_remainder(row, lines.row, names)
        is_blank = not any(cell.strip() for cell in row)
        if len(row) > len(names):
            yield line, Broken(f"has {len(row)} cells for {len(names)} columns; quote cells that hold a {delimiter!r}")
        elif not is_blank:
            yield line, Broken(_REMAINDER) if is_after_broken else dict(zip(names, row, strict=False))


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
