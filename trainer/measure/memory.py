"""How much memory a rank will take at its peak, from the model's sizes and the lengths of the rows: arithmetic, no MLX.

A rank's memory has three peaks, and the highest counts. *Answering* (where the recipe asks for it) needs all weights and the
keys and values of the replies. *Computing frozen layers* needs the weights above them, one frozen layer at a time, the
embedding once more, and hidden states. *Training* needs the weights from the first adapted layer on (all of them without a
trunk), the adapter, AdamW's two moments, gradients, and what the backward pass keeps of the forward pass:

    for each adapted layer and token      6 H + 4 Q + 3 K + 3 I numbers        with the kernels for a CPU
    for each adapted layer and sample     heads x length^2 numbers             the attention's weights

with H the hidden size, Q and K all queries and keys of a token, I the width of the MLP. Where all products of a layer are
adapted, the kernels compute both norms (2 H) and the gate's product (I) again instead. MLX's own operations keep more
(`_MLX_TOKEN`), attend over the whole packed row, and an adapter on a quantised layer keeps two more of its outputs. Under
``train.checkpointing`` all of it exists for one layer at a time, and H numbers for each
layer. docs/benchmarks.md compares the result with measured peaks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import RunConfig
from trainer.data.assign import assign_rows, split_micro_batches
from trainer.data.order import global_batch_at, steps_per_epoch
from trainer.measure.anatomy import Anatomy

MIB = 1024 * 1024
PROCESS_BYTES = 150 * MIB  # Python, libraries, tokenizer and MPI of a rank; on a GPU they do not count against its limit
_LOGITS_BYTES = 16 * MIB  # of one portion of the loss (trainer.model.loss)
_AHEAD_TOKENS = 4096  # that go through the frozen layers together (trainer.engine.feed)
_REPLIES, _REPLY_STEP = 32, 256  # answered at once; tokens by which mlx_lm lets keys and values grow
_MLX_TOKEN = 1.2  # times what the kernels keep of a token
_MLX_SCORES = 3  # arrays of one layer's scores that exist besides, for a moment
_SLACK = 1.05  # what the allocator cannot give back
_LOOKED_AT = 512  # steps
_AGAIN: tuple[tuple[set[str], Callable[[Anatomy], int]], ...] = (  # products that are fed by it, what is computed again
    ({"q_proj", "k_proj", "v_proj"}, lambda anatomy: anatomy.hidden),
    ({"gate_proj", "up_proj"}, lambda anatomy: anatomy.hidden),
    ({"gate_proj", "up_proj", "down_proj"}, lambda anatomy: anatomy.inner),
)
Way = dict[str, dict[str, Any]]  # settings by section and key


@dataclass(frozen=True)
class Rows:
    """Tokens of each training row, the test rows' number, and the tokens of the longest prompt among them."""

    lengths: NDArray[np.int64]
    num_tests: int
    longest_prompt: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of one rank at its peak, by what takes them. ``batch`` are the tokens of the largest micro-batch's samples."""

    process: int
    weights: int
    adapters: int
    optimizer: int
    activations: int
    caches: int
    phase: str
    batch: tuple[int, ...]

    @property
    def total(self) -> int:
        """All of it."""
        return self.process + self.weights + self.adapters + self.optimizer + self.activations + self.caches


