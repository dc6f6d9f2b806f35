"""Adapted layers keep nothing that is cheap to compute again, if only adapted products use it: less memory, the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import load_model
from support import peak_of, write_tiny_model

from trainer.config import AdapterConfig
from trainer.data.batch import pack_batch
from trainer.data.tokens import TokenRow
from trainer.model import kernels, substitutes
from trainer.model.lora import attach_adapter
from trainer.model.loss import summed_loss
from trainer.model.network import Network

_RANDOM = np.random.default_rng(0)
BATCH = pack_batch([TokenRow(_RANDOM.integers(3, 250, n).astype(np.int32), np.arange(n) > 5) for n in (90, 70, 40)])


@pytest.fixture(autouse=True)
def plain_functions() -> Iterator[None]:
    """Give mlx_lm's model file its own functions back, which a network with kernels replaces."""
    own = {name: getattr(llama, name) for name in ("swiglu", "scaled_dot_product_attention")}
    yield
    for name, function in own.items():
        setattr(llama, name, function)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=8, intermediate_size=256)


def load(folder: Path, **adapter: Any) -> Network:
    mx.random.seed(0)
    model = load_model(folder)[0]
    attach_adapter(model, AdapterConfig(**{"num_layers": -1, "rank": 2, **adapter}), 0)
    noisy = [(name, value + 0.05 * mx.random.normal(value.shape)) for name, value in tree_flatten(model.trainable_parameters())]
    model.load_weights(noisy, strict=False)
    return Network(model)


def thrifty(network: Network) -> list[str]:
    """Return which modules keep nothing of their output."""
    kinds = (kernels.ThriftyRMSNorm, substitutes.gated(llama.MLP))
    return sorted(name for name, module in network.model.named_modules() if type(module) in kinds)


def gradients(network: Network) -> dict[str, mx.array]:
    loss, found = nn.value_and_grad(network.model, lambda: summed_loss(network, BATCH))()
    mx.eval(loss, found)
    return {"loss": loss, **dict(tree_flatten(found))}


def peak(network: Network) -> int:
    return peak_of(lambda: gradients(network))


def test_less_memory_and_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both norms and the MLP of all layers; the loss and the gradients are those of a network that keeps everything."""
    saving = load(folder)
    parts = ("input_layernorm", "mlp", "post_attention_layernorm")
    assert thrifty(saving) == sorted(f"model.layers.{layer}.{part}" for layer in range(8) for part in parts)
    found, less = gradients(saving), peak(saving)
    monkeypatch.setattr(substitutes, "find_thrifty", lambda _: [])
    keeping = load(folder)
    assert thrifty(keeping) == []
    expected, more = gradients(keeping), peak(keeping)
    assert {name: np.array(value).tobytes() for name, value in found.items()} == {
        name: np.array(value).tobytes() for name, value in expected.items()
    }
    config = saving.model.args
    kept_less = sum(BATCH.lengths) * 8 * (2 * config.hidden_size + config.intermediate_size) * 4
    assert less < more - 0.8 * kept_less


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        (("self_attn.q_proj", "self_attn.v_proj"), []),
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ["input_layernorm"]),
        (("mlp.gate_proj", "mlp.up_proj"), ["post_attention_layernorm"]),
        (("mlp.gate_proj", "mlp.down_proj"), []),
    ],
)
def test_only_what_feeds_adapted_products(folder: Path, keys: tuple[str, ...], parts: list[str]) -> None:
    """What a product without an adapter needs is there; the layers below the adapted ones are as they were."""
    network = load(folder, keys=keys, num_layers=3)
    assert thrifty(network) == [f"model.layers.{layer}.{part}" for layer in (5, 6, 7) for part in parts]
    assert all(np.isfinite(np.array(value)).all() for value in gradients(network).values())


@pytest.mark.parametrize("adapter", [{"dropout": 0.1}, {"kind": "dora"}])
def test_adapters_that_have_no_kernel_keep_all(folder: Path, adapter: dict[str, Any]) -> None:
    """Dropout and DoRA compute as MLX does."""
    network = load(folder, **adapter)
    assert thrifty(network) == []
    assert gradients(network)


def test_a_model_that_uses_it_elsewhere_keeps_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are not enough: a block that adds its normalised input to something is found out by trying."""

    class Block(llama.TransformerBlock):  # type: ignore[misc]
        def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
            normalised = self.input_layernorm(x)
            h = x + normalised + self.self_attn(normalised, mask, cache)
            return h + self.mlp(self.post_attention_layernorm(h))

    monkeypatch.setattr(llama, "TransformerBlock", Block)
    network = load(folder)
    assert thrifty(network) == []
    assert gradients(network)
