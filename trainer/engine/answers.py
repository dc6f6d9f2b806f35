"""Answers to prompts, greedy, and how many of them are in the style that the recipe describes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import mlx.nn as nn
from mlx_lm.generate import batch_generate, stream_generate

from trainer.comm.group import Comm
from trainer.config import StyleConfig

PROMPTS_AT_ONCE = 32


def answer_all(
    model: nn.Module,
    tokenizer: Any,
    style: StyleConfig,
    test_prompts: Sequence[str],
    comm: Comm,
    tick: Callable[[int, int], None],
) -> dict[str, Any]:
    """Return what the event ``answered`` tells of a recipe's demonstration and test prompts; a collective.

    The former are answered as chatting would, the latter, if the style has markers, in batches. ``tick`` as for `answer_many`.
    """
    demo = _in_turn(style.demo_prompts, comm, lambda own: answer_prompts(model, tokenizer, own, style.max_reply_tokens))
    tested = answer_many(model, tokenizer, test_prompts, style.max_reply_tokens, comm, tick) if style.markers else []
    return {
        "demo": [{"prompt": p, "reply": r} for p, r in zip(style.demo_prompts, demo, strict=True)],
        "test": [{"prompt": p, "reply": r} for p, r in zip(test_prompts, tested, strict=False)],
        "share_in_style": share_in_style(tested, style) if tested else None,
    }


def answer_prompts(model: nn.Module, tokenizer: Any, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """Return the greedy answer to each prompt, one after the other: exactly what chatting would show."""
    return [
        "".join(part.text for part in stream_generate(model, tokenizer, _encode(tokenizer, prompt), max_tokens=max_tokens))
        for prompt in prompts
    ]


def answer_many(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    max_tokens: int,
    comm: Comm,
    tick: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[str]:
    """Return the greedy answer to each prompt in order, computed in batches and shared among the ranks; a collective.

    Several times faster than `answer_prompts`, and equal to it but for the rounding of batched products. ``tick`` is told
    how many of this rank's prompts are done.
    """

    def answer(own: Sequence[str]) -> list[str]:
        encoded, texts = [_encode(tokenizer, prompt) for prompt in own], []
        for start in range(0, len(encoded), PROMPTS_AT_ONCE):
            batch = encoded[start : start + PROMPTS_AT_ONCE]
            texts += batch_generate(model, tokenizer, batch, max_tokens=max_tokens, completion_batch_size=len(batch)).texts
            tick(len(texts), len(own))
        return texts

    return _in_turn(prompts, comm, answer)


def _in_turn(prompts: Sequence[str], comm: Comm, answer: Callable[[Sequence[str]], list[str]]) -> list[str]:
    """Return the answers to ``prompts``, of which every rank gives its own; a collective."""
    answers = [""] * len(prompts)
    for rank, part in enumerate(comm.all_gather(answer(prompts[comm.rank :: comm.size]))):
        answers[rank :: comm.size] = part
    return answers


def share_in_style(replies: Sequence[str], style: StyleConfig) -> float:
    """Return the share (0 to 1) of ``replies`` with at least ``style.min_markers`` different markers."""
    count = count_markers(style.markers)
    return sum(count(reply) >= style.min_markers for reply in replies) / max(len(replies), 1)


def count_markers(markers: Sequence[str]) -> Callable[[str], int]:
    """Return a function that counts how many different ``markers`` a text holds as whole words, in any case."""
    patterns = [_compile(marker) for marker in markers]

    def count(text: str) -> int:
        plain = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        return sum(bool(pattern.search(plain)) for pattern in patterns)

    return count


def _compile(marker: str) -> re.Pattern[str]:
    """Return the pattern of a marker; a ``*`` in front stands for a letter at least, so that "*in'" is not "in'"."""
    letters = re.escape(marker).replace(r"\*", "[a-z]*")
    if marker.startswith("*"):
        letters = "[a-z]" + letters
    return re.compile(rf"(?<![\w']){letters}(?!\w)", re.IGNORECASE)


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    tokens: list[int] = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    return tokens
