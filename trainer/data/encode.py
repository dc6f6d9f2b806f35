"""Texts to tokens, each token with the characters that it stands for; many texts at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.words import WordEncoder, cuts_at_spaces
from trainer.errors import InputError

Encoded = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]
Encoder = Callable[[Sequence[str]], Iterator[Encoded]]


class Tokenizer(Protocol):
    """What we use of a Hugging Face tokenizer."""

    chat_template: Any
    added_tokens_decoder: Mapping[int, Any]

    def __call__(self, text: str, **kwargs: Any) -> Any: ...
    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...


def make_encoder(tokenizer: Tokenizer) -> Encoder:
    """Return what yields for each text its tokens [T] and the first and one past the last character of each.

    Raises `InputError` for a tokenizer that cannot say which characters a token holds.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        tokenizer("a", add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    except (NotImplementedError, KeyError) as error:  # KeyError since transformers 5
        raise InputError(
            "model.source: the model has no fast tokenizer (tokenizer.json), so its turns cannot be told apart"
        ) from error
    if backend is None:
        return lambda texts: (_encode_one(tokenizer, text) for text in texts)
    sizes = _measure_tokens(tokenizer, backend)
    if sizes is None:
        return lambda texts: _encode_with_offsets(backend, texts)
    by_word = cuts_at_spaces(backend, tokenizer.added_tokens_decoder.values())
    encode = WordEncoder(backend).encode if by_word else functools.partial(_encode_whole, backend)
    return lambda texts: _encode_by_size(backend, encode, sizes, texts)


def _encode_one(tokenizer: Tokenizer, text: str) -> Encoded:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return _with_gaps(encoded["input_ids"], np.array(encoded["offset_mapping"], dtype=np.int64))


def _encode_with_offsets(backend: Any, texts: Sequence[str]) -> Iterator[Encoded]:
    for each in backend.encode_batch(list(texts), add_special_tokens=False):
        yield _with_gaps(each.ids, np.array(each.offsets, dtype=np.int64))


def _encode_whole(backend: Any, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
    for each in backend.encode_batch_fast(list(texts), add_special_tokens=False):
        yield np.array(each.ids, dtype=np.int32)


def _encode_by_size(
    backend: Any, encode: Callable[[Sequence[str]], Iterator[NDArray[np.int32]]], sizes: NDArray[np.int64], texts: Sequence[str]
) -> Iterator[Encoded]:
    """Yield what `make_encoder` tells; ``sizes`` holds the bytes of each token.

    A tokenizer takes a quarter longer when it has to keep track of characters. Where tokens are pieces of the bytes of a text,
    adding up their sizes tells the same, and the sum tells whether they are.
    """
    for text, tokens in zip(texts, encode(texts), strict=True):
        ends = np.cumsum(sizes[tokens])
        if len(ends) == 0 or ends[-1] != (len(text) if text.isascii() else len(text.encode())):
            slow = backend.encode(text, add_special_tokens=False)
            yield _with_gaps(slow.ids, np.array(slow.offsets, dtype=np.int64))
            continue
        starts = ends - sizes[tokens]
        yield (tokens, starts, ends) if text.isascii() else (tokens, *_bytes_to_characters(text, starts, ends))


def _bytes_to_characters(text: str, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return places in the text's bytes as places in its characters; a part of a character counts as all of it."""
    begins = (np.frombuffer(text.encode(), dtype=np.uint8) & 0xC0) != 0x80  # true where a character begins
    character = np.cumsum(begins, dtype=np.int64) - 1
    return character[starts], character[ends - 1] + 1


def _with_gaps(tokens: Sequence[int], offsets: NDArray[np.int64]) -> Encoded:
    """Return tokens and offsets; some tokenizers leave a space out of its token's offsets, so that a token of spaces has none:
    it starts where the one before it ends.
    """
    starts, ends = offsets.reshape(-1, 2).T
    starts = np.where(starts < ends, starts, np.concatenate([[0], ends[:-1]]))
    return np.array(tokens, dtype=np.int32), starts, ends


def _measure_tokens(tokenizer: Tokenizer, backend: Any) -> NDArray[np.int64] | None:
    """Return the bytes that each token stands for, or nothing for a tokenizer that does more than cut bytes apart."""
    if type(backend.decoder).__name__ != "ByteLevel" or backend.normalizer is not None:
        return None
    added = tokenizer.added_tokens_decoder
    vocabulary = tokenizer.get_vocab()
    sizes = np.zeros(max(vocabulary.values(), default=0) + 1, dtype=np.int64)
    for token, number in vocabulary.items():
        sizes[number] = len(str(added[number].content).encode()) if number in added else len(token)
    return sizes
