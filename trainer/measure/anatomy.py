"""What a model's files say of its sizes, without MLX: the headers of its weights, and its configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Sizes of a model. Bytes as they lie in memory once loaded; widths in numbers.

    ``layer_bytes`` of each layer from the lowest; ``outside_bytes`` of all else: embedding, last norm, head. ``linear`` maps
    the names of a layer's linear modules to their numbers of inputs and outputs. ``item_bytes`` of a hidden state's number.
    """

    layer_bytes: tuple[int, ...]
    outside_bytes: int
    embedding_bytes: int
    linear: Mapping[str, tuple[int, int]]
    hidden: int
    queries: int
    keys: int
    inner: int
    heads: int
    vocabulary: int
    item_bytes: int
    is_quantized: bool

    @property
    def num_layers(self) -> int:
        """The model's layers."""
        return len(self.layer_bytes)


def read_anatomy(folder: Path) -> Anatomy | None:
    """Return the sizes of the model in ``folder``; None where its files do not tell them in the usual form."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return _make(config.get("text_config") or config, dict(_tensors(folder)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _tensors(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MOST_HEADER_BYTES:
                raise ValueError(f"{path}: its header cannot be that long")
            yield from ((name, entry) for name, entry in json.loads(file.read(size)).items() if name != "__metadata__")


def _make(config: Mapping[str, Any], tensors: Mapping[str, dict[str, Any]]) -> Anatomy:
    sizes = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in tensors.items()}
    found = {name: match for name in tensors if (match := _LAYER.search(name))}
    layers = [0] * config["num_hidden_layers"]
    for name, match in found.items():
        layers[int(match[1])] += sizes[name]
    last = {match[2]: tensors[name] for name, match in found.items() if int(match[1]) == len(layers) - 1}
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_size = config.get("head_dim") or hidden // heads
    bits = (config.get("quantization") or config.get("quantization_config") or {}).get("bits", 0)
    norm = next(entry for name, entry in last.items() if "norm" in name and len(entry["shape"]) == 1)
    return Anatomy(
        layer_bytes=tuple(layers),
        outside_bytes=sum(size for name, size in sizes.items() if name not in found),
        embedding_bytes=sum(size for name, size in sizes.items() if "embed_tokens" in name),
        linear={name[: -len(".weight")]: shape for name, entry in last.items() if (shape := _shape(name, entry, bits))},
        hidden=hidden,
        queries=heads * head_size,
        keys=(config.get("num_key_value_heads") or heads) * head_size,
        inner=config["intermediate_size"],
        heads=heads,
        vocabulary=config["vocab_size"],
        item_bytes=_ITEM_BYTES[norm["dtype"]],
        is_quantized=bool(bits),
    )


def _shape(name: str, entry: Mapping[str, Any], bits: int) -> tuple[int, int] | None:
    """Return inputs and outputs of the linear module that has the weight ``name``; None for what is no such weight."""
    if not name.endswith(".weight") or len(entry["shape"]) != 2:
        return None
    outputs, inputs = entry["shape"]
    return (inputs * 32 // bits if entry["dtype"] == "U32" and bits else inputs), outputs
