"""Near duplicates: MinHash signatures of word pairs, bands that bring likely pairs together, and the proof of each pair.

Broder, "On the resemblance and containment of documents", 1997; Leskovec, Rajaraman, Ullman, "Mining of massive datasets",
chapter 3. Ours rather than a library's because a library keeps its index in memory: here a row costs `NUM_BANDS` numbers on
disk, of which one column at a time is read and sorted (docs/decisions/0007-minhash-on-disk.md).

All words together do not prove a pair: one instruction before many short texts, or one passage before many questions, makes
nine tenths of each sample the same. So the parts that such samples differ in are looked at by themselves.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import Message

NUM_BANDS = 20
BAND_ROWS = 4  # two texts of resemblance 0.65 meet in a band with probability 1 - (1 - 0.65^4)^20 = 0.98
THRESHOLD = 0.65
PART_THRESHOLD = 0.25  # of a part: well below what a word or two exchanged make of a sentence, above what chance makes
_MOST_WORDS = 1 << 20  # kept in the table of hashes
_MOST_COMPARED = 6  # rows of one bucket that each other row of it is compared with
_WORD = re.compile(r"\w+")
_BLANK_LINES = re.compile(r"\n\s*\n")
_ASCII_WORDS = {code: chr(code).lower() if _WORD.match(chr(code)) else " " for code in range(128)}


@dataclass(frozen=True)
class Spoken:
    """What a pair is proved by: all turns, and by themselves the first question's blocks and the last answer; normalised."""

    text: str
    blocks: tuple[str, ...] = ()
    answer: str = ""


def normalise(text: str) -> str:
    """Return the words of ``text`` in lower case, a space between: what is left when layout and punctuation do not count."""
    if text.isascii():  # the same, six times faster
        return " ".join(text.translate(_ASCII_WORDS).split())
    return " ".join(_WORD.findall(text.casefold()))


def normalise_spoken(messages: Sequence[Message]) -> str:
    """Return all turns but the system's as `normalise` does."""
    return normalise("\n".join(message.content for message in messages if message.role != "system"))


def take_spoken(messages: Sequence[Message]) -> Spoken:
    """Return what `find_pairs` compares of a conversation that has a question and an answer."""
    question = next(message.content for message in messages if message.role == "user")
    answer = next(message.content for message in reversed(messages) if message.role == "assistant")
    blocks = tuple(filter(None, map(normalise, _BLANK_LINES.split(question))))
    return Spoken(normalise_spoken(messages), blocks, normalise(answer) or answer)  # an answer of signs alone is its signs


def hash_text(text: str) -> int:
    """Return 64 bits of a hash that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def shingle(text: str) -> frozenset[str]:
    """Return the word pairs of a normalised text; of a shorter one, the text."""
    words = text.split()
    return frozenset(map(" ".join, itertools.pairwise(words))) if len(words) > 2 else frozenset([text])


def resemble(one: frozenset[str], two: frozenset[str]) -> float:
    """Return the Jaccard index of two sets."""
    return len(one & two) / len(one | two)


class _Table(dict[str, int]):
    """Hashes of words, made when first asked for."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        self[word] = value = hash_text(word)
        return value


