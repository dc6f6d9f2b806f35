"""A second reader of the bundled GGUF, written to share nothing with the conversion: gguf's own dequantiser, a NumPy
Llama that rotates the permuted weights as the file holds them, and byte-level BPE done by hand.

Slow and plain on purpose. T tokens, D hidden size, H heads, K key and value heads, E head size, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import regex
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# GPT-2's splitting of a text, applied to each stretch between two digits.
WORDS = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
DIGITS = regex.compile(r"(\p{N})")


class ReferenceLlama:
    """The model in ``path`` as plain arrays; all arithmetic in float32."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors: dict[str, Floats] = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
        self.num_layers: int = self.fields["llama.block_count"]
        self.num_heads: int = self.fields["llama.attention.head_count"]
        self.num_kv_heads: int = self.fields["llama.attention.head_count_kv"]

    def hidden(self, ids: list[int], num_layers: int) -> Floats:
        """Return the hidden states (T, D) after the first ``num_layers`` layers."""
        hidden_TD = self.tensors["token_embd.weight"][ids]
        for layer in range(num_layers):
            hidden_TD = self._layer(hidden_TD, f"blk.{layer}")
        return hidden_TD

    def logits(self, ids: list[int], last: int | None = None) -> Floats:
        """Return the logits (T, V), or only those of the ``last`` positions; the head is the embedding, tied."""
        hidden_TD = self._norm(self.hidden(ids, self.num_layers)[-(last or 0) :], "output_norm")
        return hidden_TD @ self.tensors["token_embd.weight"].T

    def greedy(self, ids: list[int], num_tokens: int) -> tuple[list[int], float]:
        """Return the most likely continuation and the smallest lead of a chosen token's logit over the next best."""
        chosen: list[int] = []
        lead = np.inf
        for _ in range(num_tokens):
            logits_V = self.logits(ids + chosen, last=1)[0]
            second, first = np.sort(logits_V)[-2:]
            lead = min(lead, float(first - second))
            chosen.append(int(logits_V.argmax()))
        return chosen, lead

    def _layer(self, hidden_TD: Floats, name: str) -> Floats:
        hidden_TD = hidden_TD + self._attention(self._norm(hidden_TD, f"{name}.attn_norm"), name)
        normed_TD = self._norm(hidden_TD, f"{name}.ffn_norm")
        gate, up = self._linear(normed_TD, f"{name}.ffn_gate"), self._linear(normed_TD, f"{name}.ffn_up")
        return hidden_TD + self._linear(gate / (1 + np.exp(-gate)) * up, f"{name}.ffn_down")

    def _attention(self, hidden_TD: Floats, name: str) -> Floats:
        query_THE = self._rotate(self._heads(hidden_TD, f"{name}.attn_q", self.num_heads))
        key_TKE = self._rotate(self._heads(hidden_TD, f"{name}.attn_k", self.num_kv_heads))
        value_TKE = self._heads(hidden_TD, f"{name}.attn_v", self.num_kv_heads)
        num_tokens, _, head_size = query_THE.shape
        causal_TT = np.tril(np.ones((num_tokens, num_tokens), dtype=bool))
        outputs = []
        for head in range(self.num_heads):
            shared = head // (self.num_heads // self.num_kv_heads)
            scores_TT = query_THE[:, head] @ key_TKE[:, shared].T / np.sqrt(np.float32(head_size))
            outputs.append(_softmax(np.where(causal_TT, scores_TT, -np.inf)) @ value_TKE[:, shared])
        return self._linear(np.concatenate(outputs, axis=1), f"{name}.attn_output")

    def _rotate(self, heads_THE: Floats) -> Floats:
        """Turn each pair of neighbours (2i, 2i+1) by position · base^(-2i/E): GGUF's order of the rows."""
        num_tokens, _, size = heads_THE.shape
        speeds = self.fields["llama.rope.freq_base"] ** (-np.arange(0, size, 2) / size)
        turns = np.exp(1j * np.arange(num_tokens)[:, None, None] * speeds)
        pairs = (heads_THE[..., 0::2] + 1j * heads_THE[..., 1::2]) * turns
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(heads_THE.shape).astype(np.float32)

    def _norm(self, hidden_TD: Floats, name: str) -> Floats:
        eps = self.fields["llama.attention.layer_norm_rms_epsilon"]
        scale_T1 = np.sqrt((hidden_TD**2).mean(axis=-1, keepdims=True) + np.float32(eps))
        return hidden_TD / scale_T1 * self.tensors[f"{name}.weight"]

    def _linear(self, inputs: Floats, name: str) -> Floats:
        return inputs @ self.tensors[f"{name}.weight"].T

    def _heads(self, hidden_TD: Floats, name: str, num_heads: int) -> Floats:
        return self._linear(hidden_TD, name).reshape(len(hidden_TD), num_heads, -1)


def _softmax(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def perplexity(logits_TV: NDArray[Any], ids: list[int]) -> float:
    """Return exp(mean negative log-likelihood) of ``ids[1:]`` under the logits before each, summed in float64."""
    logits = np.asarray(logits_TV, dtype=np.float64)[:-1]
    log_total = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
    return float(np.exp((log_total - logits[np.arange(len(ids) - 1), ids[1:]]).mean()))


@functools.cache
def byte_symbols() -> dict[int, str]:
    """Return GPT-2's printable stand-in of every byte value: itself where printable, else the next of U+0100…"""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def decode_token(token: str) -> bytes:
    """Return the bytes that a token of the vocabulary stands for."""
    values = {symbol: byte for byte, symbol in byte_symbols().items()}
    return bytes(values[symbol] for symbol in token)


def encode(text: str, fields: dict[str, Any]) -> list[int]:
    """Return the token ids of ``text`` (without special tokens) by joining the best-ranked pair until none is left."""
    ids = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
    pieces = [word for stretch in DIGITS.split(text) for word in WORDS.findall(stretch)]
    symbols = byte_symbols()
    words = ([symbols[byte] for byte in piece.encode()] for piece in pieces)
    return [ids[token] for word in words for token in _merge(word, ranks)]


def _merge(word: list[str], ranks: dict[tuple[str, ...], int]) -> list[str]:
    while pairs := [pair for pair in itertools.pairwise(word) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        merged: list[str] = []
        while word:
            size = 2 if tuple(word[:2]) == best else 1
            merged.append("".join(word[:size]))
            word = word[size:]
        word = merged
    return word