def estimate(anatomy: Anatomy, config: RunConfig, rows: Rows, num_ranks: int, *, on_gpu: bool) -> Footprint:
    """Return what the rank with the largest micro-batch takes."""
    batch = largest_batch(config, rows.lengths, num_ranks)
    numbers = count_adapter(anatomy, config)
    process = 0 if on_gpu else PROCESS_BYTES
    kept: dict[str, Any] = {"adapters": 4 * numbers, "optimizer": 8 * numbers, "process": process, "batch": batch}
    upper = anatomy.outside_bytes + sum(anatomy.layer_bytes[-adapted_layers(anatomy, config) :])
    everything = anatomy.outside_bytes + sum(anatomy.layer_bytes)
    trunk = has_trunk(anatomy, config)
    has_kernels = config.speed.kernels and not on_gpu and anatomy.item_bytes == 4
    found = [
        Footprint(
            **kept,
            weights=upper if trunk else everything,
            activations=_slack(_activations(anatomy, config, batch, has_kernels) + 12 * numbers),
            caches=sum(batch) * anatomy.hidden * anatomy.item_bytes if trunk else 0,
            phase="training",
        )
    ]
    if trunk:
        width = anatomy.hidden * anatomy.item_bytes
        own = anatomy.embedding_bytes + 2 * max(anatomy.layer_bytes)
        longest = int(rows.lengths.max())
        activations = _slack(longest * _token_numbers(anatomy) * anatomy.item_bytes)
        ahead = 2 * max(_AHEAD_TOKENS, longest) * width
        phase = "computing frozen layers"
        found.append(Footprint(**kept, weights=upper + own, activations=activations, caches=ahead, phase=phase))
    if config.style.demo_prompts or config.style.markers:
        tokens = -(-(rows.longest_prompt + config.style.max_reply_tokens) // _REPLY_STEP) * _REPLY_STEP
        replies = min(_REPLIES, -(-rows.num_tests // num_ranks)) if config.style.markers else 1
        caches = replies * tokens * anatomy.num_layers * 2 * anatomy.keys * anatomy.item_bytes
        activations = _slack(replies * anatomy.vocabulary * 4 * 2)
        found.append(Footprint(**kept, weights=everything, activations=activations, caches=caches, phase="answering"))
    return max(found, key=lambda each: each.total)


def adapted_layers(anatomy: Anatomy, config: RunConfig) -> int:
    """Return how many layers are adapted; -1 in the configuration means all."""
    return anatomy.num_layers if config.adapter.num_layers < 0 else config.adapter.num_layers


def has_trunk(anatomy: Anatomy, config: RunConfig) -> bool:
    """Whether the layers below the first adapted one leave memory."""
    return config.speed.trunk_cache and adapted_layers(anatomy, config) < anatomy.num_layers


def count_adapter(anatomy: Anatomy, config: RunConfig) -> int:
    """Return the numbers that are trained."""
    shapes = _adapted(anatomy, config)
    magnitudes = sum(outputs for _, outputs in shapes) if config.adapter.kind == "dora" else 0
    return adapted_layers(anatomy, config) * (config.adapter.rank * sum(map(sum, shapes)) + magnitudes)


def _adapted(anatomy: Anatomy, config: RunConfig) -> list[tuple[int, int]]:
    """Return the inputs and outputs of the linear modules of a layer that get adapters."""
    keys = config.adapter.keys or tuple(anatomy.linear)
    return [anatomy.linear[key] for key in keys if key in anatomy.linear]


def largest_batch(config: RunConfig, lengths: NDArray[np.int64], num_ranks: int) -> tuple[int, ...]:
    """Return the samples' tokens of the micro-batch that is the heaviest for any rank, the last token of a row left out.

    The order of samples is known before the run: the first `_LOOKED_AT` steps are dealt out as the ranks will, and the step
    that has the longest row.
    """
    train, count = config.train, len(lengths)
    total = train.steps or train.epochs * steps_per_epoch(count, train.global_batch)
    steps = [*range(min(total, _LOOKED_AT))]
    if total > _LOOKED_AT:
        longest = int(np.argmax(lengths))
        last = min(total, steps_per_epoch(count, train.global_batch))
        steps += [s for s in range(_LOOKED_AT, last) if longest in global_batch_at(s, count, train.global_batch, train.seed)]
    heaviest: tuple[int, ...] = ()
    for step in steps:
        own = [int(lengths[row]) for row in global_batch_at(step, count, train.global_batch, train.seed)]
        for share in assign_rows(own, num_ranks):
            for group in split_micro_batches(share, own, train.micro_batch):
                found = tuple(own[position] - 1 for position in group)
                found = found if config.speed.packing else (found[0],) * len(found)  # the longest comes first
                heaviest = max(heaviest, found, key=sum)
    return heaviest


def _activations(anatomy: Anatomy, config: RunConfig, batch: Sequence[int], has_kernels: bool) -> int:
    """Return the bytes that exist at once between the forward pass and the gradients."""
    tokens, layers = sum(batch), adapted_layers(anatomy, config)
    squares = tokens**2 if config.speed.packing and not has_kernels else sum(length**2 for length in batch)
    per_token = _token_numbers(anatomy) * (1.0 if has_kernels else _MLX_TOKEN)
    per_token -= _computed_again(anatomy, config) if has_kernels else 0
    if anatomy.is_quantized:
        per_token += 2 * sum(outputs for _, outputs in _adapted(anatomy, config))
    scores = squares * anatomy.heads
    layer = tokens * per_token + scores
    if config.train.checkpointing:
        numbers = 2 * layer + layers * tokens * anatomy.hidden
    else:
        pulled = 4 * anatomy.hidden * tokens  # what the backward pass adds to each layer
        numbers = layers * (layer + pulled)
    numbers += 0 if has_kernels else _MLX_SCORES * scores
    item = anatomy.item_bytes
    return int(numbers * item) + _loss_bytes(anatomy, config, tokens, has_kernels)


def _token_numbers(anatomy: Anatomy) -> int:
    """Return the numbers that a layer keeps of a token for its gradient, with the kernels."""
    return 6 * anatomy.hidden + 4 * anatomy.queries + 3 * anatomy.keys + 3 * anatomy.inner


def _computed_again(anatomy: Anatomy, config: RunConfig) -> int:
    """Return the numbers of these that need not be kept: see `trainer.model.substitutes.find_thrifty`."""
    if config.adapter.kind != "lora" or config.adapter.dropout or anatomy.is_quantized:
        return 0
    adapted = {key.rpartition(".")[2] for key in config.adapter.keys or anatomy.linear if key in anatomy.linear}
    return sum(size(anatomy) for products, size in _AGAIN if products <= adapted)


def _loss_bytes(anatomy: Anatomy, config: RunConfig, tokens: int, has_kernels: bool) -> int:
    logits = tokens * anatomy.vocabulary * 4
    return min(logits, _LOGITS_BYTES) * (2 if has_kernels else 4) if config.speed.fused_loss else 3 * logits


def _slack(size: float) -> int:
    return int(size * _SLACK)


def suggest(anatomy: Anatomy, config: RunConfig) -> list[tuple[tuple[str, ...], RunConfig]]:
    """Return settings that take less memory, those first that change least: overrides, and the configuration with them."""
    ways: list[Way] = []
    halves = [config.train.micro_batch >> n for n in range(1, config.train.micro_batch.bit_length())]
    micro: Way = {"train": {"micro_batch": 1}} if config.train.micro_batch > 1 else {}
    ways += [{"train": {"micro_batch": half}} for half in halves]
    speed: dict[str, Any] = {key: True for key in ("packing", "fused_loss", "trunk_cache") if not getattr(config.speed, key)}
    if speed:
        ways += [{"speed": speed}, {**micro, "speed": speed}]
    lean: Way = {"train": {**micro.get("train", {}), "checkpointing": True}, **({"speed": speed} if speed else {})}
    if not config.train.checkpointing:
        ways += [{"train": {"checkpointing": True}}, lean]
    for layers in (16, 8, 4, 2, 1):
        if layers < adapted_layers(anatomy, config):
            ways += [{"adapter": {"num_layers": layers}}, {**lean, "adapter": {"num_layers": layers}}]
    return [(_overrides(way), _with(config, way)) for way in ways]


def _overrides(way: Way) -> tuple[str, ...]:
    return tuple(f"{section}.{key}={str(value).lower()}" for section, keys in way.items() for key, value in keys.items())


def _with(config: RunConfig, way: Way) -> RunConfig:
    sections = {name: dataclasses.replace(getattr(config, name), **keys) for name, keys in way.items()}
    return dataclasses.replace(config, **sections)
