"""Before a launch, on the control machine: fetch the model, check the data against it, and tell where they are."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.nn as nn
from mlx_lm.utils import load

from trainer.data.checked import check_data
from trainer.engine.rows import make_rows
from trainer.errors import InputError
from trainer.events import Events
from trainer.fingerprint import hash_model
from trainer.model.lora import check_adapter
from trainer.model.sources import fetch_model
from trainer.paths import cache_dir
from trainer.recipe import load_config


def prepare(config_path: Path, data: Path, events: Events) -> None:
    """Emit a ``prepared`` event with the model's folder and the fingerprints of model and data.

    Raises `InputError` for a model that cannot be had and for every sample that cannot be learned from.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = load_config(config_path)
    digest = check_data(data, cache_dir(), remembers=True)  # the cheapest check first: nothing is fetched for broken data
    model = fetch_model(config.model, lambda text: events.emit("notice", text=text))
    network = _load(model, config.model.trust_remote_code)
    make_rows(
        data,
        digest,
        model,
        trust_remote_code=config.model.trust_remote_code,
        max_tokens=config.data.max_tokens,
        tick=lambda done, total: events.emit("progress", phase="tokenising", done=done, total=total),
        tell=lambda text: events.emit("notice", text=text),
    )
    check_adapter(network, config.adapter)
    fingerprints = {"model": hash_model(model), "data": digest}
    events.emit("prepared", model=str(model), fingerprints=fingerprints)


def _load(path: Path, trust_remote_code: bool) -> nn.Module:
    """Return the model without reading the weights; raises `InputError` for what mlx_lm cannot load, tokenizer included."""
    settings = {"trust_remote_code": trust_remote_code}
    try:
        model: nn.Module = load(str(path), settings, lazy=True, trust_remote_code=trust_remote_code)[0]
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        raise InputError(f"model.source: {path}: cannot be loaded: {error}") from error
    return model
