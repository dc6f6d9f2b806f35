"""The elementwise parts of a transformer in NumPy, for MLX on a CPU, each with its gradient written out.

MLX's CPU kernels on x86 compute ``exp`` one number at a time (12 ns each; NumPy's takes 1) and build a norm or a rotation of
six passes that all stay in memory until the gradient is known. The pieces here compute the same, to float rounding, and keep
only what their gradient needs. `trainer.model.substitutes` puts them into a model.

Shapes: B rows, H heads, G key-value heads, T tokens, D head size; x [..., N] for what treats positions alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.lora import LoRALinear
from numpy.typing import NDArray

from trainer.model.pending import Floats, Pending, ghost_like
from trainer.model.segments import PackedOffset, Segments


def view(array: mx.array) -> Floats:
    """Return the numbers of ``array`` where they lie; not to be written to."""
    mx.eval(array)
    return np.array(array, copy=False)


class FastRMSNorm(nn.RMSNorm):  # type: ignore[misc]
    """``x / rms(x) * weight`` (Zhang and Sennrich, 2019); keeps one number a position for the gradient."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return the normalised ``x``; the weight is frozen."""
        return cast(mx.array, self._run(x, lambda: mx.array(self._normalise(x))))

    def _normalise(self, x: mx.array) -> Floats:
        numbers = view(x)
        return np.asarray(numbers * _inverse_rms(numbers, self.eps) * view(self.weight))

    def _run(self, x: mx.array, result: Callable[[], mx.array]) -> Any:
        """Return ``result`` as what has come of ``x``, with its gradient."""
        weight, eps = view(self.weight), self.eps

        @mx.custom_function
        def forward(_: mx.array) -> mx.array:
            return result()

        @forward.vjp
        def _backward(x: mx.array, ct: mx.array, _: mx.array) -> mx.array:
            numbers = view(x)
            inverse = _inverse_rms(numbers, eps)
            pulled = view(ct) * weight
            along = np.einsum("...n,...n->...", pulled, numbers)[..., None] * inverse**2 / numbers.shape[-1]
            pulled -= numbers * along
            pulled *= inverse
            return mx.array(pulled)

        return forward(x)


class ThriftyRMSNorm(FastRMSNorm):
    """The same, but its output is computed where it is needed and kept nowhere."""

    def __call__(self, x: mx.array) -> Pending:  # type: ignore[override]
        """Return what stands for the normalised ``x``."""
        return Pending(self._run(x, lambda: ghost_like(x)), lambda: self._normalise(x))


def _inverse_rms(x: Floats, eps: float) -> Floats:
    mean = np.einsum("...n,...n->...", x, x)[..., None] / np.float32(x.shape[-1])
    return np.asarray(1.0 / np.sqrt(mean + np.float32(eps)), dtype=np.float32)


