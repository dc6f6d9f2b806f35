"""Which rows stay, and which split each goes to: seeded, by group, in proportion for each category, in any order of files."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import SPLITS

TRAIN, VALID, TEST = range(3)


def rank_rows(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return each row's place in the order of keys, int64 [N]: an order that does not depend on where rows stand."""
    rank = np.empty(len(keys), np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return rank


def drop_repeated(hashes: NDArray[np.uint64], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return bool [N], true for every row but the first in rank of those with the same hash."""
    order = np.lexsort((rank, hashes))
    repeated = np.zeros(len(hashes), np.bool_)
    repeated[order[1:]] = hashes[order][1:] == hashes[order][:-1]
    return repeated


def drop_alike(pairs: Iterable[tuple[int, int]], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return bool [N], true for every row that resembles one of lower rank that stays."""
    dropped = np.zeros(len(rank), np.bool_)
    for one, two in sorted(pairs, key=lambda pair: (rank[pair[1]], rank[pair[0]])):
        if not dropped[one]:
            dropped[two] = True
    return dropped


def drop_surplus(
    categories: NDArray[np.int32], rank: NDArray[np.int64], stays: NDArray[np.bool_], balance: float
) -> NDArray[np.bool_]:
    """Return bool [N], true for rows of a category beyond ``balance`` times the median category; the lowest ranks stay."""
    counts = np.bincount(categories[stays])
    most = int(balance * np.median(counts[counts > 0])) if stays.any() else 0
    rows = np.flatnonzero(stays)
    order = rows[np.lexsort((rank[rows], categories[rows]))]
    starts = np.concatenate([[0], np.cumsum(counts)])[categories[order]]
    dropped = np.zeros(len(rank), np.bool_)
    dropped[order] = np.arange(len(order)) - starts >= most
    return dropped


class Groups:
    """Rows that belong together: a forest of int64 [N], joined by union-find."""

    def __init__(self, num_rows: int) -> None:
        self._parent = np.arange(num_rows)

    def find(self, row: int) -> int:
        """Return the row that stands for a row's group."""
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    def join(self, one: int, two: int) -> None:
        """Make two groups one."""
        one, two = self.find(one), self.find(two)
        self._parent[max(one, two)] = min(one, two)

    def join_equal(self, hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """Join those of ``rows`` that have the same hash; 0 is none."""
        rows = rows[hashes[rows] != 0]
        order = rows[np.argsort(hashes[rows], kind="stable")]
        for place in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
            self.join(int(order[place]), int(order[place + 1]))

    def label(self) -> NDArray[np.int64]:
        """Return for each row the row that stands for its group."""
        return np.fromiter((self.find(row) for row in range(len(self._parent))), np.int64, len(self._parent))


def assign_splits(
    labels: NDArray[np.int64], rank: NDArray[np.int64], categories: NDArray[np.int32], stays: NDArray[np.bool_],
    *, valid: float, test: float,
) -> NDArray[np.int8]:  # fmt: skip
    """Return the number of each row's split, int8 [N]; -1 for rows that do not stay.

    Groups stand in line by category, then by the lowest rank of their rows, and every 1/share-th is taken: so each category
    gives its share. A group of more than a tenth of a split's rows stays in train. Where there are three groups, no
    split is empty.
    """
    rows = np.flatnonzero(stays)
    splits = np.full(len(rank), -1, np.int8)
    if not len(rows):
        return splits
    rows = rows[np.argsort(rank[rows])]
    _, first, group = np.unique(labels[rows], return_index=True, return_inverse=True)
    sizes = np.bincount(group)
    order = np.lexsort((first, categories[rows[first]]))  # ``first`` is the lowest rank, for rows stand in line by rank
    chosen = np.full(len(sizes), TRAIN, np.int8)
    for split, share, left in ((TEST, test, 1.0), (VALID, valid, 1.0 - test)):
        places = np.arange(1, len(order) + 1) * share / left + 0.5
        taken = (np.floor(places) > np.floor(places - share / left)) & (sizes[order] <= max(1, 0.1 * share * len(rows)))
        chosen[order[taken]] = split
        order = order[~taken]
    _fill_empty(chosen, first, sizes)
    splits[rows] = chosen[group]
    return splits


def _fill_empty(chosen: NDArray[np.int8], first: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Give each empty split the smallest group, the first in line of those, of the split that has most groups."""
    for split in (TRAIN, VALID, TEST):
        counts = np.bincount(chosen, minlength=len(SPLITS))
        if not counts[split] and counts.max() > 1:
            spare = np.flatnonzero(chosen == counts.argmax())
            chosen[spare[np.lexsort((first[spare], sizes[spare]))[0]]] = split
