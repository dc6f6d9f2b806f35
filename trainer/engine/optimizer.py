"""AdamW and its learning-rate schedule, both MLX's own."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim

from trainer.config import OptimizerConfig, ScheduleConfig

Schedule = Callable[[mx.array], mx.array]


def make_optimizer(config: OptimizerConfig, schedule: ScheduleConfig, num_steps: int) -> optim.AdamW:
    """Return AdamW (Loshchilov & Hutter, 2019) with bias correction for a run of ``num_steps`` steps."""
    return optim.AdamW(
        learning_rate=make_schedule(config.learning_rate, schedule, num_steps),
        betas=[config.beta1, config.beta2],
        eps=config.eps,
        weight_decay=config.weight_decay,
        bias_correction=True,
    )


def make_schedule(peak: float, config: ScheduleConfig, num_steps: int) -> Schedule:
    """Return the learning rate as a function of the step (from 0): a linear warm-up, then constant, linear or cosine."""
    warmup = min(config.warmup_steps, num_steps - 1)
    main = _main_schedule(peak, config, max(num_steps - warmup, 1))
    if not warmup:
        return main
    # the first step already moves: the rate at step i of the warm-up is (i + 1) / (warmup + 1) of the peak
    rising = optim.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optim.join_schedules([rising, main], [warmup])  # type: ignore[no-any-return]


def _main_schedule(peak: float, config: ScheduleConfig, num_steps: int) -> Schedule:
    final = peak * config.final_ratio
    if config.kind == "cosine":
        return optim.cosine_decay(peak, num_steps, final)  # type: ignore[no-any-return]
    if config.kind == "linear":
        return optim.linear_schedule(peak, final, num_steps)  # type: ignore[no-any-return]
    return lambda _step: mx.array(peak)
