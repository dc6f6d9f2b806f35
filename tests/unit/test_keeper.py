"""When a checkpoint is written, and that the training thread waits for nothing but the copy."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load

from trainer.checkpoints import Checkpoint, list_steps
from trainer.comm.group import Comm
from trainer.config import AdapterConfig, CheckpointConfig, OptimizerConfig, ScheduleConfig
from trainer.engine import checkpoint as module
from trainer.engine.checkpoint import Keeper, Written, collect_state, load_state, restore_state, to_safetensors
from trainer.engine.optimizer import make_optimizer
from trainer.engine.step import trainable_parameters
from trainer.errors import InputError
from trainer.model.lora import attach_adapter

STATE = {"model.a": mx.arange(6).astype(mx.float32).reshape(2, 3), "optimizer.step": mx.array(7, dtype=mx.uint64)}


def make_keeper(folder: Path, clock: SimpleNamespace | None = None, rank: int = 0, **settings: Any) -> Keeper:
    hands = clock or SimpleNamespace(now=0.0)
    return Keeper(folder, CheckpointConfig(**settings), Comm(rank, 2), clock=lambda: hands.now)


def test_due_by_steps_and_by_time(tmp_path: Path) -> None:
    """Every N steps or M seconds, whichever comes first, counted from the last checkpoint; only rank 0's clock counts."""
    clock = SimpleNamespace(now=0.0)
    keeper = make_keeper(tmp_path, clock, every_steps=10, every_s=60)
    assert next(step for step in range(1, 21) if Keeper.grants(keeper.wishes(step))) == 10
    clock.now = 60.0
    assert Keeper.grants(keeper.wishes(3))
    keeper.go_on_from(3)
    assert not Keeper.grants(keeper.wishes(12))
    assert Keeper.grants(keeper.wishes(13))
    assert make_keeper(tmp_path, rank=1, every_steps=1).wishes(50) == (0.0, 0.0)
    assert make_keeper(tmp_path, every_steps=0, every_s=0).wishes(10**6) == (0.0, 0.0)


def test_a_busy_writer_postpones_on_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread writes, `save` has returned and the next checkpoint waits; the arrays may change meanwhile."""
    written, may_write = threading.Event(), threading.Event()
    real = module.write_checkpoint

    def slowly(*args: Any) -> Checkpoint:
        written.set()
        assert may_write.wait(20)
        return real(*args)

    monkeypatch.setattr(module, "write_checkpoint", slowly)
    keeper = make_keeper(tmp_path, every_steps=1)
    state = dict(STATE)
    keeper.save(1, state, {"attempt": 1})
    assert written.wait(20)
    state["model.a"] = state["model.a"] * 0
    assert keeper.wishes(2) == (1.0, 1.0)
    assert not Keeper.grants(keeper.wishes(2))
    assert keeper.take_news() == []
    may_write.set()
    keeper.wait()
    [news] = keeper.take_news()
    assert isinstance(news, Written)
    assert Keeper.grants(keeper.wishes(2))
    assert mx.array_equal(load_state(news.checkpoint)["model.a"], STATE["model.a"])


def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is a sentence, not an exception; the next one is written."""
    real = module.write_checkpoint

    def fail(*_: Any) -> Checkpoint:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_checkpoint", fail)
    keeper = make_keeper(tmp_path, every_steps=1)
    keeper.save(1, STATE, {})
    keeper.wait()
    [news] = keeper.take_news()
    assert str(news).endswith(f"the checkpoint of step 1 could not be written to {tmp_path} (No space left on device); "
                              "the run goes on without it")  # fmt: skip
    monkeypatch.setattr(module, "write_checkpoint", real)
    keeper.save(2, STATE, {})
    keeper.wait()
    assert list_steps(tmp_path) == [2]


def test_a_failed_write_is_wished_for_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that could not write asks for the next one after 10 s, then 20: any rank may; once it is written, no more."""
    real = module.write_checkpoint

    def fail(*_: Any) -> Checkpoint:
        raise OSError(28, "No space left on device")

    def save(step: int) -> None:
        keeper.save(step, STATE, {})
        keeper.wait()

    clock = SimpleNamespace(now=0.0)
    keeper = make_keeper(tmp_path, clock, rank=1, every_steps=1000, every_s=0)
    monkeypatch.setattr(module, "write_checkpoint", fail)
    for step, pause_s in ((1, 10), (2, 20), (3, 40)):
        save(step)
        clock.now += pause_s - 0.1
        assert not Keeper.grants(keeper.wishes(step + 1))
        clock.now += 0.1
        assert Keeper.grants(keeper.wishes(step + 1))
    monkeypatch.setattr(module, "write_checkpoint", real)
    save(4)
    clock.now += 500
    assert not Keeper.grants(keeper.wishes(5))
    assert list_steps(tmp_path) == [4]


def test_a_disk_too_small_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three checkpoints must fit."""
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=30 * 2**20))
    keeper = make_keeper(tmp_path)
    assert keeper.check_room(10 * 2**20) == ""
    assert keeper.check_room(11 * 2**20).endswith(f"{tmp_path} has 30 MiB free where checkpoints need 34 MiB; make room")


def test_safetensors_of_all_types(tmp_path: Path) -> None:
    """What we write MLX reads: scalars, empty arrays, bfloat16, and no view of an array that may go."""
    random = mx.random.normal((4, 5))
    named = {"f": random, "b": random.astype(mx.bfloat16), "h": random.astype(mx.float16), "s": mx.array(3, dtype=mx.uint64)}
    named |= {"empty": mx.zeros((0, 2)), "i": mx.array([1, -2], dtype=mx.int32), "transposed": random.T}
    (tmp_path / "x.safetensors").write_bytes(b"".join(to_safetensors(named)))
    read = mx.load(str(tmp_path / "x.safetensors"))
    assert {name: (value.shape, value.dtype) for name, value in read.items()} == {
        name: (value.shape, value.dtype) for name, value in named.items()
    }
    assert all(mx.array_equal(read[name], value) for name, value in named.items())


def test_the_state_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    """Parameters and moments are restored bit by bit into a fresh model; those of another adapter are refused."""
    config = AdapterConfig(num_layers=2, rank=4)

    def fresh(rank: int = 4) -> tuple[Any, Any]:
        model = load(str(tiny_model))[0]
        attach_adapter(model, AdapterConfig(num_layers=2, rank=rank), 0)
        return model, make_optimizer(OptimizerConfig(), ScheduleConfig(), 10)

    model, optimizer = fresh(config.rank)
    for _ in range(3):
        optimizer.update(model, module.tree_unflatten([(n, mx.ones_like(v)) for n, v in trainable_parameters(model)]))
    state = collect_state(model, optimizer)
    mx.eval(state)
    (tmp_path / "s.safetensors").write_bytes(b"".join(to_safetensors(state)))
    read = mx.load(str(tmp_path / "s.safetensors"))
    again, other = fresh()
    restore_state(again, other, read)
    restored = collect_state(again, other)
    assert {name: np.array(value).tobytes() for name, value in restored.items()} == {
        name: np.array(value).tobytes() for name, value in state.items()
    }
    with pytest.raises(InputError, match="another adapter"):
        restore_state(*fresh(rank=2), read)
