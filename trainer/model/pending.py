"""Numbers that a model's next piece needs and nobody keeps: computed when they are asked for, and again for gradients.

What is evaluated while MLX traces stays in memory until the trace ends. So the output of a cheap piece (a norm, a gate) that
only feeds products is not given to MLX at all. What MLX sees in its place is a ghost: an array of the same shape without
memory of its own, by which gradients travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Pending:
    """Stands for an array of ``ghost``'s shape whose numbers ``compute`` returns. Of all of them, the latest are remembered."""

    _latest: ClassVar[tuple[Pending | None, Floats]] = (None, np.zeros(0, np.float32))

    def __init__(self, ghost: mx.array, compute: Callable[[], Floats]) -> None:
        self.ghost = ghost
        self._compute = compute

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that this stands for."""
        return tuple(self.ghost.shape)

    def numbers(self) -> Floats:
        """Return the array; not to be written to."""
        owner, numbers = Pending._latest
        if owner is not self:
            numbers = self._compute()
            Pending._latest = (self, numbers)
        return numbers


def ghost_like(array: mx.array) -> mx.array:
    """Return zeros of the shape of ``array`` that take no memory."""
    return mx.broadcast_to(mx.zeros((), array.dtype), array.shape)
