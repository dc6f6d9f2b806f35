"""Run by mpirun in place of ``python -m trainer``: the same command with one thing broken on rank 1.

The environment's ``BROKEN`` says what. Only the fault is ours; everything that follows is the trainer's own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from trainer import cli
from trainer.data.tokens import RowMaker, TokenRow
from trainer.engine import loop, outset, rows
from trainer.engine import step as step_module

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])
BROKEN = os.environ["BROKEN"]


def raise_at_step_two(step: Any, *args: Any) -> Any:
    raise_at_step_two.calls += 1
    if raise_at_step_two.calls == 2:
        raise RuntimeError("the disk is on fire")
    return raise_at_step_two.real(step, *args)


def break_something() -> None:
    if BROKEN == "raises":
        raise_at_step_two.calls = 0
        raise_at_step_two.real = loop.TrainStep.__call__
        loop.TrainStep.__call__ = raise_at_step_two
    elif BROKEN == "exits":
        loop.TrainStep.__call__ = lambda *_: sys.exit(1)
    elif BROKEN == "is killed":
        loop.TrainStep.__call__ = lambda *_: os.kill(os.getpid(), 9)
    elif BROKEN == "has other data":
        real = outset.hash_files
        outset.hash_files = lambda *args: "0" * len(real(*args))
    elif BROKEN == "tokenises otherwise":
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = "0"  # as the first rank of another host, with a cache of its own
        rows.cache_dir = lambda: Path(os.environ["OTHER_CACHE"])
        outset.HOST_LOCK = ".lock-of-the-other-host"
        real_make = RowMaker.make
        RowMaker.make = lambda self, samples: [TokenRow(row.tokens[::-1], row.supervised) for row in real_make(self, samples)]
    elif BROKEN == "has another mlx":
        real_software = outset.describe_software
        outset.describe_software = lambda: {**real_software(), "mlx": "0.31.0"}
    elif BROKEN == "diverges":
        real_reduce = loop.TrainStep.__call__

        def diverge(step: Any, *args: Any) -> Any:
            step.network.model.load_weights(
                [(n, v * float("nan")) for n, v in tree_flatten(step.network.model.trainable_parameters())], strict=False
            )
            return real_reduce(step, *args)

        loop.TrainStep.__call__ = diverge
    elif BROKEN == "diverges once":
        real_gradients = step_module.local_gradients
        calls = iter(range(1, 1000))

        def spoil(*args: Any, **options: Any) -> Any:
            loss, gradients = real_gradients(*args, **options)
            factor = float("inf") if next(calls) == 3 else 1.0
            return loss * factor, gradients

        step_module.local_gradients = spoil
    elif BROKEN == "drifts":
        real_step = loop.TrainStep.__call__

        def drift(step: Any, *args: Any) -> Any:
            result = real_step(step, *args)
            name, value = tree_flatten(step.network.model.trainable_parameters())[0]
            step.network.model.load_weights([(name, value * (1 + 2**-22))], strict=False)
            return result

        loop.TrainStep.__call__ = drift
    else:
        raise AssertionError(BROKEN)


if RANK == 1:
    break_something()
sys.exit(cli.main())
