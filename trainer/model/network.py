"""A model taken apart before its output head and before its first adapted layer, without touching mlx_lm's files.

The trunk (``model.model``) gets a subclass of its own class. While a call of ours is under way it hands out the hidden states
at chosen positions, or lets hidden states of ours pass to the head; the head, its scaling and soft caps stay the model's own
code. Layers below the first adapted one can be replaced by `Skip`, which lets hidden states pass that were computed before.

Shapes: B rows, T tokens, S supervised positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from trainer.data.batch import Batch, pack_batch
from trainer.data.tokens import TokenRow
from trainer.model import substitutes
from trainer.model.segments import PackedRoPE, Segments

_TOLERANCE = 2e-2
Handle = Callable[[Callable[[], Any]], Any]


class Skip(nn.Module):  # type: ignore[misc]
    """Stands for a frozen layer whose output is known: the first one lets ``entering`` pass on, the others what they get."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():  # what a model reads of its layers, such as use_sliding
            object.__setattr__(self, name, value)
        self.__dict__["entering"] = None

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        """Return the hidden states that enter the next layer."""
        entering: mx.array | None = self.__dict__["entering"]
        return hidden if entering is None else entering


class Network:
    """A model with its adapter. ``is_selective``: only supervised positions go through the head; ``is_packable``: several
    samples may share a row. Both are found out by trying once; a model that does not fit computes all logits, padded rows.
    """

    def __init__(self, model: nn.Module, *, skipped: int = 0, packing: bool = True, use_kernels: bool = True) -> None:
        """Take ``model`` without its lowest ``skipped`` layers, whose weights are not even read if they are lazy."""
        self.model = model
        if skipped:
            self.shed(skipped)
        self._handle: Handle | None = None
        self.has_kernels = use_kernels and substitutes.can_install(model)
        if self.has_kernels:
            substitutes.install(model)
        self.is_selective = self._install() and self._selects()
        self.is_packable = packing and self.is_selective and self._packs()
        if self.has_kernels and self.is_selective:
            self._save_memory()

    def hidden(self, batch: Batch) -> mx.array:
        """Return the hidden states [S, H] that the head gets at the batch's supervised positions."""
        found: list[mx.array] = []

        def capture(run: Callable[[], Any]) -> mx.array:
            hidden: mx.array = run()
            found.append(hidden.reshape(-1, hidden.shape[-1])[mx.array(batch.positions_S)])
            return hidden[:, :1]  # the head's share is never evaluated

        with self._handling(capture), self._entering(batch):
            self._forward(batch)
        return found[0]

    def head(self, hidden_SH: mx.array) -> mx.array:
        """Return the logits [S, V] of hidden states as `hidden` returns them."""
        with self._handling(lambda _: hidden_SH[None]):
            logits: mx.array = self.model(mx.zeros((1, 1), mx.int32))
        return logits.squeeze(0)  # by index, the gradient would be copied into as many zeros

    def logits(self, batch: Batch) -> mx.array:
        """Return the logits [S, V] at the batch's supervised positions by way of all logits: what any model can do."""
        with self._entering(batch):
            logits = self._forward(batch)
        return logits.reshape(-1, logits.shape[-1])[mx.array(batch.positions_S)]

    @property
    def layers(self) -> list[nn.Module]:
        """The trunk's layers, to be replaced in place."""
        layers: list[nn.Module] = self.model.model.layers
        return layers

    def shed(self, depth: int) -> None:
        """Take the lowest ``depth`` layers out of memory; batches then bring the hidden states that enter the next one."""
        self.layers[:depth] = [Skip(layer) for layer in self.layers[:depth]]

    def restore(self, layers: list[nn.Module]) -> None:
        """Put ``layers`` back where `shed` took them out."""
        self.layers[: len(layers)] = layers

    def _forward(self, batch: Batch) -> mx.array:
        inputs_BT = mx.array(batch.inputs_BT)
        if not batch.lengths:
            return self.model(inputs_BT)  # type: ignore[no-any-return]
        segments = Segments(batch.lengths, batch.inputs_BT.shape[1])
        return self.model(inputs_BT, cache=[segments] * len(self.layers))  # type: ignore[no-any-return]

    @contextmanager
    def _handling(self, handle: Handle) -> Iterator[None]:
        self._handle = handle
        try:
            yield
        finally:
            self._handle = None

    @contextmanager
    def _entering(self, batch: Batch) -> Iterator[None]:
        """Let the batch's own hidden states, if it has any, enter the first layer that is not skipped."""
        first = self.layers[0] if self.is_selective else None
        if batch.entering is None:
            assert not isinstance(first, Skip) or self._handle is None or batch.is_probe
            yield
            return
        assert isinstance(first, Skip)
        entering = mx.array(batch.entering)
        first.__dict__["entering"] = entering.view(mx.bfloat16) if entering.dtype == mx.uint16 else entering
        try:
            yield
        finally:
            first.__dict__["entering"] = None

    def _install(self) -> bool:
        """Give the trunk a subclass of its own class that asks us while a call of ours is under way."""
        trunk = getattr(self.model, "model", None)
        if not isinstance(trunk, nn.Module):
            return False
        network, kind = self, type(trunk)

        class Handled(kind):  # type: ignore[misc, valid-type]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                def run() -> Any:
                    return kind.__call__(self, *args, **kwargs)

                return run() if network._handle is None else network._handle(run)

        Handled.__name__ = Handled.__qualname__ = kind.__name__
        trunk.__class__ = Handled
        return True

    def _selects(self) -> bool:
        """Whether selecting before the head gives what selecting after it gives, on four tokens."""
        batch = _probe()
        self.is_selective = True
        try:
            return _is_close(self.head(self.hidden(batch)), self.logits(batch))
        except (ValueError, TypeError, AttributeError, IndexError, KeyError):
            return False

    def _save_memory(self) -> None:
        """Let adapted layers keep nothing that is cheap to compute again, if the model then gives what it gave before."""
        thrifty = substitutes.find_thrifty(self.layers)
        batch = _probe()
        before, classes = self.hidden(batch), [type(module) for module, _ in thrifty]
        for module, kind in thrifty:
            module.__class__ = kind
        try:
            is_same = _is_close(self.hidden(batch), before)
        except (ValueError, TypeError, AttributeError, IndexError, KeyError):
            is_same = False
        if not is_same:
            for (module, _), kind in zip(thrifty, classes, strict=True):
                module.__class__ = kind

    def _packs(self) -> bool:
        """Whether two samples in one row give what each gives alone."""
        for _, module in self.model.named_modules():
            if type(module) is nn.RoPE:
                module.__class__ = PackedRoPE
        rows = [TokenRow(np.array(tokens, np.int32), np.ones(len(tokens), np.bool_)) for tokens in ([1, 2, 3, 4, 5], [5, 3, 1])]
        try:
            packed = self.hidden(pack_batch(rows, is_probe=True))
            alone = [self.hidden(pack_batch([row], is_probe=True)) for row in rows]
            return _is_close(packed, mx.concatenate(alone))
        except (ValueError, TypeError, AttributeError, IndexError, KeyError):
            return False


def _probe() -> Batch:
    """Return four tokens to try a model with, two of them learned from."""
    return Batch(np.array([[1, 2, 3, 4]], np.int32), np.array([1, 3], np.int32), np.array([0, 0], np.int32), 4, is_probe=True)


def _is_close(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and bool(mx.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE))
