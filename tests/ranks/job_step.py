"""Run by mpirun: two optimizer steps of a tiny model on a ragged global batch; rank 0 writes what came out.

The model is one that NumPy can follow: an embedding as trunk and a linear head with LoRA. The rows are the same whatever
the number of ranks; some have no supervised token.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.tuner.lora import LoRALinear

from trainer.comm.group import connect
from trainer.data.assign import assign_rows, split_micro_batches
from trainer.data.batch import make_batch
from trainer.data.tokens import TokenRow
from trainer.engine.step import TrainStep, local_gradients, reduce_gradients, trainable_parameters
from trainer.model.network import Network

VOCABULARY, HIDDEN, RANK, SCALE = 23, 12, 3, 5.0
LENGTHS = (9, 2, 31, 14, 3, 22, 5)  # row 1 and row 4 get no supervised token
SEED = 4
ADAMW = {"learning_rate": 1e-2, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.1, "bias_correction": True}


class Bigram(nn.Module):
    """Predicts the next token from the last one alone: ``logits = (embedding @ W.T) + scale * (embedding @ A) @ B``."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.model = nn.Embedding(VOCABULARY, HIDDEN)
        self.model.weight = mx.array(weights["embedding"])
        self.head = LoRALinear(HIDDEN, VOCABULARY, r=RANK, scale=SCALE)
        self.head.linear.weight = mx.array(weights["head"])
        self.head.lora_a, self.head.lora_b = mx.array(weights["lora_a"]), mx.array(weights["lora_b"])
        self.freeze()
        self.head.unfreeze(keys=["lora_a", "lora_b"], recurse=False)

    def __call__(self, inputs: mx.array) -> mx.array:
        return self.head(self.model(inputs))


def make_weights() -> dict[str, np.ndarray]:
    """Return the model's float32 weights, the same in every process."""
    random = np.random.default_rng(SEED)
    shapes = {
        "embedding": (VOCABULARY, HIDDEN),
        "head": (VOCABULARY, HIDDEN),
        "lora_a": (HIDDEN, RANK),
        "lora_b": (RANK, VOCABULARY),
    }
    return {name: (random.normal(size=shape) * 0.5).astype(np.float32) for name, shape in shapes.items()}


def make_rows() -> list[TokenRow]:
    """Return the global batch: ragged rows, each with another share of supervised tokens."""
    random = np.random.default_rng(SEED + 1)
    rows = []
    for index, length in enumerate(LENGTHS):
        supervised = random.random(length) < 0.2 + 0.1 * index
        supervised &= index not in (1, 4)
        rows.append(TokenRow(random.integers(0, VOCABULARY, length).astype(np.int32), supervised))
    return rows


def main(folder: str, assignment: str) -> None:
    size = int(os.environ["OMPI_COMM_WORLD_SIZE"])
    comm = connect(size)
    rows = make_rows()
    lengths = [len(row) for row in rows]
    own = {
        "balanced": assign_rows(lengths, size)[comm.rank],
        "one rank has all": list(range(len(rows))) if comm.rank == size - 1 else [],
        "one rank has nothing to learn": [1, 4] if comm.rank == 0 and size > 1 else assign_rest(size, comm.rank),
    }[assignment]
    batches = [make_batch([rows[p] for p in group]) for group in split_micro_batches(own, lengths, 2)]
    model = Bigram(make_weights())
    network = Network(model)
    step = TrainStep(network, optim.AdamW(**ADAMW), comm, clip_norm=0.5)
    loss, gradients = local_gradients(network, batches)
    reduced = reduce_gradients(comm, loss, gradients, sum(batch.num_supervised for batch in batches))
    results = [step(batches), step(batches)]
    if comm.rank == 0:
        np.savez(
            Path(folder) / f"{size}-{assignment}.npz",
            **{f"gradient.{name}": np.array(value) for name, value in reduced.gradients},
            **{f"after.{name}": np.array(value) for name, value in trainable_parameters(model)},
            loss=np.array([result.loss for result in results]),
            norm=np.array([result.grad_norm for result in results]),
            tokens=np.array(results[0].num_supervised),
        )


def assign_rest(size: int, rank: int) -> list[int]:
    """Return the rows 0, 2, 3, 5, 6 shared among all ranks but the first (or all of the rows on one rank)."""
    if size == 1:
        return list(range(len(LENGTHS)))
    return [0, 2, 3, 5, 6][rank - 1 :: size - 1]


if __name__ == "__main__":
    main(*sys.argv[1:])
