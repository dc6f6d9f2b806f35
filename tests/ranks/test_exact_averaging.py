"""The gradient and the update of a global batch do not depend on how many ranks share it, or how."""

from __future__ import annotations

from pathlib import Path

import job_step
import numpy as np
import pytest
from support import run_script

Arrays = dict[str, np.ndarray]
SCRIPT = Path(__file__).with_name("job_step.py")
ASSIGNMENTS = ("balanced", "one rank has all", "one rank has nothing to learn")


def run_ranks(folder: Path, size: int, assignment: str) -> Arrays:
    run_script(size, SCRIPT, str(folder), assignment, scratch=folder)
    with np.load(folder / f"{size}-{assignment}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """Return the result of one rank that computes every row."""
    return run_ranks(tmp_path_factory.mktemp("alone"), 1, "balanced")


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_gives_the_gradient_and_update_of_one(
    tmp_path: Path, alone: Arrays, size: int, assignment: str
) -> None:
    """Two or three ranks, with equal shares, with none, or with nothing to learn, equal one rank to 1e-5 relative."""
    together = run_ranks(tmp_path, size, assignment)
    assert set(together) == set(alone)
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, rtol=1e-5, atol=1e-7 * np.abs(value).max(), err_msg=name)


def test_the_gradient_is_the_float64_gradient_of_the_mean_over_all_tokens(alone: Arrays) -> None:
    """The reduced gradient equals a NumPy reference in float64 to 1e-5 relative; the mean of the rows' means does not."""
    gradients, loss, tokens = reference_gradient(as_float64(job_step.make_weights()))
    assert int(alone["tokens"]) == tokens
    np.testing.assert_allclose(alone["loss"][0], loss, rtol=1e-6)
    for name, expected in gradients.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(alone[f"gradient.head.{name}"], expected, rtol=1e-5, atol=1e-6 * scale)
    wrong = mean_of_means(as_float64(job_step.make_weights()))
    assert max(np.abs(wrong[name] - gradients[name]).max() / np.abs(gradients[name]).max() for name in gradients) > 0.1


def test_two_steps_of_adamw_equal_a_float64_reference(alone: Arrays) -> None:
    """Clipping, both moments, bias correction and decoupled decay over two steps equal NumPy in float64 to 1e-5."""
    weights = as_float64(job_step.make_weights())
    losses, norms = reference_adamw(weights, steps=2, clip_norm=0.5)
    np.testing.assert_allclose(alone["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(alone["norm"], norms, rtol=1e-5)
    for name in ("lora_a", "lora_b"):
        np.testing.assert_allclose(alone[f"after.head.{name}"], weights[name], rtol=1e-5, atol=1e-6)


def as_float64(weights: Arrays) -> Arrays:
    return {name: value.astype(np.float64) for name, value in weights.items()}


def row_gradient(weights: Arrays, tokens: np.ndarray, supervised: np.ndarray) -> tuple[Arrays, float, int]:
    """Return gradient and loss summed over one row's supervised tokens, and their number, by hand."""
    hidden = weights["embedding"][tokens[:-1]][supervised[1:]]
    targets = tokens[1:][supervised[1:]]
    low = hidden @ weights["lora_a"]
    logits = hidden @ weights["head"].T + job_step.SCALE * low @ weights["lora_b"]
    logits -= logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(probabilities[np.arange(len(targets)), targets]).sum()
    error = probabilities
    error[np.arange(len(targets)), targets] -= 1
    lora_a = job_step.SCALE * hidden.T @ (error @ weights["lora_b"].T)
    return {"lora_a": lora_a, "lora_b": job_step.SCALE * low.T @ error}, float(loss), len(targets)


def reference_gradient(weights: Arrays) -> tuple[Arrays, float, int]:
    """Return gradient and loss of the mean over all supervised tokens of the global batch."""
    rows = [row_gradient(weights, row.tokens, row.supervised) for row in job_step.make_rows()]
    tokens = sum(count for _, _, count in rows)
    total = {name: sum(gradient[name] for gradient, _, _ in rows) / tokens for name in ("lora_a", "lora_b")}
    return total, sum(loss for _, loss, _ in rows) / tokens, tokens


def mean_of_means(weights: Arrays) -> Arrays:
    """Return what averaging each row's mean would give: the bug that this project exists to avoid."""
    rows = [row_gradient(weights, row.tokens, row.supervised) for row in job_step.make_rows()]
    means = [(gradient, count) for gradient, _, count in rows if count]
    return {name: sum(gradient[name] / count for gradient, count in means) / len(means) for name in ("lora_a", "lora_b")}


def reference_adamw(weights: Arrays, steps: int, clip_norm: float) -> tuple[list[float], list[float]]:
    """Update ``weights`` in place by AdamW (Loshchilov & Hutter, 2019) and return losses and norms before clipping."""
    (beta1, beta2), rate = job_step.ADAMW["betas"], job_step.ADAMW["learning_rate"]
    first = {name: np.zeros_like(weights[name]) for name in ("lora_a", "lora_b")}
    second = {name: np.zeros_like(weights[name]) for name in ("lora_a", "lora_b")}
    losses, norms = [], []
    for step in range(1, steps + 1):
        gradients, loss, _ = reference_gradient(weights)
        norm = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
        losses.append(loss)
        norms.append(norm)
        for name, raw in gradients.items():
            gradient = raw * min(clip_norm / norm, 1.0)
            first[name] = beta1 * first[name] + (1 - beta1) * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
            mean, square = first[name] / (1 - beta1**step), second[name] / (1 - beta2**step)
            weights[name] *= 1 - rate * job_step.ADAMW["weight_decay"]
            weights[name] -= rate * mean / (np.sqrt(square) + job_step.ADAMW["eps"])
    return losses, norms
