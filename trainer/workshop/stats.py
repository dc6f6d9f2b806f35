"""`data.stats`: what a data set is made of, in figures."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from trainer.data.formats import SPLITS, Problem, scan_samples
from trainer.data.store import TokenStore
from trainer.errors import InputError
from trainer.workshop.forms import NAMES

_QUANTILES = (("median", 50), ("p90", 90), ("p99", 99), ("longest", 100))
_BARS = " ▏▎▍▌▋▊▉█"
_MOST_CATEGORIES = 20
_PNG = b"\x89PNG\r\n\x1a\n"  # what each begins with


@dataclass
class Figures:
    """What is counted of one split."""

    rows: int = 0
    with_system: int = 0
    turns: Counter[int] = field(default_factory=Counter)  # answers in a conversation
    asked_characters: int = 0
    answered_characters: int = 0
    categories: Counter[str] = field(default_factory=Counter)


def count(path: Path) -> Figures:
    """Return the figures of one file; raises `InputError` at the first line that is no sample."""
    figures = Figures()
    with path.open("rb") as raw:
        for found in scan_samples(path):
            line = raw.readline()
            if isinstance(found, Problem):
                raise InputError(f"{found}; data.check tells all")
            figures.rows += 1
            figures.with_system += found.messages[0].role == "system"
            figures.turns[sum(message.role == "assistant" for message in found.messages)] += 1
            for message in found.messages:
                figures.asked_characters += len(message.content) * (message.role == "user")
                figures.answered_characters += len(message.content) * (message.role == "assistant")
            row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
            figures.categories[next((str(row[name]) for name in NAMES["category"] if row.get(name)), "")] += 1
    return figures


def render_splits(figures: dict[str, Figures], rows: dict[str, TokenStore]) -> Table:
    """Return rows, turns, characters and tokens of each split."""
    table = Table("", *figures, title="the splits", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"

    def add(name: str, values: Sequence[Any]) -> None:
        table.add_row(name, *(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in values))

    parts = list(figures.values())
    add("conversations", [part.rows for part in parts])
    add("with a system message", [part.with_system for part in parts])
    add("with several answers", [sum(n for turns, n in part.turns.items() if turns > 1) for part in parts])
    add("characters asked, mean", [part.asked_characters / max(part.rows, 1) for part in parts])
    add("characters answered, mean", [part.answered_characters / max(part.rows, 1) for part in parts])
    if rows:
        table.add_section()
        add("tokens", [rows[split].num_tokens for split in figures])
        add("of them learned", [rows[split].num_learned for split in figures])
        for name, share in _QUANTILES:
            add(
                f"tokens of a row, {name}",
                [int(np.percentile(rows[split].lengths, share, method="lower")) for split in figures],
            )
    return table


def render_categories(figures: dict[str, Figures]) -> Table | None:
    """Return rows of each category and split, the commonest first; nothing if there are none."""
    total: Counter[str] = sum((part.categories for part in figures.values()), Counter())
    if set(total) <= {""}:
        return None
    table = Table("category", *figures, title=f"{len(total)} categories", title_justify="left")
    for name, _ in total.most_common(_MOST_CATEGORIES):
        table.add_row(name or "(none)", *(f"{part.categories[name]:,}" for part in figures.values()))
    if (rest := len(total) - _MOST_CATEGORIES) > 0:
        table.add_row(f"and {rest} more")
    return table


def render_histogram(lengths: NDArray[np.int64], max_tokens: int, width: int = 48, num_bins: int = 16) -> str:
    """Return the numbers of rows by their tokens as lines of bars; what training would refuse is marked."""
    counts, edges = np.histogram(lengths, bins=num_bins)
    lines = []
    for number, low, high in zip(counts.tolist(), edges.tolist(), edges[1:].tolist(), strict=False):
        eighths = round(8 * width * number / max(counts.max(), 1))
        bar = "█" * (eighths // 8) + _BARS[eighths % 8].strip()
        mark = "  above data.max_tokens" if low > max_tokens and number else ""
        lines.append(f"{low:7.0f} – {high:<7.0f} {bar} {number:,}{mark}")
    return "\n".join(["rows by tokens", *lines])


def check_png(target: Path) -> None:
    """Raise `InputError` if the histogram cannot be drawn into ``target``: what stands there must be a PNG of before."""
    if target.suffix.lower() != ".png":
        raise InputError(f"--png {target}: is drawn as a PNG; give a name that ends in .png")
    if not target.parent.is_dir():
        raise InputError(f"--png {target}: there is no folder {target.parent}; make it, or give another name")
    if target.exists() and not _is_png(target):
        raise InputError(f"--png {target}: exists and is no PNG; give another name")


def _is_png(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_PNG)) == _PNG


def draw_histogram(rows: dict[str, TokenStore], max_tokens: int, target: Path) -> None:
    """Write the histogram of all splits as a PNG, with the limit as a line; the file appears when it is whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lengths = [rows[split].lengths for split in SPLITS]
    axes.hist(lengths, bins=40, stacked=True, label=[f"{split} ({len(rows[split]):,})" for split in SPLITS])
    if max(int(each.max()) for each in lengths) > 0.5 * max_tokens:
        axes.axvline(max_tokens, color="black", linestyle="--", linewidth=1, label=f"data.max_tokens = {max_tokens}")
    axes.set(xlabel="tokens of a conversation, template included", ylabel="conversations")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        figure.savefig(scratch, format="png", dpi=150, metadata={"Software": None})
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