class Signer:
    """Computes bands of MinHash signatures."""

    def __init__(self) -> None:
        self._table = _Table()
        random = np.random.Generator(np.random.Philox(1997))
        self._salts = random.integers(1, 1 << 63, NUM_BANDS * BAND_ROWS, dtype=np.uint64)
        self._factors = random.integers(1, 1 << 63, BAND_ROWS, dtype=np.uint64) | np.uint64(1)
        self._slopes = random.integers(1, 1 << 63, len(self._salts), dtype=np.uint64) << np.uint64(1) | np.uint64(1)

    def sign(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        """Return uint64 [N, NUM_BANDS] for normalised texts; texts that resemble each other share a number in a column."""
        bands = np.zeros((len(texts), NUM_BANDS), dtype=np.uint64)
        if not len(texts):
            return bands
        hashes, starts = self._hash_shingles([text.split() or [""] for text in texts])
        permuted = np.empty_like(hashes)
        for number, (slope, salt) in enumerate(zip(self._slopes, self._salts, strict=True)):
            np.add(np.multiply(hashes, slope, out=permuted), salt, out=permuted)  # a permutation, for the slope is odd
            smallest = np.minimum.reduceat(permuted, starts)
            band, row = divmod(number, BAND_ROWS)
            bands[:, band] += smallest * self._factors[row]
        return _mix(bands)

    def _hash_shingles(self, texts: Sequence[list[str]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return hashes of all texts' word pairs, and where each text's begin.

        A text of n words has n: where a pair would reach into the next text stands the one before it once more.
        """
        ends = np.cumsum([len(words) for words in texts])
        starts = np.concatenate([[0], ends[:-1]])
        words = np.fromiter(map(self._table.__getitem__, itertools.chain.from_iterable(texts)), np.uint64, int(ends[-1]))
        pairs = np.empty_like(words)
        pairs[:-1] = _mix(words[:-1] * self._factors[0] + words[1:] * self._factors[1])
        pairs[ends - 1] = np.where(ends - starts > 1, pairs[ends - 2], words[ends - 1])
        return pairs, starts


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return hashes of hashes (the finaliser of MurmurHash3, by Austin Appleby, in the public domain)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def have_like_parts(one: Spoken, two: Spoken) -> bool:
    """Whether the last answers resemble each other, and so do questions of as many blocks, two or more, block by block."""
    parts = [(one.answer, two.answer)]
    if len(one.blocks) == len(two.blocks) > 1:
        parts += zip(one.blocks, two.blocks, strict=True)
    return all(a == b or resemble(shingle(a), shingle(b)) >= PART_THRESHOLD for a, b in parts)


def find_pairs(
    read_band: Callable[[int], NDArray[np.uint64]],
    rank: NDArray[np.int64],
    read_spoken: Callable[[int], Spoken],
    threshold: float = THRESHOLD,
) -> list[tuple[int, int]]:
    """Return pairs (one, two) of rows that resemble each other at least as much as ``threshold``, ``rank`` of one < of two.

    ``read_band(band)`` is the column uint64 [N]; ``rank`` int64 [N] is an order of the rows that does not depend on where they
    stand (-1 leaves a row out); ``read_spoken`` returns what a row is compared by. In a bucket of many rows not every pair is
    tried.
    """
    found: dict[tuple[int, int], bool] = {}

    @functools.lru_cache(1024)
    def read(row: int) -> tuple[frozenset[str], Spoken]:
        spoken = read_spoken(row)
        return shingle(spoken.text), spoken

    for band in range(NUM_BANDS):
        for bucket in _find_buckets(read_band(band), rank):
            for one, two in _pair_up(bucket):
                if (one, two) not in found:
                    (words, spoken), (other_words, other_spoken) = read(one), read(two)
                    found[one, two] = resemble(words, other_words) >= threshold and have_like_parts(spoken, other_spoken)
    return sorted(pair for pair, is_alike in found.items() if is_alike)


def _find_buckets(column: NDArray[np.uint64], rank: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield the rows that share a number, two or more, in the order of their rank."""
    rows = np.flatnonzero(rank >= 0)
    order = rows[np.lexsort((rank[rows], column[rows]))]
    values = column[order]
    edges = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1], [True]]))
    for index in np.flatnonzero(np.diff(edges) > 1):
        yield order[edges[index] : edges[index + 1]].tolist()


def _pair_up(bucket: list[int]) -> Iterator[tuple[int, int]]:
    """Yield each row with the first few of its bucket."""
    for place, two in enumerate(bucket):
        for one in bucket[: min(place, _MOST_COMPARED)]:
            yield one, two
