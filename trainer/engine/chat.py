"""Talking to a model in the terminal, the answer appearing as it is generated."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from mlx_lm.generate import stream_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load

from trainer.data.tokens import fold_system

HELP = "Type a message; /new starts over, /quit or Ctrl-D leaves, Ctrl-C cuts an answer short."


def chat(options: argparse.Namespace) -> None:
    """Answer ``options.prompt`` and return, or hold a conversation on the terminal when there is none."""
    adapter = str(options.adapter) if options.adapter else None
    trust = options.trust_remote_code
    path, tokenizer_config = str(options.model), {"trust_remote_code": trust}
    model, tokenizer = load(path, tokenizer_config, adapter_path=adapter, trust_remote_code=trust)[:2]
    conversation = Conversation(model, tokenizer, options)
    if options.prompt:
        for prompt in options.prompt:
            conversation.start_over()
            _show(conversation.answer(prompt))
        return
    print(HELP, file=sys.stderr)
    while (message := _ask()) is not None:
        if message == "/quit":
            return
        if message == "/new":
            conversation.start_over()
        elif message:
            _show(conversation.answer(message))


class Conversation:
    """The messages so far, rendered anew by the model's template for every turn."""

    def __init__(self, model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
        self._model, self._tokenizer, self._options = model, tokenizer, options
        self.start_over()

    def start_over(self) -> None:
        """Forget everything but the system message."""
        system = self._options.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def answer(self, message: str) -> Iterator[str]:
        """Yield the answer in pieces; what was yielded is remembered even if the caller stops early."""
        self._messages.append({"role": "user", "content": message})
        prompt = self._render()
        sampler = make_sampler(self._options.temperature)
        pieces: list[str] = []
        try:
            for part in stream_generate(self._model, self._tokenizer, prompt, self._options.max_tokens, sampler=sampler):
                pieces.append(part.text)
                yield part.text
        finally:
            self._messages.append({"role": "assistant", "content": "".join(pieces)})

    def _render(self) -> list[int]:
        """Return the tokens of the conversation; as in training, a system message that the template refuses is folded in."""
        try:
            tokens: list[int] = self._tokenizer.apply_chat_template(self._messages, add_generation_prompt=True)
        except Exception:  # templates raise whatever their authors chose
            if self._messages[0]["role"] != "system":
                raise
            tokens = self._tokenizer.apply_chat_template(fold_system(self._messages), add_generation_prompt=True)
        return tokens


def _ask() -> str | None:
    try:
        return input("\n> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _show(pieces: Iterator[str]) -> None:
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    print()
