"""The tokenizer of a GGUF file as the files that transformers loads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trainer.model.gguf import TEMPLATE, VOCABULARY, Gguf, Hyperparameters, refuse

TOKEN_NORMAL, TOKEN_CONTROL = 1, 3


def write_tokenizer(source: Gguf, hyper: Hyperparameters, folder: Path) -> None:
    """Write the tokenizer's files; see `build_tokenizer` for what it does to a text."""
    build_tokenizer(source).save(str(folder / "tokenizer.json"))
    tokens = source.metadata["tokenizer.ggml.tokens"]
    special = {f"{name}_token": tokens[getattr(hyper, f"{name}_token_id")] for name in ("bos", "eos", "pad", "unk")}
    write_json(folder / "special_tokens_map.json", special)
    config = special | {
        # A class of a model family would put its own splitting rules in the place of tokenizer.json's.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": hyper.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "chat_template": source.metadata[TEMPLATE],
    }
    write_json(folder / "tokenizer_config.json", config)


def build_tokenizer(source: Gguf) -> Tokenizer:
    """Return SmolLM2's tokenizer: digits split one by one, then GPT-2's splitting, then byte-level BPE.

    The vocabulary lacks 21 byte values (six control characters, and bytes that only invalid or unassigned Unicode
    contains); as in the original, such a byte is dropped from a text. `check_vocabulary` must have passed.
    """
    tokens, types, merges = (source.metadata[key] for key in VOCABULARY)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types.tolist(), strict=True) if kind == TOKEN_CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def check_vocabulary(source: Gguf, hyper: Hyperparameters) -> None:
    """Raise `InputError` unless tokens, types, merges and special ids fit each other and the vocabulary's size."""
    tokens, types, merges = (source.metadata[key] for key in VOCABULARY)
    size = hyper.vocab_size
    known, kinds = set(tokens), types.tolist()
    counts = {"tokens": len(tokens), "different tokens": len(known), "token types": len(kinds)}
    problems = [f"{count} {what}, but llama.vocab_size is {size}" for what, count in counts.items() if count != size]
    odd = sorted(set(kinds) - {TOKEN_NORMAL, TOKEN_CONTROL})
    problems += [f"tokens of type {kind}, only {TOKEN_NORMAL} and {TOKEN_CONTROL} are known" for kind in odd]
    wrong = [merge for merge in merges if merge.count(" ") != 1 or merge.replace(" ", "") not in known]
    problems += [f"merge {merge!r} does not join two tokens into one of the vocabulary" for merge in wrong[:10]]
    special = {name: value for name, value in dataclasses.asdict(hyper).items() if name.endswith("_token_id")}
    problems += [f"{name} {value} is outside the vocabulary" for name, value in special.items() if value >= size]
    refuse(source, problems)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as readable JSON with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
