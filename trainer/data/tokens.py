"""From samples to rows of tokens: the chat template applied, and which tokens are learned from.

Supervised are the assistant's turns, all of them, each with the token that ends it, and nothing else: not the prompt,
not the template's own words, not the line break that some templates put after a turn.
A message that holds a control token of the tokenizer, such as ``<|im_end|>``, is refused: it would end its own turn and
could begin another's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.encode import Tokenizer, make_encoder
from trainer.data.formats import Sample, tell_problems
from trainer.errors import InputError

Conversation = list[dict[str, str]]


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


@dataclass(frozen=True)
class Draft:
    """A conversation as the template renders it, and the [start, end) characters of each answer with its end."""

    text: str
    spans: list[tuple[int, int]]


def tokenize_samples(samples: Sequence[Sample], tokenizer: Tokenizer, max_tokens: int) -> list[TokenRow]:
    """Return a row for each sample; raises `InputError` naming every sample that is too long or cannot be used."""
    rows: list[TokenRow] = []
    problems: list[str] = []
    for sample, made in zip(samples, RowMaker(tokenizer).make(samples), strict=True):
        if isinstance(made, ValueError):
            problems.append(f"{sample.where}: {made}")
            continue
        if len(made) > max_tokens:
            problems.append(f"{sample.where}: {say_too_long(len(made), max_tokens)}")
        rows.append(made)
    if problems:
        raise tell_problems(samples[0].path, problems, len(problems))
    return rows


def tokenize_sample(sample: Sample, tokenizer: Tokenizer) -> TokenRow:
    """Return the tokens of one sample, control tokens allowed; raises `ValueError` as `RowMaker.make` tells."""
    [made] = RowMaker(tokenizer).make_unchecked([sample.as_dicts()])
    if isinstance(made, ValueError):
        raise made
    return made


def say_too_long(num_tokens: int, max_tokens: int) -> str:
    """Return the complaint about a row above the limit."""
    return f"is {num_tokens} tokens long, above data.max_tokens = {max_tokens}"


class RowMaker:
    """Makes rows with one tokenizer; raises `InputError` at once for one that cannot."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template:
            raise InputError("model.source: the model has no chat template; take one that was made for chat (-Instruct, -Chat)")
        self._tokenizer = tokenizer
        self._control = _match_control_tokens(tokenizer)
        self._encode = make_encoder(tokenizer)

    def make(self, samples: Sequence[Sample]) -> list[TokenRow | ValueError]:
        """Return for each sample its row, or an error: the template cannot render it or tell its turns apart, or it holds
        a control token.
        """
        refused = [self._refuse_control_tokens(sample) for sample in samples]
        fine = [sample.as_dicts() for sample, error in zip(samples, refused, strict=True) if error is None]
        rows = iter(self.make_unchecked(fine))
        return [next(rows) if error is None else error for error in refused]

    def make_unchecked(self, conversations: Sequence[Conversation]) -> list[TokenRow | ValueError]:
        """Return what `make` does of conversations that may hold control tokens.

        A system message that the template refuses, or shows only in some turns (Mistral's do), goes before the first question.
        """
        drafts = draft_turns(conversations, self._tokenizer)
        for index, messages in enumerate(conversations):
            if isinstance(drafts[index], ValueError) and messages[0]["role"] == "system":
                drafts[index : index + 1] = draft_turns([fold_system(messages)], self._tokenizer)
        encoded = iter(self._encode([draft.text for draft in drafts if isinstance(draft, Draft)]))
        return [mark_learned(draft, *next(encoded)) if isinstance(draft, Draft) else draft for draft in drafts]

    def _refuse_control_tokens(self, sample: Sample) -> ValueError | None:
        for index, message in enumerate(sample.messages):
            if found := self._control.search(message.content):
                rule = "which the model reads as a control token; write it differently"
                return ValueError(f"messages[{index}].content: holds {found[0]}, {rule}")
        return None


def fold_system(messages: Conversation) -> Conversation:
    """Return ``messages``, which begin with a system message, with its text put before the first user turn's."""
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def mark_learned(draft: Draft, tokens: NDArray[np.int32], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> TokenRow:
    """Return the row of a draft whose tokens stand for the characters [start, end) of its text."""
    supervised = np.zeros(len(tokens), dtype=np.bool_)
    for start, end in draft.spans:
        supervised |= (starts >= start) & (starts < end)
        for index in np.flatnonzero((starts < start) & (ends > start)):  # the answer's first word, its space the template's
            supervised[index] = not draft.text[start : ends[index]].isspace()
    return TokenRow(tokens, supervised)


def _match_control_tokens(tokenizer: Tokenizer) -> re.Pattern[str]:
    words = sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or r"(?!)")


def draft_turns(conversations: Sequence[Conversation], tokenizer: Tokenizer) -> list[Draft | ValueError]:
    """Return each conversation as text with the characters that the assistant would have written, or why there is none.

    A turn begins where the template's prompt for an answer ends. It ends where the conversation up to and with it
    ends, less the white space that the template appends after the end-of-turn token.
    """
    turns = [[i for i, message in enumerate(messages) if message["role"] == "assistant"] for messages in conversations]
    asked = [messages[:i] for messages, own in zip(conversations, turns, strict=True) for i in own]
    told = [messages[: i + 1] for messages, own in zip(conversations, turns, strict=True) for i in own if i + 1 < len(messages)]
    try:
        texts = _render(tokenizer, [*conversations, *told])
        prompts = iter(_render(tokenizer, asked, add_generation_prompt=True))
    except ValueError as error:
        alone = [[messages] for messages in conversations]
        return [error] if len(alone) == 1 else [draft for one in alone for draft in draft_turns(one, tokenizer)]
    wholes = iter(texts[len(conversations) :])
    drafts: list[Draft | ValueError] = []
    for messages, own, text in zip(conversations, turns, texts[: len(conversations)], strict=True):
        parts = [(i, next(prompts), next(wholes) if i + 1 < len(messages) else text) for i in own]
        drafts.append(_find_spans(text, parts))
    return drafts


def _find_spans(text: str, parts: list[tuple[int, str, str]]) -> Draft | ValueError:
    """Return the draft of ``text``; ``parts`` are (message, prompt up to it, conversation up to and with it)."""
    spans = []
    for index, prompt, whole in parts:
        if not (text.startswith(prompt) and text.startswith(whole) and len(whole) > len(prompt)):
            return ValueError(
                f"messages[{index}]: the model's chat template renders this turn differently when more turns follow, "
                "so its tokens cannot be told apart; split the conversation"
            )
        spans.append((len(prompt), len(whole.rstrip())))
    return Draft(text, spans)


def _render(tokenizer: Tokenizer, conversations: list[Conversation], add_generation_prompt: bool = False) -> list[str]:
    if not conversations:
        return []
    try:
        rendered = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # templates raise whatever their authors chose, jinja2's own errors among them
        raise ValueError(f"the model's chat template refuses this conversation: {error}") from error
    return [str(text) for text in rendered]