class FastRoPE(nn.RoPE):  # type: ignore[misc]
    """Rotary positions (Su et al., 2021); in a packed row every sample begins at position 0."""

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Return ``x`` [B, H, T, D] with pairs of its last dimension rotated by position times frequency."""
        if isinstance(offset, mx.array):
            return cast(mx.array, super().__call__(x, offset))
        length = x.shape[-2]
        positions = offset.positions if isinstance(offset, PackedOffset) else np.arange(offset, offset + length)
        cos, sin = _rotation(positions, self.dims, self.base, self.scale)
        rotate = _rotate_pairs if self.traditional else _rotate_halves

        @mx.custom_function
        def forward(x: mx.array) -> mx.array:
            return mx.array(rotate(view(x), cos, sin))

        @forward.vjp
        def _backward(_: mx.array, ct: mx.array, __: mx.array) -> mx.array:
            return mx.array(rotate(view(ct), cos, -sin))

        return cast(mx.array, forward(x))


def _rotation(positions: NDArray[np.int64], dims: int, base: float, scale: float) -> tuple[Floats, Floats]:
    """Return cosine and sine [T, dims / 2] of angles that are rounded to float32 as MLX rounds them."""
    half = dims // 2
    steps = np.arange(half, dtype=np.float32) * np.float32(-np.log(base) / half)
    angles = np.outer((positions * scale).astype(np.float32), np.exp(steps))
    return np.cos(angles), np.sin(angles)


def _rotate_halves(x: Floats, cos: Floats, sin: Floats) -> Floats:
    half = cos.shape[-1]
    out = np.array(x, order="C")
    one, two = x[..., :half], x[..., half : 2 * half]
    out[..., :half] = one * cos - two * sin
    out[..., half : 2 * half] = one * sin + two * cos
    return out


def _rotate_pairs(x: Floats, cos: Floats, sin: Floats) -> Floats:
    dims = 2 * cos.shape[-1]
    out = np.array(x, order="C")
    one, two = x[..., 0:dims:2], x[..., 1:dims:2]
    out[..., 0:dims:2] = one * cos - two * sin
    out[..., 1:dims:2] = one * sin + two * cos
    return out


class FastLoRALinear(LoRALinear):  # type: ignore[misc]
    """``x W^T + bias + scale (x A) B`` in one piece (Hu et al., 2021): no passes over the sum, nothing of it kept."""

    def __call__(self, x: mx.array | Pending) -> mx.array:
        """Return the layer's output; gradients go to ``x``, ``lora_a`` and ``lora_b``, the rest is frozen."""
        read, x = (_reader(x), x.ghost) if isinstance(x, Pending) else (view, x)
        weight, scale = view(self.linear.weight), np.float32(self.scale)
        bias = view(self.linear.bias) if "bias" in self.linear else None

        @mx.custom_function
        def forward(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
            flat = read(x).reshape(-1, x.shape[-1])
            out = flat @ weight.T
            out += ((flat @ view(a)) * scale) @ view(b)
            if bias is not None:
                out += bias
            return mx.array(out.reshape(*x.shape[:-1], out.shape[-1]))

        @forward.vjp
        def _backward(primals: tuple[mx.array, ...], ct: mx.array, _: mx.array) -> tuple[mx.array, ...]:
            x, a, b = read(primals[0]), view(primals[1]), view(primals[2])
            flat, pulled = x.reshape(-1, x.shape[-1]), view(ct).reshape(-1, ct.shape[-1])
            low = (pulled @ b.T) * scale
            back = pulled @ weight
            back += low @ a.T
            return mx.array(back.reshape(x.shape)), mx.array(flat.T @ low), mx.array(((flat @ a) * scale).T @ pulled)

        return cast(mx.array, forward(x, self.lora_a, self.lora_b))


def _reader(pending: Pending) -> Callable[[mx.array], Floats]:
    """Return what reads the numbers that a ghost stands for."""
    return lambda _: pending.numbers()


class Swiglu:
    """``silu(gate) * x`` (Shazeer, 2020); numbers of another type than float32 go to mlx_lm's own function.

    While ``saves`` is set, what feeds a product of ours, the result is kept nowhere.
    """

    saves = False

    def __init__(self, original: Callable[..., mx.array]) -> None:
        self._original = original

    def __call__(self, gate: mx.array, x: mx.array) -> mx.array | Pending:
        """Return the product, of the shape of both."""
        if gate.dtype != mx.float32:
            return self._original(gate, x)
        if Swiglu.saves:
            return Pending(cast(mx.array, _swiglu_ghost(gate, x)), lambda: _gate(gate, x))
        return cast(mx.array, _swiglu(gate, x))


def _gate(gate: mx.array, x: mx.array) -> Floats:
    numbers = view(gate)
    with np.errstate(over="ignore"):
        out = np.exp(-numbers)
    out += 1
    np.divide(numbers, out, out=out)
    out *= view(x)
    return out


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    return mx.array(_gate(gate, x))


@mx.custom_function
def _swiglu_ghost(gate: mx.array, _: mx.array) -> mx.array:
    return ghost_like(gate)


def _swiglu_vjp(primals: tuple[mx.array, mx.array], ct: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    gate, x, pulled = view(primals[0]), view(primals[1]), view(ct)
    with np.errstate(over="ignore"):
        sigmoid = np.exp(-gate)
    sigmoid += 1
    np.reciprocal(sigmoid, out=sigmoid)
    silu = gate * sigmoid
    slope = sigmoid + silu * (1 - sigmoid)
    slope *= x
    slope *= pulled
    silu *= pulled
    return mx.array(slope), mx.array(silu)


_swiglu.vjp(_swiglu_vjp)
_swiglu_ghost.vjp(_swiglu_vjp)


class Attention:
    """Causal attention within each sample of a packed row; what has no `Segments` goes to mlx_lm's own function."""

    def __init__(self, original: Callable[..., mx.array]) -> None:
        self._original = original

    def __call__(
        self, queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, **rest: Any
    ) -> mx.array:
        """Return softmax(scale q k^T) v for queries [1, H, T, D] and keys, values [1, G, T, D], each head with its group's."""
        is_plain = queries.dtype == mx.float32 and all(value is None for value in rest.values())
        if not (is_plain and isinstance(cache, Segments) and cache.is_causal(mask)):
            return self._original(queries, keys, values, cache=cache, scale=scale, mask=mask, **rest)
        return _attend(queries, keys, values, cache.spans, np.float32(scale))


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, spans: tuple[tuple[int, int], ...], scale: np.float32
) -> mx.array:
    kept: list[Floats] = []  # the attention's weights of each sample, for the gradient

    @mx.custom_function
    def forward(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        (q, k, v), groups = (view(each)[0] for each in (queries, keys, values)), keys.shape[1]
        out = np.empty(queries.shape[1:-1] + values.shape[-1:], np.float32)
        for start, end in spans:
            weights = _weights(_grouped(q[:, start:end], groups) * scale, k[:, start:end])
            out[:, start:end] = (weights @ v[:, start:end]).reshape(len(q), end - start, -1)
            kept.append(weights)
        return mx.array(out[None])

    @forward.vjp
    def _backward(primals: tuple[mx.array, ...], ct: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        (q, k, v), pulled = (view(each)[0] for each in primals), view(ct)[0]
        back_q, back_k, back_v = (np.empty(each.shape, np.float32) for each in (q, k, v))
        for (start, end), weights in zip(spans, kept, strict=True):
            at = slice(start, end)
            pull, mine = _grouped(pulled[:, at], len(k)), _grouped(q[:, at], len(k))
            back_v[:, at] = weights.swapaxes(1, 2) @ pull
            score = pull @ v[:, at].swapaxes(1, 2)
            score -= np.einsum("gij,gij->gi", score, weights)[..., None]
            score *= weights
            score *= scale
            back_q[:, at] = (score @ k[:, at]).reshape(len(q), end - start, -1)
            back_k[:, at] = score.swapaxes(1, 2) @ mine
        kept.clear()
        return mx.array(back_q[None]), mx.array(back_k[None]), mx.array(back_v[None])

    return cast(mx.array, forward(queries, keys, values))


def _grouped(x: Floats, groups: int) -> Floats:
    """Return [H, T, D] as [G, H / G * T, D]: the heads of a group below each other."""
    heads, length, size = x.shape
    return x.reshape(groups, heads // groups * length, size)


@functools.lru_cache(maxsize=64)
def _later(length: int) -> Floats:
    """Return [T, T]: minus infinity where a position would see a later one, else 0."""
    return np.triu(np.full((length, length), -np.inf, np.float32), 1)


def _weights(queries: Floats, keys: Floats) -> Floats:
    """Return the softmax of causal scores [G, H / G * T, T]."""
    scores = queries @ keys.swapaxes(1, 2)
    length = keys.shape[1]
    blocks = scores.reshape(-1, length, length)
    blocks += _later(length)
    blocks -= blocks.max(axis=-1, keepdims=True)
    np.exp(blocks, out=blocks)
    blocks /= blocks.sum(axis=-1, keepdims=True)
    return scores
