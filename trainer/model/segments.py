"""Several samples in one row: where each lies, told to mlx_lm's models by way of the cache that they ask for their mask.

mlx_lm's models call ``cache.make_mask``, ``cache.offset`` and ``cache.update_and_fetch``. A `Segments` answers with a
block-diagonal causal mask, with positions, and with keys and values as they are: no sample attends to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray


class PackedOffset(int):
    """The offset 0, as rotations take it, that also knows where samples lie and the position of every token within its own."""

    spans: tuple[tuple[int, int], ...]
    positions: NDArray[np.int64]


class Segments:
    """The samples of one packed row, by their lengths in order; what is behind the last one is padding of its own."""

    def __init__(self, lengths: Sequence[int], row_length: int) -> None:
        padding = row_length - sum(lengths)
        edges = [0, *accumulate([*lengths, padding] if padding else lengths)]
        self.spans: tuple[tuple[int, int], ...] = tuple(pairwise(edges))
        self.offset = PackedOffset(0)
        self.offset.spans = self.spans
        self.offset.positions = np.concatenate([np.arange(end - start) for start, end in self.spans])
        self._masks: dict[int | None, mx.array] = {}

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None, **_: Any) -> mx.array:
        """Return which position [T, T] may see which: its own sample's earlier ones, at most ``window_size`` of them."""
        assert length == len(self.offset.positions)
        if window_size not in self._masks:
            sample = np.repeat(np.arange(len(self.spans)), [end - start for start, end in self.spans])
            behind = np.arange(length)[:, None] - np.arange(length)[None]
            seen = (sample[:, None] == sample[None]) & (behind >= 0)
            self._masks[window_size] = mx.array(seen & (behind < window_size) if window_size else seen)
        return self._masks[window_size]

    def is_causal(self, mask: Any) -> bool:
        """Whether ``mask`` says no more than that samples are apart and causal: a window as long as they are is none."""
        longest = max(end - start for start, end in self.spans)
        return any(mask is own for size, own in self._masks.items() if size is None or size >= longest)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return keys and values as they are."""
        return keys, values


class PackedRoPE(nn.RoPE):  # type: ignore[misc]
    """Rotary positions that begin at 0 in every sample.

    Attention looks at differences of positions alone, so going on counting would do; but in float32 the rotation of a late
    position is off by as much as its number is large.
    """

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Return ``x`` [B, heads, T, size] rotated."""
        if not isinstance(offset, PackedOffset):
            return cast(mx.array, super().__call__(x, offset))
        return mx.concatenate([super(PackedRoPE, self).__call__(x[..., a:b, :]) for a, b in offset.spans], axis=-2)
