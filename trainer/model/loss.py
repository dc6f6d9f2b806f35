"""The loss of a micro-batch, summed over its supervised tokens, without ever holding all logits.

The gradient of the cross-entropy with respect to the hidden state is known as soon as the logits are: softmax minus one-hot,
pulled back through the head. So it is computed in the forward pass, chunk by chunk of positions, and the logits are gone
before the next chunk begins: the idea of Wijmans et al., "Cut your losses in large-vocabulary language models" (2025).

Shapes: S supervised positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from trainer.data.batch import Batch
from trainer.model.kernels import view
from trainer.model.network import Network

CHUNK_BYTES = 16 * 2**20  # of float32 logits held at a time
_LEAST_POSITIONS = 16
_BLOCK = 256  # numbers that are added up one after the other
Head = Callable[[mx.array], mx.array]


def summed_loss(network: Network, batch: Batch, *, fused: bool = True, needs_gradient: bool = True) -> mx.array:
    """Return the cross-entropy summed over the batch's supervised tokens: a float32 scalar in nats.

    ``fused`` False takes the plain way, all supervised logits at once, the explanation of the other.
    """
    targets = mx.array(batch.targets_S)
    if not network.is_selective:
        return plain_loss(network.logits(batch), targets)
    hidden = network.hidden(batch)
    if not fused:
        return plain_loss(network.head(hidden), targets)
    return fused_loss(network.head, hidden, batch.targets_S, in_numpy=network.has_kernels, needs_gradient=needs_gradient)


def plain_loss(logits_SV: mx.array, targets_S: mx.array) -> mx.array:
    """Return the summed cross-entropy of logits."""
    logits = _exact(logits_SV)
    return mx.sum(log_sum_exp(logits) - mx.take_along_axis(logits, targets_S[:, None], axis=-1))


def log_sum_exp(logits_SV: mx.array) -> mx.array:
    """Return the logarithm of each row's sum of exponentials [S, 1], block by block of the vocabulary.

    On a CPU MLX adds a row up number after number: over 49152 of them the logarithm is off by 7e-5, in blocks by 1e-6.
    """
    whole = logits_SV.shape[-1] // _BLOCK * _BLOCK
    parts = mx.logsumexp(logits_SV[:, :whole].reshape(logits_SV.shape[0], -1, _BLOCK), axis=-1) if whole else None
    rest = mx.logsumexp(logits_SV[:, whole:], axis=-1, keepdims=True) if whole < logits_SV.shape[-1] else None
    return mx.logsumexp(mx.concatenate([each for each in (parts, rest) if each is not None], axis=-1), axis=-1, keepdims=True)


def fused_loss(
    head: Head,
    hidden_SH: mx.array,
    targets_S: NDArray[np.int32],
    *,
    in_numpy: bool = False,
    needs_gradient: bool = True,
    chunk_bytes: int = CHUNK_BYTES,
) -> mx.array:
    """Return the summed cross-entropy of ``head(hidden_SH)``; differentiable in ``hidden_SH`` alone.

    ``head`` may be any function of MLX [S, H] -> [S, V] whose own weights are frozen: plain, tied, quantised, capped. At most
    ``chunk_bytes`` of logits exist at a time, and their gradients. ``in_numpy`` computes softmax by NumPy, at once, on a CPU.
    """
    one_chunk = _chunk_in_numpy if in_numpy else _chunk_in_mlx

    @mx.custom_function
    def forward(hidden: mx.array) -> tuple[mx.array, mx.array]:
        size = max(_LEAST_POSITIONS, chunk_bytes // (4 * head(hidden[:1]).shape[-1]))
        total = mx.zeros(())
        parts: list[mx.array] = []
        for start in range(0, hidden.shape[0], size):
            part = hidden[start : start + size]
            if parts:
                part = mx.depends(part, parts[-1])  # one chunk's logits at a time
            loss, back = one_chunk(head, part, targets_S[start : start + size], needs_gradient)
            total, parts = total + loss, [*parts, back]
        return total, mx.concatenate(parts)

    @forward.vjp
    def _backward(_: mx.array, cts: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]) -> mx.array:
        return outputs[1] * cts[0]

    loss, _ = cast(tuple[mx.array, mx.array], forward(hidden_SH))
    return loss


def _chunk_in_mlx(head: Head, hidden: mx.array, targets: NDArray[np.int32], needs_gradient: bool) -> tuple[mx.array, mx.array]:
    """Return loss and gradient with respect to ``hidden``, not yet evaluated: a gradient that nobody needs costs nothing."""
    logits = _exact(head(hidden))
    norm = log_sum_exp(logits)
    places = mx.array(targets)[:, None]
    loss = mx.sum(norm - mx.take_along_axis(logits, places, axis=-1))
    if not needs_gradient:
        return loss, hidden
    ones = mx.arange(logits.shape[-1])[None] == places
    return loss, _pull(head, hidden, mx.exp(logits - norm) - ones)


def _chunk_in_numpy(
    head: Head, hidden: mx.array, targets: NDArray[np.int32], needs_gradient: bool
) -> tuple[mx.array, mx.array]:
    """Do the same by NumPy: its exp is many times faster than MLX's on a CPU, and its sums are pairwise, so more exact.

    It takes and returns copies that MLX's trace does not know: what is evaluated within a trace stays in memory as long as
    anything of the trace leads to it, and that would be the logits of all portions together. The logits, which are nobody
    else's, turn into their gradient where they lie.
    """
    hidden = mx.array(view(hidden))
    logits = head(hidden)
    shares = view(logits)
    rows = np.arange(len(targets))
    own = shares[rows, targets]
    top = shares.max(axis=-1, keepdims=True)
    shares -= top
    np.exp(shares, out=shares)
    sums = shares.sum(axis=-1, keepdims=True)
    loss = mx.array(float((np.log(sums) + top - own[:, None]).sum(dtype=np.float64)))
    if not needs_gradient:
        return loss, hidden
    shares /= sums
    shares[rows, targets] -= 1
    return loss, mx.array(view(_pull(head, hidden, logits)))


def _pull(head: Head, hidden: mx.array, gradient_SV: mx.array) -> mx.array:
    """Return the gradient with respect to ``hidden`` of the head's output gradient."""
    _, (back,) = mx.vjp(lambda h: _exact(head(h)), [hidden], [gradient_SV])
    return back


def _exact(logits: mx.array) -> mx.array:
    """Return logits in a type that sums are exact enough in."""
    return logits if logits.dtype == mx.float64 else logits.astype(mx.float32)
