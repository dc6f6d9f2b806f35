"""A backward pass through one layer at a time: a layer keeps what enters it, and is computed again when its gradient is due.

Gradient checkpointing (Chen et al., 2016) with a checkpoint before every layer. `mx.checkpoint` is not enough for it: what is
evaluated while MLX traces, as `trainer.model.kernels` do, stays in memory until the trace ends. Here a layer computes on
copies that no trace knows, so that its intermediate results are gone as soon as it is done, in the forward pass and again in
the backward pass. The numbers are the same to the bit, for one forward pass more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from trainer.data.batch import Batch
from trainer.errors import InputError
from trainer.model.network import Network

_SEEDS = 2**31 - 1
_TOLERANCE = 2e-2


def install_checked(network: Network) -> None:
    """Let the adapted layers of ``network`` compute by themselves, after trying once, on four tokens.

    Raises `InputError` for a model whose layers pass more to each other than one hidden state: its gradients would be wrong.
    """
    expected = _probe_gradients(network)
    adapted = [layer for layer in network.layers if tree_flatten(layer.trainable_parameters())]
    install(adapted)
    try:
        found = _probe_gradients(network)
        is_same = all(_is_close(found[name], value) for name, value in expected.items())
    except (ValueError, TypeError, AttributeError, RuntimeError):
        is_same = False
    if not is_same:
        raise InputError(
            "train.checkpointing: this model's layers pass more to each other than one hidden state and cannot be computed one "
            "by one; leave it off"
        )


def _probe_gradients(network: Network) -> dict[str, mx.array]:
    """Return the gradients of a sum over the hidden states of four tokens, drawn without dropout."""
    model = network.model
    batch = Batch(np.array([[1, 2, 3, 4]], np.int32), np.arange(4, dtype=np.int32), np.zeros(4, np.int32), 4, is_probe=True)
    read = network.hidden if network.is_selective else network.logits
    dropouts = [(module, module._p_1) for module in model.modules() if isinstance(module, nn.Dropout)]
    was_training = model.training
    model.train()
    for module, _ in dropouts:
        module._p_1 = 1.0
    try:
        gradients = nn.value_and_grad(model, lambda: mx.square(read(batch).astype(mx.float32)).mean())()[1]
        mx.eval(gradients)
    finally:
        for module, share in dropouts:
            module._p_1 = share
        model.train(was_training)
    return dict(tree_flatten(gradients))


def _is_close(one: mx.array, other: mx.array) -> bool:
    return bool(mx.abs(one - other).max() <= _TOLERANCE * mx.abs(other).max() + 1e-9)


def install(layers: Sequence[nn.Module]) -> None:
    """Let each of ``layers`` (hidden state in, hidden state out) compute by itself, forward and backward."""
    for layer in layers:
        layer.__class__ = _alone(type(layer))


def _alone(kind: type) -> type:
    """Return a subclass of a layer's class that computes apart from the trace that it is called in."""

    class Alone(kind):  # type: ignore[misc]
        def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            if not self.training:
                return cast(mx.array, kind.__call__(self, hidden, *args, **kwargs))
            trained = tree_flatten(self.trainable_parameters())
            seed = cast(int, mx.random.randint(0, _SEEDS).item()) if _drops(self) else None

            def run(hidden: mx.array, *values: mx.array) -> mx.array:
                if seed is not None:
                    mx.random.seed(seed)  # the masks must be the same both times
                self.update(tree_unflatten([(name, value) for (name, _), value in zip(trained, values, strict=True)]))
                try:
                    return cast(mx.array, kind.__call__(self, hidden, *args, **kwargs))
                finally:
                    self.update(tree_unflatten(trained))

            @mx.custom_function
            def forward(*inputs: mx.array) -> mx.array:
                return _copy(run(*map(_copy, inputs)))

            @forward.vjp
            def _backward(inputs: Sequence[mx.array], ct: mx.array, _: mx.array) -> list[mx.array]:
                return [_copy(each) for each in mx.vjp(run, [_copy(each) for each in inputs], [_copy(ct)])[1]]

            return cast(mx.array, forward(hidden, *(value for _, value in trained)))

    Alone.__name__ = Alone.__qualname__ = kind.__name__
    return Alone


def _drops(layer: nn.Module) -> bool:
    return any(isinstance(module, nn.Dropout) and module._p_1 < 1 for module in layer.modules())


def _copy(array: mx.array) -> mx.array:
    """Return the same numbers, evaluated, in an array without a past."""
    if array.dtype == mx.bfloat16:  # which NumPy does not know
        return _copy(array.view(mx.uint16)).view(mx.bfloat16)
    mx.eval(array)
    return mx.array(np.array(array, copy=False))
