"""Adapters on disk, in mlx_lm's format: ``adapters.safetensors`` and ``adapter_config.json``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trainer.cluster.plan import RunPlan
from trainer.engine.checkpoint import to_safetensors
from trainer.engine.step import trainable_parameters
from trainer.errors import InputError
from trainer.model.lora import adapter_parameters, count_layers

WEIGHTS = "adapters.safetensors"
SETTINGS = "adapter_config.json"


def save_adapter(model: nn.Module, plan: RunPlan, folder: Path) -> None:
    """Write the adapter of ``model`` into ``folder``, whole or not at all; an older one there is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (scratch / WEIGHTS).write_bytes(adapter_bytes(model))
        settings = json.dumps(describe_adapter(plan, len(model.layers)), indent=2) + "\n"
        (scratch / SETTINGS).write_text(settings, "utf-8")
        scratch.chmod(0o755)
        _swap(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def adapter_bytes(model: nn.Module) -> bytes:
    """Return what is written to the adapter's file. MLX's own writer says nothing of a full disk."""
    return b"".join(to_safetensors(dict(trainable_parameters(model))))


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Put the weights saved in ``folder`` into the adapter layers of ``model``; raises `InputError` if they are another's."""
    weights = mx.load(str(folder / WEIGHTS))
    assert isinstance(weights, dict)
    expected = {name: value.shape for name, value in trainable_parameters(model)}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise InputError(f"{folder}: holds the adapter of another model or configuration")
    model.load_weights(list(weights.items()), strict=False)
    mx.eval(model.trainable_parameters())  # mx.load is lazy: read before anyone replaces the file


def describe_adapter(plan: RunPlan, num_layers: int) -> dict[str, Any]:
    """Return what mlx_lm needs to rebuild the adapter's layers, and which model they belong to."""
    adapter = plan.config.adapter
    return {
        "fine_tune_type": adapter.kind,
        "lora_parameters": adapter_parameters(adapter),
        "model": str(plan.model_path),
        "num_layers": count_layers(adapter, num_layers),
    }


def _swap(new: Path, folder: Path) -> None:
    """Move ``new`` to ``folder``, or only its weights into it: the settings stay the same during a run.

    Either is one rename, so that a reader finds the old weights or the new ones, never half of them.
    """
    if folder.exists():
        os.replace(new / WEIGHTS, folder / WEIGHTS)
    else:
        os.rename(new, folder)
