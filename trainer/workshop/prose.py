"""Plain text and Markdown as conversations.

A transcript keeps its turns. Of Markdown, a heading is the question and what stands below it the answer. Of other prose a
passage is the question, with the request to go on, and the next passage the answer: so a voice can be learned, if little else.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from trainer.data.formats import Message

GO_ON = "Continue this text:"
PASSAGE_CHARACTERS = 600
_SPEAKERS = {
    "user": "user", "human": "user", "question": "user", "q": "user", "instruction": "user", "prompt": "user",
    "assistant": "assistant", "ai": "assistant", "bot": "assistant", "answer": "assistant", "a": "assistant",
    "response": "assistant", "gpt": "assistant", "system": "system",
}  # fmt: skip
_TURN = re.compile(r"^[#*\s>]{0,6}(" + "|".join(_SPEAKERS) + r")\s*\**\s*:\**[ \t]*", re.IGNORECASE | re.MULTILINE)
_CHATML = re.compile(r"<\|im_start\|>\s*(system|user|assistant)\s*\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def read_transcript(text: str) -> list[Message]:
    """Return the turns of a transcript; raises `ValueError` for a text that is none."""
    if turns := [Message(role, content.strip()) for role, content in _CHATML.findall(text)]:
        return turns
    marks = list(_TURN.finditer(text))
    roles = [_SPEAKERS[mark[1].lower()] for mark in marks]
    if "user" not in roles or "assistant" not in roles or text[: marks[0].start()].strip():
        raise ValueError("is a text without turns; give it as a file of its own (.txt or .md), or --map its columns")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [Message(role, text[mark.end() : end].strip()) for role, mark, end in zip(roles, marks, ends, strict=True)]


def read_document(text: str) -> Iterator[tuple[int, list[Message]]]:
    """Yield (line, turns) for each conversation that can be made of a document."""
    try:
        yield 1, read_transcript(text)
        return
    except ValueError:
        pass
    covered = _FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)  # a comment in code is no heading
    headings = list(_HEADING.finditer(covered))
    if headings:
        ends = [heading.start() for heading in headings[1:]] + [len(text)]
        for heading, end in zip(headings, ends, strict=True):
            if body := text[heading.end() : end].strip():
                yield _line_of(text, heading.start()), [Message("user", heading[1].strip()), Message("assistant", body)]
        return
    passages = list(_cut_passages(text))
    for (start, one), (_, two) in itertools.pairwise(passages):
        yield _line_of(text, start), [Message("user", f"{GO_ON}\n\n{one}"), Message("assistant", two)]


def _cut_passages(text: str) -> Iterator[tuple[int, str]]:
    """Yield (start, passage): whole paragraphs, as many as fit."""
    begin, gathered = 0, ""
    for match in re.finditer(r"\S.*?(?=\n\s*\n|\Z)", text, re.DOTALL):
        paragraph = match[0].rstrip()
        if gathered and len(gathered) + len(paragraph) > PASSAGE_CHARACTERS:
            yield begin, gathered
            gathered = ""
        begin = begin if gathered else match.start()
        gathered = f"{gathered}\n\n{paragraph}" if gathered else paragraph
    if gathered:
        yield begin, gathered


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
