"""Putting trainable adapters on a frozen model, with mlx_lm's own layers so that its tools can read the result."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from trainer.config import AdapterConfig
from trainer.errors import InputError


def attach_adapter(model: nn.Module, config: AdapterConfig, seed: int) -> None:
    """Freeze ``model`` and give its last ``config.num_layers`` layers adapters, initialised from ``seed``.

    The initial values are the same on every rank. The adapter's weights are float32 whatever the model's type.
    Raises `InputError` if the model has fewer layers, or none of the layers in ``config.keys``.
    """
    check_adapter(model, config)
    num_layers = len(model.layers)
    model.freeze()
    mx.random.seed(seed)
    linear_to_lora_layers(model, count_layers(config, num_layers), adapter_parameters(config), use_dora=config.kind == "dora")
    trainable = tree_flatten(model.trainable_parameters())
    model.load_weights([(name, value.astype(mx.float32)) for name, value in trainable], strict=False)


def count_layers(config: AdapterConfig, num_layers: int) -> int:
    """Return how many of ``num_layers`` layers are adapted; -1 in the configuration means all."""
    return num_layers if config.num_layers < 0 else config.num_layers


def adapter_parameters(config: AdapterConfig) -> dict[str, Any]:
    """Return mlx_lm's ``lora_parameters``."""
    parameters: dict[str, Any] = {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}
    return {**parameters, "keys": list(config.keys)} if config.keys else parameters


def check_adapter(model: nn.Module, config: AdapterConfig) -> None:
    """Raise `InputError` if ``model`` has fewer layers than are to be adapted, or none of the layers in ``config.keys``."""
    if config.num_layers > len(model.layers):
        raise InputError(f"adapter.num_layers: {config.num_layers} is more than the model's {len(model.layers)} layers")
    last = model.layers[-1]
    linear = [name for name, module in last.named_modules() if isinstance(module, (nn.Linear, nn.QuantizedLinear))]
    unknown = [key for key in config.keys if key not in linear]
    if unknown:
        raise InputError(f"adapter.keys: the model has no layer {', '.join(unknown)}; it has {', '.join(sorted(linear))}")


def count_numbers(tree: Any) -> int:
    """Return how many numbers the arrays of a tree of parameters hold."""
    return sum(value.size for _, value in tree_flatten(tree))
