"""A run's results do not depend on the number of ranks, and its adapter is mlx_lm's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import Log, plan_tiny, run

STEPS = 20
CURVE = (f"train.steps={STEPS}", "train.eval_every=10", "train.global_batch=5", "train.micro_batch=2")


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Log]]:
    """Return folder and log of the same 20 steps on one, two and three ranks."""
    results = {}
    for size in (1, 2, 3):
        launch = plan_tiny(tiny_model, tiny_data, tmp_path_factory.mktemp(f"runs-{size}"), size, *CURVE)
        outcome, log = run(launch)
        assert outcome.exit_code == 0, outcome.message
        results[size] = (launch.plan.run_dir, log)
    return results


@pytest.mark.parametrize("size", [2, 3])
def test_the_loss_curve_is_the_same_on_any_number_of_ranks(runs: dict[int, tuple[Path, Log]], size: int) -> None:
    """Training and validation losses of 20 steps on two and three ranks equal those of one to 1e-4."""
    for kind in ("step", "validated"):
        alone = [event["loss"] for event in runs[1][1].of(kind)]
        together = [event["loss"] for event in runs[size][1].of(kind)]
        assert len(alone) == {"step": STEPS, "validated": 3}[kind]
        np.testing.assert_allclose(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [2, 3])
def test_the_ring_gives_the_same_curve(
    runs: dict[int, tuple[Path, Log]], tiny_model: Path, tiny_data: Path, tmp_path: Path, size: int
) -> None:
    """MLX's ring in MPI's place changes no loss by more than 1e-5, the order of additions aside."""
    outcome, log = run(plan_tiny(tiny_model, tiny_data, tmp_path, size, *CURVE, "launch.backend=ring"))
    assert outcome.exit_code == 0, outcome.message
    for kind in ("step", "validated"):
        by_mpi, by_ring = ([event["loss"] for event in each.of(kind)] for each in (runs[size][1], log))
        assert len(by_ring) == len(by_mpi)
        np.testing.assert_allclose(by_ring, by_mpi, atol=1e-5, rtol=0)


def test_the_model_learns(runs: dict[int, tuple[Path, Log]]) -> None:
    """The validation loss after 20 steps is lower than before: the curves compared above are of something."""
    losses = [event["loss"] for event in runs[1][1].of("validated")]
    assert losses[-1] < 0.9 * losses[0]


def test_each_epoch_trains_on_each_sample_once(runs: dict[int, tuple[Path, Log]], tiny_data: Path, tiny_model: Path) -> None:
    """The supervised tokens of one epoch's steps add up to those of the data, on any number of ranks."""
    from transformers import AutoTokenizer

    from trainer.data.formats import read_samples
    from trainer.data.tokens import tokenize_samples

    rows = tokenize_samples(read_samples(tiny_data / "train.jsonl"), AutoTokenizer.from_pretrained(tiny_model), 512)
    expected = sum(row.num_supervised for row in rows)
    for _, log in runs.values():
        epoch = log.of("step")[: -(-len(rows) // 5)]
        assert sum(event["supervised"] for event in epoch) == expected


def test_mlx_lm_loads_the_adapter(runs: dict[int, tuple[Path, Log]], tiny_model: Path, tiny_data: Path) -> None:
    """mlx_lm.utils.load takes the adapter folder as it is, and the loaded model has the validation loss that we measured."""
    folder, log = runs[2]
    best = min(event["loss"] for event in log.of("validated"))
    assert loaded_loss(tiny_model, folder / "adapter", tiny_data) == pytest.approx(best, abs=1e-5)
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings == {
        "fine_tune_type": "lora",
        "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0},
        "model": str(tiny_model),
        "num_layers": 2,
    }


def test_dora_and_dropout_on_chosen_layers(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """DoRA with dropout on two kinds of layers trains on two ranks, and mlx_lm loads it with the loss that we measured."""
    keys = '["self_attn.q_proj", "mlp.up_proj"]'
    options = ("adapter.kind=dora", "adapter.dropout=0.1", f"adapter.keys={keys}", "train.steps=6", "train.eval_every=0")
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, 2, *options)
    outcome, log = run(launch)
    assert outcome.exit_code == 0, outcome.message
    assert loaded_loss(tiny_model, launch.plan.run_dir / "adapter", tiny_data) == pytest.approx(
        min(event["loss"] for event in log.of("validated")), abs=1e-5
    )


def loaded_loss(model_path: Path, adapter: Path, data: Path) -> float:
    """Return the validation loss of model and adapter as mlx_lm loads them, on one rank."""
    from mlx_lm.utils import load

    from trainer.comm.group import Comm
    from trainer.data.batch import make_batch
    from trainer.data.formats import read_samples
    from trainer.data.tokens import tokenize_samples
    from trainer.engine.evaluate import evaluate
    from trainer.model.network import Network

    model, tokenizer = load(str(model_path), adapter_path=str(adapter))[:2]
    rows = tokenize_samples(read_samples(data / "valid.jsonl"), tokenizer._tokenizer, 512)
    return evaluate(Network(model, use_kernels=False), [make_batch([row]) for row in rows], Comm())
