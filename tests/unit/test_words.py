"""Tokenising a word at a time: nothing but faster."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.data import words
from trainer.data.words import WordEncoder, cuts_at_spaces

LLAMA_3, QWEN_2 = words._KNOWN
PATTERNS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "digits": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-3": [pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
    "qwen-2": [pre_tokenizers.Split(Regex(QWEN_2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
}
PIECES = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\x1c", "\x85", "\0", "\u200b", " a", "ahoy", "ye be", "x" * 70]
PIECES += ["é", "e\u0301", "ß", "字", "🏴\u200d☠️", "'s", "'LL", "7", "1234", ".", "?!", "—", "<|im_end|>", "<|im_start|>user\n"]
texts = st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join), max_size=6)


def build(steps: list[Any], *added: AddedToken) -> Tokenizer:
    """Return a tokenizer with merges of all that stands in one piece often: blanks of all kinds, digits and signs too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    chance = random.Random(0)
    sentences = ["".join(chance.choices(PIECES, k=30)) for _ in range(300)]
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True), *added])
    return tokenizer


TOKENIZERS = {name: build(steps) for name, steps in PATTERNS.items()}


@pytest.mark.parametrize("name", PATTERNS)
@settings(deadline=None)
@given(first=texts, second=texts)
def test_words_give_the_tokens_of_the_whole(name: str, first: list[str], second: list[str]) -> None:
    """For each known pattern and any texts, new words or known ones, the tokens are the library's."""
    tokenizer = TOKENIZERS[name]
    assert cuts_at_spaces(tokenizer, tokenizer.get_added_tokens_decoder().values())
    encoder = WordEncoder(tokenizer)
    for batch in (first, second, first):
        expected = [each.ids for each in tokenizer.encode_batch(batch, add_special_tokens=False)]
        assert [tokens.tolist() for tokens in encoder.encode(batch)] == expected


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More words than may be remembered, and some too long to be, are still tokenised as the library does."""
    monkeypatch.setattr(words, "_MOST_WORDS", 20)
    tokenizer, chance = TOKENIZERS["gpt-2"], np.random.default_rng(0)
    encoder = WordEncoder(tokenizer)
    for _ in range(30):
        batch = [" ".join("y" * int(n) for n in chance.integers(1, 120, 40)) for _ in range(3)]
        expected = [each.ids for each in tokenizer.encode_batch(batch, add_special_tokens=False)]
        assert [tokens.tolist() for tokens in encoder.encode(batch)] == expected
        assert max(len(encoder._later), len(encoder._first)) <= 120
        assert all(len(word) <= words._LONGEST_WORD for word in encoder._later)


@pytest.mark.parametrize(
    ("steps", "added"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=True)], []),
        ([pre_tokenizers.ByteLevel(False, use_regex=False)], []),
        ([pre_tokenizers.Split(Regex(r"\S+ \S+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)], []),
        ([pre_tokenizers.Split(Regex(QWEN_2), "removed"), pre_tokenizers.ByteLevel(False, use_regex=False)], []),
        ([pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(False)], []),
        (PATTERNS["gpt-2"], [AddedToken("ye be")]),
        (PATTERNS["gpt-2"], [AddedToken("<|x|>", rstrip=True)]),
        (PATTERNS["gpt-2"], [AddedToken("<|x|>", lstrip=True)]),
    ],
)
def test_what_may_look_beyond_a_word_is_left_alone(steps: list[Any], added: list[AddedToken]) -> None:
    """A pattern that is not known, a space put before each part, tokens that hold or swallow spaces: no cutting."""
    tokenizer = build(steps, *added)
    assert not cuts_at_spaces(tokenizer, tokenizer.get_added_tokens_decoder().values())
