"""What one rank measures of its host: inference with the base model, then training, on the run's own rows.

All ranks work at the same time, as they do in a run, so that ranks of one host share its memory and cores here as there.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import stream_generate
from mlx_lm.utils import get_total_parameters, load

from trainer.cluster.plan import RunPlan
from trainer.comm.group import Comm
from trainer.config import RunConfig
from trainer.data.assign import assign_rows, split_micro_batches, steps_at_once
from trainer.data.batch import Batch, make_batch, pack_batch
from trainer.data.order import global_batch_at, steps_per_epoch
from trainer.data.tokens import TokenRow
from trainer.engine.frozen import Declined, FrozenTrunk, open_trunk
from trainer.engine.memory import peak_memory_mib, reset_peak
from trainer.engine.optimizer import make_optimizer
from trainer.engine.outset import agree_on
from trainer.engine.rows import load_rows
from trainer.engine.step import TrainStep
from trainer.events import Events
from trainer.model.lora import attach_adapter, count_numbers
from trainer.model.network import Network

PROMPT_TOKENS, REPLY_TOKENS = 256, 48
MOST_LENGTHS = 4096  # rows whose lengths are told: a sample, where there are more
_MIB = 1024 * 1024
_WORLD_SIZES = (1, 2, 4)  # micro-batches as they come about on so many ranks


class HostMeasurement:
    """Measures and emits ``measured`` events. ``execute`` is a collective."""

    def __init__(self, plan: RunPlan, comm: Comm, events: Events, *, is_quick: bool) -> None:
        self.plan, self.comm, self.events = plan, comm, events
        self.num_replies = 2 if is_quick else 4
        self.num_batches, self.limit_s = (8, 25.0) if is_quick else (32, 100.0)
        self._job: dict[str, Any] = {}

    def execute(self, threads: int) -> int:
        """Agree, then measure inference and training; each rank tells its own. Returns the bytes that a step reduces."""
        software = agree_on(self.plan, self.comm)
        if self.comm.rank == 0:
            self.events.emit("started", world_size=self.comm.size, threads=threads, software=software)
        self.comm.rest()
        started = time.perf_counter()
        model, tokenizer = self._load()
        load_s = time.perf_counter() - started
        rows = load_rows(self.plan, self.comm)
        self.comm.rest()
        inference = {"load_s": load_s, **self._infer(model, tokenizer, rows["train"])}
        attach_adapter(model, self.plan.config.adapter, self.plan.config.train.seed)
        numbers = count_numbers(model.trainable_parameters()), get_total_parameters(model)
        training = self._train(model, rows)
        self._tell("host", threads=threads, system=describe_system(), software=software, inference=inference, training=training)
        job = self._describe_job(rows["train"], *numbers)
        if self.comm.rank == 0:
            self._tell("job", **job)
        self.comm.rest()
        payload_bytes: int = job["payload_bytes"]
        return payload_bytes

    def _load(self) -> tuple[nn.Module, Any]:
        trust = self.plan.config.model.trust_remote_code
        path = str(self.plan.model_path)
        model, tokenizer = load(path, tokenizer_config={"trust_remote_code": trust}, trust_remote_code=trust)[:2]
        mx.eval(model.parameters())
        return model, tokenizer

    def _infer(self, model: nn.Module, tokenizer: Any, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Return prompt and generation speed by mlx_lm's own counters, after a warm-up, and the peak memory."""
        prompt = [int(token) for row in rows[:PROMPT_TOKENS] for token in row.tokens][:PROMPT_TOKENS]
        reset_peak()
        answers = []
        for turn in range(self.num_replies + 1):
            answers.append(list(stream_generate(model, tokenizer, prompt, max_tokens=REPLY_TOKENS))[-1])
            self._tell_progress("inference", turn + 1, self.num_replies + 1)
        return {
            "prompt_tokens": len(prompt),
            "prompt_tokens_per_s": [answer.prompt_tps for answer in answers[1:]],
            "generation_tokens_per_s": [answer.generation_tps for answer in answers[1:]],
            "peak_memory_mib": peak_memory_mib(),
        }

    def _train(self, model: nn.Module, rows: Mapping[str, Sequence[TokenRow]]) -> dict[str, Any]:
        """Return the seconds of micro-batches of all kinds that occur, each an optimizer step of its own.

        Where a run would keep what its frozen layers put out, so does this: the layers' seconds are told apart. What is on
        disk for runs is neither read nor added to.
        """
        config = self.plan.config
        trunk = open_trunk(self.plan, model, rows, self.comm)
        skipped = trunk.trunk.depth if isinstance(trunk, FrozenTrunk) else 0
        network = Network(model, skipped=skipped, packing=config.speed.packing, use_kernels=config.speed.kernels)
        optimizer = make_optimizer(config.optimizer, config.schedule, 1000)
        step = TrainStep(network, optimizer, Comm(), config.optimizer.clip_norm, fused_loss=config.speed.fused_loss)
        portions = _Portions(rows["train"], config, trunk if isinstance(trunk, FrozenTrunk) else None, network.is_packable)
        model.train()
        reset_peak()
        measured: list[dict[str, Any]] = []
        began, batches = time.perf_counter(), portions.batches()
        step([next(batches)])  # a first time is not like the others
        for number, batch in enumerate(batches):
            started = time.perf_counter()
            result = step([batch])
            step_s = time.perf_counter() - started
            count, longest = batch.inputs_BT.shape
            measured.append(
                {
                    "rows": len(batch.lengths) or count,
                    "padded": count * longest,
                    "tokens": batch.num_tokens,
                    "supervised": batch.num_supervised,
                    "seconds": result.compute_s,
                    "fixed_s": step_s - result.compute_s,
                }
            )
            self._tell_progress("training", number + 1, self.num_batches)
            if number + 1 >= self.num_batches or time.perf_counter() - began > self.limit_s:
                break
        self._job = {
            "is_packed": network.is_packable or skipped > 0,
            "trunk_ratio": trunk.ratio if isinstance(trunk, FrozenTrunk) else 0.0,
        }
        told = {"reason": trunk.reason} if isinstance(trunk, Declined) else {"layers": skipped, **portions.trunk_figures()}
        return {"micro_batches": measured, "trunk": told, "peak_memory_mib": peak_memory_mib()}

    def _describe_job(self, rows: Sequence[TokenRow], trainable: int, parameters: int) -> dict[str, Any]:
        train = self.plan.config.train
        told = rows[:: -(-len(rows) // MOST_LENGTHS)]
        return {
            "steps": train.steps or train.epochs * steps_per_epoch(len(rows), train.global_batch),
            "rows": len(rows),
            "global_batch": train.global_batch,
            "micro_batch": train.micro_batch,
            "seed": train.seed,
            "trainable": trainable,
            "parameters": parameters,
            "payload_bytes": 4 * (trainable + 3 + 2 * self.comm.size),
            "lengths": [[len(row), row.num_supervised] for row in told],
            **self._job,
        }

    def _tell(self, what: str, **fields: Any) -> None:
        self.events.emit("measured", what=what, host_name=socket.gethostname(), **fields)

    def _tell_progress(self, phase: str, done: int, total: int) -> None:
        if self.comm.rank == 0:
            self.events.emit("progress", phase=phase, done=done, total=total)


class _Portions:
    """A rank's share of one step after the other, on worlds of several sizes in turn, as micro-batches; never ends."""

    def __init__(self, rows: Sequence[TokenRow], config: RunConfig, frozen: FrozenTrunk | None, is_packed: bool) -> None:
        self._rows, self._train, self._frozen = rows, config.train, frozen
        self._pack = pack_batch if is_packed else make_batch
        self._turn = 0
        self._trunk: list[tuple[int, float]] = []  # (tokens, seconds) of each pass through the frozen layers

    def batches(self) -> Iterator[Batch]:
        """Yield micro-batches that have something to learn from."""
        while True:
            groups = self._deal()
            entering = self._enter(groups)
            for group in groups:
                rows = [self._rows[row] for row in group]
                states = mx.concatenate([entering[row] for row in group])[None] if self._frozen else None
                batch = pack_batch(rows, states) if self._frozen else self._pack(rows)
                if batch.num_supervised:
                    yield batch

    def trunk_figures(self) -> dict[str, float]:
        """Return the frozen layers' seconds for a token, and how many tokens they were measured on; the first pass warms up."""
        timed = self._trunk[1:] or self._trunk
        tokens = sum(count for count, _ in timed)
        return {"tokens": tokens, "token_s": sum(seconds for _, seconds in timed) / tokens}

    def _deal(self) -> list[list[int]]:
        """Return the groups of rows of one step, or of as many as go through the frozen layers together."""
        train, steps = self._train, 1
        groups: list[list[int]] = []
        while steps:
            size = _WORLD_SIZES[self._turn % len(_WORLD_SIZES)]
            chosen = [int(row) for row in global_batch_at(self._turn, len(self._rows), train.global_batch, train.seed)]
            lengths = [len(self._rows[row]) for row in chosen]
            if self._frozen and not groups:
                steps = steps_at_once(sum(lengths) / size)
            own = assign_rows(lengths, size)[self._turn // len(_WORLD_SIZES) % size]
            groups += [
                [chosen[position] for position in group] for group in split_micro_batches(own, lengths, train.micro_batch)
            ]
            self._turn += 1
            steps -= 1
        return groups

    def _enter(self, groups: Sequence[Sequence[int]]) -> dict[int, mx.array]:
        if self._frozen is None:
            return {}
        rows = sorted({row for group in groups for row in group})
        started = time.perf_counter()
        states = self._frozen.trunk.enter([self._rows[row].tokens[:-1].astype(np.int32) for row in rows])
        self._trunk.append((sum(len(self._rows[row]) - 1 for row in rows), time.perf_counter() - started))
        return dict(zip(rows, states, strict=True))


def describe_system() -> dict[str, Any]:
    """Return what this machine is: system, processor, cores that we may use, memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    accelerator = str(mx.device_info().get("device_name", "")) if mx.metal.is_available() else ""
    return {
        "os": f"{platform.system()} {platform.release()}",
        "cpu": accelerator or platform.processor() or platform.machine(),
        "cores": cores,
        "memory_mib": pages // _MIB,
    }
