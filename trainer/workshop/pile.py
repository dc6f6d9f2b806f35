"""What the first pass of `data.prepare` leaves, and what is told of it: examples of what went, and the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import Sample, parse_line
from trainer.workshop.curate import MOST_EXAMPLES, Tally
from trainer.workshop.settings import Settings

VERSION = 1
_MOST_NAMES = 20


@dataclass
class Pile:
    """What the first pass left: rows in a file, numbers about them in memory and in others."""

    work: Path
    info: NDArray[Any]
    categories: list[str]
    num_read: int = 0
    dropped: Tally = field(default_factory=Tally)
    changed: Tally = field(default_factory=Tally)
    passed_over: Sequence[Path] = ()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[int], bytes]]:
        """Give a function that returns the line of a row."""
        with (self.work / "rows.jsonl").open("rb") as file:

            def read(row: int) -> bytes:
                file.seek(int(self.info["offset"][row]))
                return file.read(int(self.info["size"][row]))

            yield read

    def read_band(self, band: int) -> NDArray[np.uint64]:
        """Return a column of signatures."""
        return np.fromfile(self.work / f"band-{band}", dtype="<u8")


def parse_row(line: bytes) -> Sample:
    found = parse_line(line, Path("rows"), 1)
    assert isinstance(found, Sample), found
    return found


def tell_dropped(pile: Pile, rule: str, dropped: NDArray[np.bool_]) -> None:
    with pile.reading() as read:
        rows = np.flatnonzero(dropped)
        for row in rows[:MOST_EXAMPLES].tolist():
            pile.dropped.add(rule, quote(read(row)), "")
        pile.dropped.counts[rule] += max(0, len(rows) - MOST_EXAMPLES)
    if not len(rows):
        pile.dropped.counts.pop(rule, None)


def tell_alike(pile: Pile, alike: NDArray[np.bool_], pairs: Sequence[tuple[int, int]]) -> None:
    with pile.reading() as read:
        shown = {two: one for one, two in pairs if alike[two]}
        for two, one in list(shown.items())[:MOST_EXAMPLES]:
            pile.dropped.add("near-duplicate", f"{quote(read(two))} is like {quote(read(one))}", "")
    if rest := int(alike.sum()) - min(len(shown), MOST_EXAMPLES):
        pile.dropped.counts["near-duplicate"] += rest


def quote(line: bytes) -> str:
    """Return the beginning of a row's first question, in quotation marks."""
    question = next(message.content for message in parse_row(line).messages if message.role == "user")
    return json.dumps(question[:60], ensure_ascii=False)


def describe(
    pile: Pile, files: Sequence[Path], name: str, settings: Settings, dealt: NDArray[np.int8], written: dict[str, Any]
) -> dict[str, Any]:
    """Return the manifest: all that one wants to know of a data set, and nothing that changes when it is made again."""
    kept = pile.info[dealt >= 0]
    manifest: dict[str, Any] = {
        "name": name,
        "licence": settings.licence,
        "files": written,
        "read": pile.num_read,
        "dropped": pile.dropped.as_dict(),
        "changed": pile.changed.as_dict(),
    }
    if pile.passed_over:
        names = sorted({file.name for file in pile.passed_over})
        manifest["passed_over"] = {"count": len(pile.passed_over), "names": names[:_MOST_NAMES]}
    if len(pile.categories) > 1:
        counts = np.bincount(kept["category"], minlength=len(pile.categories))
        manifest["categories"] = {
            each or "(none)": int(count) for each, count in zip(pile.categories, counts, strict=True) if count
        }
    if settings.does("length"):
        manifest["tokens"] = _describe_tokens(kept["tokens"])
    manifest["settings"] = {
        "version": VERSION,
        **asdict(settings),
        "mapping": dict(settings.mapping),
        "skip": list(settings.skip),
    }
    manifest["sources"] = [{"file": file.name, "size_bytes": file.stat().st_size, "sha256": _hash(file)} for file in files]
    return manifest


def _describe_tokens(tokens: NDArray[np.int32]) -> dict[str, Any]:
    shares = {"median": 50, "p90": 90, "p99": 99, "longest": 100}
    return {"all": int(tokens.sum()), **{name: int(np.percentile(tokens, q, method="lower")) for name, q in shares.items()}}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
