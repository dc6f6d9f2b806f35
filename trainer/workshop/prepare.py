"""`data.prepare`: sources in, a data set with its manifest out, in memory that grows by some 200 bytes a row and no more.

First every portion is curated by itself, by several processes; rows go to a file, numbers about them to others. Then
duplicates are found among the numbers, rows are dealt to splits, and written in the order of a seeded hash of their text: so
the result depends on what the sources hold, not on the order of files, and a repeated run writes the same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import SPLITS
from trainer.errors import InputError
from trainer.workers import count_cores, map_in_order
from trainer.workshop import split
from trainer.workshop.curate import INFO, Curated
from trainer.workshop.near import NUM_BANDS, find_pairs, take_spoken
from trainer.workshop.notices import Tell, find_lossy_steps, find_small_splits, say_too_few, tell_people
from trainer.workshop.pile import Pile, describe, parse_row, tell_alike, tell_dropped
from trainer.workshop.settings import Model, Settings
from trainer.workshop.sources import read_portions, say_passed_over

SMALL_BYTES = 8 << 20  # below this, starting processes takes longer than they save
Tick = Callable[[int, int], None]


def prepare(
    files: Sequence[Path], out: Path, settings: Settings, model: Model | None = None, *,
    passed_over: Sequence[Path] = (), replace: bool = False, tick: Tick = lambda _done, _total: None,
    tell: Tell = tell_people, num_workers: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the data set ``out`` and return its manifest; raises `InputError` if there is nothing to write, or it exists.

    ``passed_over`` are files that lie beside ``files`` and are not read. What people should know before they train goes to
    ``tell``, a line at a time.
    """
    check_target(out, files, replace)
    for line in say_passed_over(passed_over):
        tell(line)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.parent / f".{out.name}.preparing"
    work.mkdir(exist_ok=True)
    with (work / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: another data.prepare is writing it") from error
        _clear(work, out)
        try:
            pile = _gather(files, work, settings, model, tick, num_workers)
            pile.passed_over = passed_over
            manifest = _finish(pile, files, out.name, settings, tell)
            _put_in_place(work / "out", out, replace)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return manifest


def check_target(out: Path, files: Sequence[Path], replace: bool) -> None:
    """Raise `InputError` if ``out`` may not be written, for what stands there or for being a source."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (replace and _is_ours(out))):
        remedy = "give another folder with --out" if not (out.is_dir() and _is_ours(out)) else "--replace writes it anew"
        raise InputError(f"{out}: exists already; {remedy}")
    if any(out.resolve() in file.resolve().parents for file in files):
        raise InputError(f"{out}: is a source and the target; give another folder with --out")


def _is_ours(folder: Path) -> bool:
    """Whether all that a folder holds is what we wrote into it."""
    ours = {"manifest.json", *(f"{name}.jsonl" for name in SPLITS)}
    return (folder / "manifest.json").is_file() and {path.name for path in folder.iterdir()} <= ours


def _clear(work: Path, out: Path) -> None:
    """Remove what a killed run left; a data set that it was about to replace comes back."""
    if (work / "old").exists() and not out.exists():
        os.rename(work / "old", out)
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def _put_in_place(made: Path, out: Path, replace: bool) -> None:
    if replace and out.exists() and any(out.iterdir()):
        os.rename(out, made.parent / "old")
    os.rename(made, out)


def _gather(
    files: Sequence[Path], work: Path, settings: Settings, model: Model | None, tick: Tick, num_workers: int | None
) -> Pile:
    """Curate everything into the work folder."""
    total = sum(file.stat().st_size for file in files)
    workers = num_workers or (count_cores() if total > SMALL_BYTES else 1)
    pile = Pile(work, np.zeros(0, INFO), [])
    numbers: dict[str, int] = {}
    done = 0

    def portions() -> Iterator[Any]:
        nonlocal done
        for file in files:
            yield from read_portions(file)
            done += file.stat().st_size
            tick(done, total)

    names = ["rows.jsonl", "info", *(f"band-{band}" for band in range(NUM_BANDS))]
    with contextlib.ExitStack() as stack:
        rows, info, *bands = (stack.enter_context((work / name).open("wb")) for name in names)
        results = map_in_order("trainer.workshop.curate:make_curator", (settings, model), portions(), workers)
        stack.enter_context(contextlib.closing(results))
        for curated in results:
            _append(curated, rows, info, bands, numbers)
            pile.num_read += curated.num_read
            pile.dropped.join(curated.dropped)
            pile.changed.join(curated.changed)
    pile.info = np.fromfile(work / "info", INFO)
    pile.categories = list(numbers)
    return pile


def _append(curated: Curated, rows: BinaryIO, info: BinaryIO, bands: Sequence[BinaryIO], numbers: dict[str, int]) -> None:
    offsets = rows.tell() + np.concatenate([[0], np.cumsum(curated.info["size"][:-1], dtype=np.int64)])
    curated.info["offset"] = offsets[: len(curated.info)]
    curated.info["category"] = [numbers.setdefault(name, len(numbers)) for name in curated.categories]
    rows.write(b"".join(curated.lines))
    info.write(curated.info.tobytes())
    for file, column in zip(bands, curated.bands.T, strict=False):
        file.write(np.ascontiguousarray(column).tobytes())


def _finish(pile: Pile, files: Sequence[Path], name: str, settings: Settings, tell: Tell) -> dict[str, Any]:
    """Choose, deal and write the rows, and the manifest, into the work folder's ``out``."""
    rank = split.rank_rows(pile.info["key"])
    stays, groups = _choose(pile, rank, settings)
    categories = _order_categories(pile)
    if settings.does("balance"):
        surplus = split.drop_surplus(categories, rank, stays, settings.balance)
        tell_dropped(pile, "balance", surplus)
        stays &= ~surplus
    if settings.does("leaks"):
        groups.join_equal(pile.info["question"], np.flatnonzero(stays))
    groups.join_equal(pile.info["group"], np.flatnonzero(stays))
    labels = groups.label()
    dealt = split.assign_splits(labels, rank, categories, stays, valid=settings.valid, test=settings.test)
    if not all((dealt == number).any() for number in range(len(SPLITS))):
        raise InputError(say_too_few(pile, labels, stays))
    for line in (*find_lossy_steps(pile), *find_small_splits(pile, labels, dealt, settings)):
        tell(line)
    out = pile.work / "out"
    out.mkdir()
    written = {
        f"{each}.jsonl": _write_split(pile, out / f"{each}.jsonl", dealt, number, rank) for number, each in enumerate(SPLITS)
    }
    manifest = describe(pile, files, name, settings, dealt, written)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return manifest


def _choose(pile: Pile, rank: NDArray[np.int64], settings: Settings) -> tuple[NDArray[np.bool_], split.Groups]:
    """Return which rows stay, and which belong together because they resemble each other."""
    stays = np.ones(len(rank), np.bool_)
    if settings.does("exact"):
        repeated = split.drop_repeated(pile.info["words"], rank)
        tell_dropped(pile, "exact-duplicate", repeated)
        stays &= ~repeated
    groups = split.Groups(len(rank))
    if settings.does("near") or settings.does("leaks"):
        pairs = _find_pairs(pile, np.where(stays, rank, -1), settings.near)
        if settings.does("near"):
            alike = split.drop_alike(pairs, rank)
            tell_alike(pile, alike, pairs)
            stays &= ~alike
        if settings.does("leaks"):
            for one, two in pairs:
                groups.join(one, two)
    if settings.does("leaks"):
        groups.join_equal(pile.info["words"], np.flatnonzero(stays))
    return stays, groups


def _find_pairs(pile: Pile, rank: NDArray[np.int64], threshold: float) -> list[tuple[int, int]]:
    with pile.reading() as read:
        return find_pairs(pile.read_band, rank, lambda row: take_spoken(parse_row(read(row)).messages), threshold)


def _order_categories(pile: Pile) -> NDArray[np.int32]:
    """Return each row's category as a number in the order of their names, not of their coming."""
    order = sorted(range(len(pile.categories)), key=pile.categories.__getitem__)
    new = np.zeros(len(order) or 1, np.int32)
    new[order] = np.arange(len(order))
    pile.categories.sort()
    numbers: NDArray[np.int32] = new[pile.info["category"]]
    pile.info["category"] = numbers
    return numbers


def _write_split(pile: Pile, path: Path, dealt: NDArray[np.int8], number: int, rank: NDArray[np.int64]) -> dict[str, Any]:
    rows = np.flatnonzero(dealt == number)
    digest = hashlib.sha256()
    with pile.reading() as read, path.open("wb") as file:
        for row in rows[np.argsort(rank[rows])].tolist():
            line = read(row)
            digest.update(line)
            file.write(line)
    return {"rows": len(rows), "sha256": digest.hexdigest()}
