"""Texts to tokens a word at a time: a word is tokenised once and then remembered, which is some ten times faster.

Byte-level tokenizers cut a text by a pattern and look at nothing beyond each piece. All patterns that are known here agree on
one place: before a single space between two visible characters, for no piece holds a visible character and a space behind it,
and no pattern looks back. So a text may be cut there, and what the parts become, put together, is what the text becomes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CUT = re.compile(r" (?=[!-~])(?<=[!-~] )")  # the space itself, so that what follows is remembered without it
_MOST_WORDS = 1 << 16  # remembered; some 200 bytes each
_LONGEST_WORD = 64  # characters; what is longer will hardly come again
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KNOWN = tuple(  # Llama 3's and its kin, Qwen 2's and its kin; GPT 2's own is part of the library
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|{numbers}|{_OTHERS}" for numbers in (r"\p{N}{1,3}", r"\p{N}")
)


class WordEncoder:
    """Encodes with a fast tokenizer that `cuts_at_spaces`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._first: dict[str, bytes] = {}  # int32 tokens of what stands at the beginning of a text
        self._later: dict[str, bytes] = {}  # and of what stands behind a space, that space included

    def encode(self, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the tokens [T] of each text, special tokens only where the text holds them."""
        parts = [_CUT.split(text) for text in texts]
        first = self._look_up(self._first, "", {each[0] for each in parts})
        later = self._look_up(self._later, " ", set(itertools.chain.from_iterable(each[1:] for each in parts)))
        for one, *rest in parts:
            yield np.frombuffer(b"".join([first[one], *map(later.__getitem__, rest)]), np.int32)

    def _look_up(self, known: dict[str, bytes], space: str, words: set[str]) -> Mapping[str, bytes]:
        """Return at least the ``words`` with their tokens, and remember those that may come again."""
        new = [word for word in words if word not in known]
        encoded = self._backend.encode_batch_fast([space + word for word in new], add_special_tokens=False)
        found = {word: np.array(each.ids, np.int32).tobytes() for word, each in zip(new, encoded, strict=True)}
        if len(known) + len(found) > _MOST_WORDS:
            found |= {word: known[word] for word in words if word in known}
            known.clear()
        known.update((word, tokens) for word, tokens in found.items() if len(word) <= _LONGEST_WORD)
        return found if len(found) == len(words) else _Both(known, found)


class _Both(dict[str, bytes]):
    """What is known, and beside it what is not to be remembered."""

    def __init__(self, known: Mapping[str, bytes], found: Mapping[str, bytes]) -> None:
        super().__init__(found)
        self._known = known

    def __missing__(self, word: str) -> bytes:
        return self._known[word]


def cuts_at_spaces(backend: Any, added: Iterable[Any]) -> bool:
    """Whether a byte-level tokenizer without normaliser, with these added tokens, makes of parts what it makes of a whole."""
    swallows = any(" " in str(token.content) or token.lstrip or token.rstrip or token.single_word for token in added)
    if swallows or backend.pre_tokenizer is None:
        return False
    state = json.loads(backend.pre_tokenizer.__getstate__())
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    return all(map(_is_known, steps)) and any(map(_cuts_words, steps))


def _is_known(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    return step["type"] == "Digits" or _cuts_words(step)


def _cuts_words(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    is_split = step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
    return is_split and step["pattern"].get("Regex") in _KNOWN
