"""From samples to rows of tokens: the chat template applied, and which tokens are learned from.

Supervised are the assistant's turns, all of them, each with the token that ends it, and nothing else: not the prompt,
not the template's own words, not the line break that some templates put after a turn.
A message that holds a control token of the tokenizer, such as ``<|im_end|>``, is refused: it would end its own turn and
could begin another's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import Sample
from trainer.errors import InputError

_MOST_PROBLEMS = 20


class Tokenizer(Protocol):
    """What we use of a Hugging Face tokenizer."""

    chat_template: Any
    added_tokens_decoder: Mapping[int, Any]

    def __call__(self, text: str, **kwargs: Any) -> Any: ...
    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class TokenRow:
    """One sample as tokens. ``tokens``: int32 [T]; ``supervised``: bool [T], true where the token is learned."""

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_supervised(self) -> int:
        """Tokens that count in the loss."""
        return int(self.supervised[1:].sum())


def tokenize_samples(samples: Sequence[Sample], tokenizer: Tokenizer, max_tokens: int) -> list[TokenRow]:
    """Return a row for each sample; raises `InputError` naming every sample that is too long or cannot be used."""
    if not tokenizer.chat_template:
        raise InputError("model.source: the model has no chat template; take one that was made for chat (-Instruct, -Chat)")
    control = _match_control_tokens(tokenizer)
    rows: list[TokenRow] = []
    problems: list[str] = []
    for sample in samples:
        try:
            _refuse_control_tokens(sample, control)
            row = tokenize_sample(sample, tokenizer)
        except ValueError as error:
            problems.append(f"{sample.where}: {error}")
            continue
        if len(row) > max_tokens:
            problems.append(f"{sample.where}: is {len(row)} tokens long, above data.max_tokens = {max_tokens}")
        rows.append(row)
    if problems:
        rest = len(problems) - _MOST_PROBLEMS
        more = [f"{samples[0].path}: and {rest} more problems"] if rest > 0 else []
        raise InputError(problems[:_MOST_PROBLEMS] + more)
    return rows


def tokenize_sample(sample: Sample, tokenizer: Tokenizer) -> TokenRow:
    """Return the tokens of one sample; raises `ValueError` when the template cannot render or separate its turns.

    A system message that the template refuses, or shows only in some turns (Mistral's do), goes before the first question.
    """
    messages = sample.as_dicts()
    try:
        return _tokenize(messages, tokenizer)
    except ValueError:
        if messages[0]["role"] != "system":
            raise
        return _tokenize(fold_system(messages), tokenizer)


def fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return ``messages``, which begin with a system message, with its text put before the first user turn's."""
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _tokenize(messages: list[dict[str, str]], tokenizer: Tokenizer) -> TokenRow:
    text = _render(tokenizer, messages)
    tokens, starts, ends = _encode(tokenizer, text)
    supervised = np.zeros(len(tokens), dtype=np.bool_)
    for start, end in _find_assistant_spans(messages, tokenizer, text):
        supervised |= (starts >= start) & (starts < end)
        for index in np.flatnonzero((starts < start) & (ends > start)):  # the answer's first word, its space the template's
            supervised[index] = not text[start : ends[index]].isspace()
    return TokenRow(tokens, supervised)


def _encode(tokenizer: Tokenizer, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of ``text`` and the characters [start, end) of each.

    Some tokenizers leave a space out of its token's offsets, so that a token of spaces has none: it starts where the
    one before it ends.
    """
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts, ends = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    except (NotImplementedError, KeyError) as error:  # KeyError since transformers 5
        raise InputError(
            "model.source: the model has no fast tokenizer (tokenizer.json), so its turns cannot be told apart"
        ) from error
    starts = np.where(starts < ends, starts, np.concatenate([[0], ends[:-1]]))
    return np.array(encoded["input_ids"], dtype=np.int32), starts, ends


def _match_control_tokens(tokenizer: Tokenizer) -> re.Pattern[str]:
    words = sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or r"(?!)")


def _refuse_control_tokens(sample: Sample, control: re.Pattern[str]) -> None:
    for index, message in enumerate(sample.messages):
        if found := control.search(message.content):
            raise ValueError(
                f"messages[{index}].content: holds {found[0]}, which the model reads as a control token; write it differently"
            )


def _find_assistant_spans(messages: list[dict[str, str]], tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Return the [start, end) characters of ``text`` that the assistant would have written.

    A turn begins where the template's prompt for an answer ends. It ends where the conversation up to and with it
    ends, less the white space that the template appends after the end-of-turn token.
    """
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:index], add_generation_prompt=True)
        whole = _render(tokenizer, messages[: index + 1])
        if not (text.startswith(prompt) and text.startswith(whole) and len(whole) > len(prompt)):
            raise ValueError(
                f"messages[{index}]: the model's chat template renders this turn differently when more turns follow, "
                "so its tokens cannot be told apart; split the conversation"
            )
        spans.append((len(prompt), len(whole.rstrip())))
    return spans


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # templates raise whatever their authors chose, jinja2's own errors among them
        raise ValueError(f"the model's chat template refuses this conversation: {error}") from error
    return str(rendered)
