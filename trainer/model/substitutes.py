"""Which parts of a model are computed by `trainer.model.kernels`.

mlx_lm's files are not touched: modules get a subclass of their own class, and the two functions that mlx_lm's models import
by name, ``swiglu`` and ``scaled_dot_product_attention``, are replaced in the model's module. On a GPU nothing is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.lora import LoRALinear

from trainer.model.kernels import Attention, FastLoRALinear, FastRMSNorm, FastRoPE, Swiglu, ThriftyRMSNorm

_REPLACED: dict[str, type] = {"swiglu": Swiglu, "scaled_dot_product_attention": Attention}
_FED_BY_NORMS = (
    ("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj")),
    ("post_attention_layernorm", "mlp", ("gate_proj", "up_proj")),
)
_GATED: dict[type, type] = {}


def can_install(model: nn.Module) -> bool:
    """Whether the kernels apply: MLX computes on a CPU, and in float32."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.RMSNorm)]
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return on_cpu and bool(weights) and all(weight.dtype == mx.float32 for weight in weights)


def install(model: nn.Module) -> None:
    """Let ``model`` (float32, on a CPU) compute by these kernels; modules that have none keep their own."""
    for _, module in model.named_modules():
        for kind, fast in ((nn.RMSNorm, FastRMSNorm), (nn.RoPE, FastRoPE), (LoRALinear, FastLoRALinear)):
            if type(module) is kind and _fits(module):
                module.__class__ = fast
    home = sys.modules[type(model).__module__]
    for name, kind in _REPLACED.items():
        original = getattr(home, name, None)
        if original is not None and not isinstance(original, kind):
            setattr(home, name, kind(original))


def _fits(module: nn.Module) -> bool:
    if not isinstance(module, LoRALinear):
        return True
    # a dropout draws from MLX's random numbers: left to MLX. p is 1 - the share that is dropped
    return type(module.linear) is nn.Linear and module.linear.weight.dtype == mx.float32 and module.dropout._p_1 == 1.0


def find_thrifty(layers: Sequence[nn.Module]) -> list[tuple[nn.Module, type]]:
    """Return the norms and MLPs of ``layers`` whose output, or product, need not be kept, each with the class that saves it.

    That is so where only adapted products of ours are fed by it. Names do not tell all of it: who puts the classes in tries
    whether the model still computes the same.
    """
    found: list[tuple[nn.Module, type]] = []
    for layer in layers:
        for norm, part, products in _FED_BY_NORMS:
            fed = getattr(layer, part, None)
            if type(getattr(layer, norm, None)) is FastRMSNorm and _are_ours(fed, products):
                found.append((getattr(layer, norm), ThriftyRMSNorm))
        mlp = getattr(layer, "mlp", None)
        if type(mlp) not in _GATED.values() and _are_ours(mlp, ("gate_proj", "up_proj", "down_proj")):
            found.append((mlp, gated(type(mlp))))
    return found


def _are_ours(module: nn.Module | None, names: tuple[str, ...]) -> bool:
    return all(type(getattr(module, name, None)) is FastLoRALinear for name in names)


def gated(kind: type) -> type:
    """Return a subclass of an MLP's class that keeps nothing of the product of its gate."""

    class Gated(kind):  # type: ignore[misc]
        def __call__(self, x: Any) -> mx.array:
            Swiglu.saves = True
            try:
                return cast(mx.array, kind.__call__(self, x))
            finally:
                Swiglu.saves = False

    Gated.__name__ = Gated.__qualname__ = kind.__name__
    return _GATED.setdefault(kind, Gated)
