"""The loss of a micro-batch, summed over its supervised tokens; only their positions go through the output head.

The head is the model's own: `HeadOnSelected` makes the model's trunk return just the selected hidden states, and the
model then applies its output layer, scaling or soft cap to them as it always does. At a vocabulary of 50,000 and prompts
half as long as answers this saves a quarter of a step (docs/benchmarks.md).

Shapes: B rows, T tokens, S supervised positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trainer.data.batch import Batch


class HeadOnSelected:
    """Computes logits [S, V] at chosen positions of a batch.

    Falls back to all logits for a model whose trunk is not ``model.model`` or does not return its hidden states, which
    is found out by trying once; ``is_selective`` says which.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._positions: mx.array | None = None
        self.is_selective = self._install() and self._agrees()

    def __call__(self, inputs_BT: mx.array, positions_S: mx.array) -> mx.array:
        """Return the logits [S, V] at ``positions_S``, places in the flattened [B * T]."""
        if not self.is_selective:
            logits_BTV: mx.array = self._model(inputs_BT)
            return logits_BTV.reshape(-1, logits_BTV.shape[-1])[positions_S]
        self._positions = positions_S
        try:
            logits_1SV: mx.array = self._model(inputs_BT)
        finally:
            self._positions = None
        return logits_1SV[0]

    def _install(self) -> bool:
        """Give the trunk a subclass of its own class that selects positions while a call of ours is under way."""
        trunk = getattr(self._model, "model", None)
        if not isinstance(trunk, nn.Module):
            return False
        head, kind = self, type(trunk)

        class Selecting(kind):  # type: ignore[misc, valid-type]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                hidden = super().__call__(*args, **kwargs)
                if head._positions is None or not isinstance(hidden, mx.array):
                    return hidden
                return hidden.reshape(-1, hidden.shape[-1])[head._positions][None]

        Selecting.__name__ = Selecting.__qualname__ = kind.__name__
        trunk.__class__ = Selecting
        return True

    def _agrees(self) -> bool:
        """Whether selecting before the head gives what selecting after it gives, on four tokens."""
        inputs, positions = mx.array([[1, 2, 3, 4]]), mx.array([1, 3])
        self.is_selective = True
        try:
            selected = self(inputs, positions)
        except (ValueError, TypeError, AttributeError, IndexError):
            return False
        complete = self._model(inputs)[0][positions]
        return selected.shape == complete.shape and bool(mx.allclose(selected, complete, rtol=2e-2, atol=2e-2))


def summed_loss(head: HeadOnSelected, batch: Batch) -> mx.array:
    """Return the cross-entropy summed over the batch's supervised tokens: a float32 scalar in nats."""
    logits_SV = head(mx.array(batch.inputs_BT), mx.array(batch.positions_S)).astype(mx.float32)
    loss: mx.array = nn.losses.cross_entropy(logits_SV, mx.array(batch.targets_S), reduction="sum")
    return loss
