"""The frozen layers below the first adapted one: computed once for each sample, one layer in memory at a time.

What enters the first adapted layer depends on the sample alone, so it is computed for a sample by itself, whatever batch it
is in, and is the same to the bit whenever it is computed. `Trunk.enter` runs many samples through one layer before it reads
the next from disk, so a trunk of any size needs the memory of one layer.

Shapes: T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from trainer.config import AdapterConfig
from trainer.model import substitutes
from trainer.model.lora import count_layers
from trainer.model.network import Skip
from trainer.model.segments import Segments

Load = Callable[[], nn.Module]
_PROBE = np.arange(1, 7, dtype=np.int32)


class Trunk:
    """The lowest ``depth`` layers of the model that ``load`` returns with its weights not yet read."""

    def __init__(self, load: Load, depth: int, *, use_kernels: bool = True) -> None:
        self.depth = depth
        self._load = load
        self._use_kernels = use_kernels

    def enter(
        self, rows: Sequence[NDArray[np.int32]], tick: Callable[[int, int], None] = lambda _done, _total: None
    ) -> list[mx.array]:
        """Return for each row of tokens [T] the hidden state [T, H] that enters layer ``depth``, materialised.

        ``tick`` is told how many of the layers are done.
        """
        model = self._load()
        if self._use_kernels and substitutes.can_install(model):
            substitutes.install(model)
        layers = model.model.layers
        real = list(layers)
        hidden: list[mx.array | None] = [None] * len(rows)
        layers[:] = [_Stop(layer) for layer in real]
        for index in range(self.depth):
            layers[index] = real[index]
            hidden = [_run(model, tokens, before) for tokens, before in zip(rows, hidden, strict=True)]
            layers[index] = Skip(real[index])
            real[index] = layers[index]  # the layer's weights leave memory
            tick(index + 1, self.depth)
        return hidden  # type: ignore[return-value]

    def layers(self) -> list[nn.Module]:
        """Return the layers themselves, to be put back where they were taken out."""
        return list(self._load().model.layers[: self.depth])


def find_depth(model: nn.Module, adapter: AdapterConfig) -> int:
    """Return how many layers lie below the first adapted one."""
    return len(model.layers) - count_layers(adapter, len(model.layers))


def check_split(load: Load, depth: int) -> str:
    """Return why hidden states that enter layer ``depth`` cannot stand for the layers below it; empty if they can.

    Found out by computing both ways, on six tokens, with one layer in memory at a time.
    """
    try:
        whole = _streamed(load())
        [entering] = Trunk(load, depth, use_kernels=False).enter([_PROBE])
        model = load()
        layers = model.model.layers
        layers[:depth] = [Skip(layer) for layer in layers[:depth]]
        layers[0].__dict__["entering"] = entering[None]
        upper = _streamed(model, depth)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
        return f"its layers cannot be run one by one ({type(error).__name__}: {error})"
    if whole.shape != upper.shape or not bool(mx.allclose(whole, upper, rtol=1e-3, atol=1e-3)):
        return "its layers pass more to each other than one hidden state"
    return ""


def _streamed(model: nn.Module, skipped: int = 0) -> mx.array:
    """Return the logits of the probe, each layer's weights dropped once it has run."""
    layers = model.model.layers
    layers[skipped:] = [_Once(layer) for layer in layers[skipped:]]
    logits: mx.array = model(mx.array(_PROBE[None]))
    mx.eval(logits)
    return logits


def _run(model: nn.Module, tokens: NDArray[np.int32], before: mx.array | None) -> mx.array:
    """Run the one layer of ``model`` that is in place, on the hidden state of the layer below it, or on the embedding."""
    first = model.model.layers[0]
    if isinstance(first, Skip):
        first.__dict__["entering"] = None if before is None else before[None]
    segments = Segments([len(tokens)], len(tokens))
    with suppress(_ReachedError):
        model(mx.array(tokens[None]), cache=[segments] * len(model.layers))
    stop = next(layer for layer in model.model.layers if isinstance(layer, _Stop))
    hidden: mx.array = stop.__dict__.pop("found")[0]
    mx.eval(hidden)
    return hidden


class _ReachedError(Exception):
    """The hidden state has come to where it is wanted: the layers above need not run."""


class _Stop(Skip):
    """Keeps what enters the layer that it stands for, and goes no further."""

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        self.__dict__["found"] = hidden
        raise _ReachedError


class _Once(Skip):
    """Runs its layer once and lets go of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.__dict__["layer"] = layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.__dict__.pop("layer")(*args, **kwargs)
        mx.eval(out)
        return out
