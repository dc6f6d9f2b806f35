"""A GGUF file of a Llama: its tensors and metadata as MLX reads them, and the hyperparameters that the metadata tells."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx

from trainer.errors import InputError

# What this module knows how to build; the pre-tokenizer's name stands for its splitting rules.
SUPPORTED = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
VOCABULARY = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
TEMPLATE = "tokenizer.chat_template"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gguf:
    """A GGUF file as MLX reads it: ``tensors`` by name (quantised ones as weight, scales, biases) and ``metadata``."""

    path: Path
    tensors: dict[str, mx.array]
    metadata: dict[str, Any]


def _key(name: str) -> Any:
    """Return a dataclass field that is read from this key of the metadata."""
    return dataclasses.field(metadata={"key": name})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """A Llama's numbers: their names in config.json, and the GGUF key that each is read from."""

    hidden_size: int = _key("llama.embedding_length")
    num_hidden_layers: int = _key("llama.block_count")
    num_attention_heads: int = _key("llama.attention.head_count")
    num_key_value_heads: int = _key("llama.attention.head_count_kv")
    head_dim: int = _key("llama.rope.dimension_count")
    intermediate_size: int = _key("llama.feed_forward_length")
    max_position_embeddings: int = _key("llama.context_length")
    vocab_size: int = _key("llama.vocab_size")
    rope_theta: float = _key("llama.rope.freq_base")
    rms_norm_eps: float = _key("llama.attention.layer_norm_rms_epsilon")
    bos_token_id: int = _key("tokenizer.ggml.bos_token_id")
    eos_token_id: int = _key("tokenizer.ggml.eos_token_id")
    pad_token_id: int = _key("tokenizer.ggml.padding_token_id")
    unk_token_id: int = _key("tokenizer.ggml.unknown_token_id")


def read_gguf(path: Path) -> Gguf:
    """Read a GGUF file with MLX. Raises `InputError` where there is none or it is damaged."""
    try:
        loaded = mx.load(str(path), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a GGUF file: {error}") from error
    assert isinstance(loaded, tuple)
    tensors, metadata = loaded
    assert isinstance(tensors, dict)
    return Gguf(path=path, tensors=tensors, metadata=metadata)


def read_hyperparameters(source: Gguf) -> Hyperparameters:
    """Take the model's numbers out of the metadata.

    Raises `InputError` listing every missing key, every ``llama.*`` key that is not known (ignoring it could change the
    model), an architecture or tokenizer outside `SUPPORTED`, and head counts that do not fit the hidden size.
    """
    metadata = source.metadata
    keys = {field.name: field.metadata["key"] for field in dataclasses.fields(Hyperparameters)}
    unlike = {key: only for key, only in SUPPORTED.items() if metadata.get(key) != only}
    problems = [f"{key} is {metadata.get(key)!r}, only {only!r} is known" for key, only in unlike.items()]
    problems += [f"{key} is missing" for key in (*keys.values(), *VOCABULARY, TEMPLATE) if key not in metadata]
    problems += [f"{key} is not known" for key in sorted(metadata.keys() - keys.values()) if key.startswith("llama.")]
    refuse(source, problems)
    hyper = Hyperparameters(**{name: _number(metadata[key]) for name, key in keys.items()})
    refuse(source, _head_problems(hyper))
    return hyper


def _number(value: mx.array) -> Any:
    """Return a scalar of the metadata; float32 as the shortest decimal that means it (1e-05, not 9.99999974e-06)."""
    number: Any = value.item()
    return float(f"{number:.7g}") if isinstance(number, float) else int(number)


def _head_problems(hyper: Hyperparameters) -> list[str]:
    heads, kv_heads = hyper.num_attention_heads, hyper.num_key_value_heads
    problems = []
    if heads * hyper.head_dim != hyper.hidden_size:
        problems.append(f"{heads} heads of size {hyper.head_dim} do not make the hidden size {hyper.hidden_size}")
    if heads % kv_heads:
        problems.append(f"{heads} query heads cannot share {kv_heads} key and value heads evenly")
    return problems


def refuse(source: Gguf, problems: list[str]) -> None:
    """Raise `InputError` with all problems, each led by the file's name; do nothing where there are none."""
    if problems:
        raise InputError([f"{source.path}: {problem}" for problem in problems])
