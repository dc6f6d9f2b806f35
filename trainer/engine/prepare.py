"""Before a launch, on the control machine: fetch the model, check the data against it, and tell where they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.utils import load

from trainer.data.formats import SPLITS, read_splits
from trainer.data.tokens import tokenize_samples
from trainer.errors import InputError
from trainer.events import Events
from trainer.fingerprint import hash_files, hash_model
from trainer.model.lora import check_adapter
from trainer.model.sources import fetch_model
from trainer.recipe import load_config


def prepare(config_path: Path, data: Path, events: Events) -> None:
    """Emit a ``prepared`` event with the model's folder and the fingerprints of model and data.

    Raises `InputError` for a model that cannot be had and for every sample that cannot be learned from.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = load_config(config_path)
    samples = read_splits(data)  # the cheapest check first: nothing is fetched for broken data
    model = fetch_model(config.model, lambda text: events.emit("notice", text=text))
    network, tokenizer = _load(model, config.model.trust_remote_code)
    for split in SPLITS:
        tokenize_samples(samples[split], tokenizer._tokenizer, config.data.max_tokens)
    check_adapter(network, config.adapter)
    fingerprints = {"model": hash_model(model), "data": hash_files(data, [f"{split}.jsonl" for split in SPLITS])}
    events.emit("prepared", model=str(model), fingerprints=fingerprints)


def _load(path: Path, trust_remote_code: bool) -> tuple[nn.Module, Any]:
    """Return model and tokenizer without reading the weights; raises `InputError` for what mlx_lm cannot load."""
    settings = {"trust_remote_code": trust_remote_code}
    try:
        model, tokenizer = load(str(path), settings, lazy=True, trust_remote_code=trust_remote_code)[:2]
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        raise InputError(f"model.source: {path}: cannot be loaded: {error}") from error
    return model, tokenizer
