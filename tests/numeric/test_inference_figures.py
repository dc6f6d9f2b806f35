"""A baseline's inference figures are mlx_lm's own counters of the very calls that it made."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import plan_tiny

from trainer.comm.group import Comm
from trainer.data.formats import read_splits
from trainer.data.tokens import tokenize_samples
from trainer.engine import measure
from trainer.engine.measure import PROMPT_TOKENS, REPLY_TOKENS, HostMeasurement
from trainer.events import Events


def test_figures_are_the_counters_of_mlx_lm(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reply's rates as mlx_lm counts them at its end, but for the warm-up's; always the same prompt."""
    from mlx_lm.utils import load

    plan = plan_tiny(tiny_model, tiny_data, tmp_path, 1).plan
    model, tokenizer = load(str(tiny_model))[:2]
    rows = tokenize_samples(read_splits(tiny_data)["train"], tokenizer._tokenizer, 512)
    ends: list[Any] = []
    prompts: list[list[int]] = []
    generate = measure.stream_generate

    def listen(model: Any, tokenizer: Any, prompt: list[int], **options: Any) -> Iterator[Any]:
        prompts.append(prompt)
        response = None
        for response in generate(model, tokenizer, prompt, **options):
            yield response
        ends.append(response)

    monkeypatch.setattr(measure, "stream_generate", listen)
    figures = HostMeasurement(plan, Comm(), Events(stream=io.StringIO()), is_quick=True)._infer(model, tokenizer, rows)
    assert len(ends) == 3
    assert figures["prompt_tokens_per_s"] == [end.prompt_tps for end in ends[1:]]
    assert figures["generation_tokens_per_s"] == [end.generation_tps for end in ends[1:]]
    assert figures["prompt_tokens"] == len(prompts[0]) == PROMPT_TOKENS
    assert prompts == [prompts[0]] * 3
    assert {end.prompt_tokens for end in ends} == {PROMPT_TOKENS}
    assert all(0 < end.generation_tokens <= REPLY_TOKENS for end in ends)
