"""Going backward through one layer at a time: less memory, the same numbers, and refused where it would be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support import peak_of, write_tiny_model

from trainer.config import AdapterConfig
from trainer.data.batch import Batch, pack_batch
from trainer.data.tokens import TokenRow
from trainer.errors import InputError
from trainer.model import layerwise
from trainer.model.lora import attach_adapter
from trainer.model.loss import summed_loss
from trainer.model.network import Network

_RANDOM = np.random.default_rng(0)
BATCH = pack_batch([TokenRow(_RANDOM.integers(3, 250, n).astype(np.int32), np.arange(n) > 5) for n in (90, 70, 40)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=8)


def load(folder: Path, kernels: bool, dropout: float = 0.0) -> Network:
    from mlx_lm.utils import load_model

    model = load_model(folder)[0]
    attach_adapter(model, AdapterConfig(num_layers=-1, rank=2, dropout=dropout), 0)
    noisy = [(name, value + 0.05 * mx.random.normal(value.shape)) for name, value in tree_flatten(model.trainable_parameters())]
    model.load_weights(noisy, strict=False)
    model.train()
    return Network(model, use_kernels=kernels)


def gradients(network: Network, batch: Batch = BATCH) -> dict[str, mx.array]:
    found = nn.value_and_grad(network.model, lambda: summed_loss(network, batch))()[1]
    mx.eval(found)
    return dict(tree_flatten(found))


def peak(network: Network) -> int:
    return peak_of(lambda: gradients(network))


@pytest.mark.parametrize(("kernels", "share"), [(True, 0.4), (False, 0.8)])
def test_less_memory_and_the_same_gradients(folder: Path, kernels: bool, share: float) -> None:
    """With eight layers the peak above the weights falls to a share, and no gradient changes by 1e-5 of the largest."""
    network = load(folder, kernels)
    plain, before = gradients(network), peak(network)
    layerwise.install_checked(network)
    alone, after = gradients(network), peak(network)
    assert after < share * before
    for name, value in plain.items():
        np.testing.assert_allclose(np.array(alone[name]), np.array(value), atol=1e-5 * float(mx.abs(value).max()), rtol=0)


def test_dropouts_masks_are_the_same_both_times(folder: Path) -> None:
    """The gradient is that of the loss that was computed: it foretells how the loss changes along it."""
    network = load(folder, kernels=False, dropout=0.3)
    layerwise.install_checked(network)

    def loss(step: float, along: dict[str, mx.array]) -> float:
        moved = [(name, value + step * along[name]) for name, value in start.items()]
        network.model.load_weights(moved, strict=False)
        mx.random.seed(7)
        return float(summed_loss(network, BATCH).item())

    start = dict(tree_flatten(network.model.trainable_parameters()))
    mx.random.seed(7)
    found = gradients(network)
    size = sum(float(mx.square(value).sum()) for value in found.values())
    step = 1e-4 / size**0.5  # along it the loss is anything but straight
    change = (loss(step, found) - loss(-step, found)) / (2 * step)
    assert change == pytest.approx(size, rel=1e-2)


def test_answers_are_untouched(folder: Path) -> None:
    """Outside of training a layer is what it was, and holds its own weights, none of a trace."""
    network = load(folder, kernels=False)
    inputs = mx.array([[1, 2, 3]])
    network.model.eval()
    before = np.array(network.model(inputs))
    network.model.train()
    layerwise.install_checked(network)
    gradients(network)
    network.model.eval()
    np.testing.assert_array_equal(np.array(network.model(inputs)), before)


class Whispering(nn.Module):
    """Hands something that depends on its weights to the next layer behind the model's back."""

    said: Any = None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        object.__setattr__(self, "use_sliding", False)  # what the model reads of its layers

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        heard = 0 if Whispering.said is None else Whispering.said
        out = self.layer(hidden, *args, **kwargs) + heard
        Whispering.said = out * 0.5
        return out


def test_models_whose_layers_are_not_alone_are_refused(folder: Path) -> None:
    """Where a gradient would take a way that is not seen, nothing is trained."""
    network = load(folder, kernels=False)
    Whispering.said = None
    forward = network.model.model.__class__.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        Whispering.said = None  # a new pass
        return forward(self, *args, **kwargs)

    network.model.model.__class__.__call__ = call
    network.layers[:] = [Whispering(layer) for layer in network.layers]
    with pytest.raises(InputError, match=r"^train\.checkpointing: this model's layers pass more to each other"):
        layerwise.install_checked(network)
    Whispering.said = None
