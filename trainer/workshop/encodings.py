"""Which encoding a text file is in: what its first bytes say, UTF-8 if it is that, or the likeliest."""

from __future__ import annotations

import codecs
from pathlib import Path

from trainer.errors import InputError

_LOOKED_AT = 1 << 20
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WESTERN = {"Basic Latin", "Control character", "Latin-1 Supplement", "Latin Extended Additional", "General Punctuation"}
_NULLS_TEXT_HAS = 0.1  # more null bytes than this, all on one side, are halves of UTF-16's characters


def find_encoding(path: Path) -> str:
    """Return the name of a file's encoding; raises `InputError` for a file that holds no text."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    for start, name in ((0, "utf-16-be"), (1, "utf-16-le")):
        half = head[start::2]
        if half.count(0) > _NULLS_TEXT_HAS * 5 * len(half) and head[1 - start :: 2].count(0) < len(half) * _NULLS_TEXT_HAS:
            return name
    if head.count(0) > _NULLS_TEXT_HAS * len(head):
        raise InputError(f"{path}: holds no text: {head.count(0)} of its first {len(head)} bytes are null")
    return "utf-8" if _is_utf8(head) else _guess(path, head)


def _is_utf8(head: bytes) -> bool:
    """Whether most lines are UTF-8: a file with one broken line is UTF-8 with a broken line."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        broken = sum(not _decodes(line) for line in head.split(b"\n"))
        high = sum(not line.isascii() for line in head.split(b"\n"))
        return broken * 2 <= high and broken * 10 <= head.count(b"\n") + 1
    return True


def _decodes(line: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    return True


def _guess(path: Path, head: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(head[: 1 << 16]).best()
    if best is None:
        raise InputError(f"{path}: holds no text in an encoding that is known; save it as UTF-8")
    if set(best.alphabets) <= _WESTERN and _decodes_as(head, "cp1252"):
        return "cp1252"  # of several that fit a few accents, by far the commonest
    return str(best.encoding)


def _decodes_as(head: bytes, encoding: str) -> bool:
    try:
        head.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
