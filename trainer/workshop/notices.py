"""What `data.prepare` tells beside its table, a line for each: what people would want to know before they train."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import SPLITS
from trainer.schema import escape_text, show_value
from trainer.workshop.pile import Pile, quote
from trainer.workshop.settings import Settings

Tell = Callable[[str], None]
_RULES = {  # of each step that drops samples, in the order in which they run; all other rules belong to reading
    "identical": ("identical-turns",),
    "refusals": ("refusal", "boilerplate"),
    "personal": ("personal-data",),
    "language": ("language",),
    "length": ("template", "too-long"),
    "exact": ("exact-duplicate",),
    "near": ("near-duplicate",),
    "balance": ("balance",),
}
_REMEDIES = {  # of what cannot be left out, or not without a consequence
    "reading": "mend them, or tell with --form or --map how they are to be read",
    "length": "--skip length keeps them, for a recipe with a larger data.max_tokens",
}
_LEAKS = "--skip leaks keeps them apart"


def tell_people(line: str) -> None:
    """Print a line on standard error, without anything that a terminal obeys."""
    print(escape_text(line), file=sys.stderr)


def find_lossy_steps(pile: Pile) -> Iterator[str]:
    """Yield a line for each step that dropped more than half of what it got."""
    known = {rule for rules in _RULES.values() for rule in rules}
    reading = tuple(rule for rule in pile.dropped.counts if rule not in known)
    num_left = pile.num_read
    for step, rules in {"reading": reading, **_RULES}.items():
        num_dropped = sum(pile.dropped.counts[rule] for rule in rules)
        # conversations went into this step and parts of them came out: of both, what came out and what did not is the whole
        num_got = len(pile.info) + num_dropped if step == "length" else num_left
        num_left = num_got - num_dropped
        if num_dropped * 2 > num_got:
            commonest = max(rules, key=lambda rule: pile.dropped.counts[rule])
            told = f"{step} dropped {num_dropped:,} of {num_got:,} samples, such as {pile.dropped.examples[commonest][0]}"
            yield f"{told}; {_REMEDIES.get(step, f'--skip {step} keeps them')}"


def find_small_splits(pile: Pile, labels: NDArray[np.int64], dealt: NDArray[np.int8], settings: Settings) -> Iterator[str]:
    """Yield a line for each split that got less than half of its share because of groups; so few rows need no words."""
    num_rows = int((dealt >= 0).sum())
    if len(np.unique(labels[dealt >= 0])) == num_rows:  # every row is a group of its own
        return
    shares = (1 - settings.valid - settings.test, settings.valid, settings.test)
    for number, (name, share) in enumerate(zip(SPLITS, shares, strict=True)):
        count = int((dealt == number).sum())
        if count * 2 < share * num_rows:
            got = f"{name} gets {count:,} of {num_rows:,} rows, {count / num_rows:.1%} where {share:.1%} was wanted"
            yield f"{got}; a group is never torn: {_explain_largest(pile, labels, dealt >= 0)}"


def say_too_few(pile: Pile, labels: NDArray[np.int64], stays: NDArray[np.bool_]) -> list[str]:
    """Return why a data set cannot be made: too few rows, or too few groups of them, and what was dropped before."""
    told = [
        f"{rule}: {count} dropped, such as {pile.dropped.examples[rule][0]}"
        for rule, count in pile.dropped.counts.most_common(8)
    ]
    num_rows, num_groups = int(stays.sum()), len(np.unique(labels[stays]))
    left = f"{num_rows} of {pile.num_read} samples are left"
    few = "which is too few for train, valid and test"
    if num_rows < len(SPLITS):
        return [f"{left}, {few}; three conversations that differ are the least", *told]
    groups = f"in {num_groups} group{'s' if num_groups > 1 else ''}"
    return [f"{left}, but {groups}, {few}; a group is never torn: {_explain_largest(pile, labels, stays)}", *told]


def _explain_largest(pile: Pile, labels: NDArray[np.int64], stays: NDArray[np.bool_]) -> str:
    """Return what the rows of the largest group have in common, and how they are kept apart."""
    rows = np.flatnonzero(stays)
    names, counts = np.unique(labels[rows], return_counts=True)
    members = rows[labels[rows] == names[counts.argmax()]]
    with pile.reading() as read:
        line = read(int(members[0]))
    if _is_one(pile.info["group"][members]):
        if group := json.loads(line).get("group", ""):
            return f"{len(members):,} rows are of group {show_value(group)}; rename that column where they may be dealt apart"
        return f"{len(members):,} rows are parts of one conversation; --overlong drop leaves it out"
    if _is_one(pile.info["question"][members]):
        return f"{len(members):,} rows share the first question {quote(line)}; {_LEAKS}"
    return f"{len(members):,} rows resemble each other or share a question, such as {quote(line)}; {_LEAKS}"


def _is_one(hashes: NDArray[Any]) -> bool:
    """Whether all have the same hash; 0 is none."""
    return bool(hashes[0]) and bool((hashes == hashes[0]).all())
