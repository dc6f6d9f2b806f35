"""Plain text and Markdown as conversations.

A transcript keeps its turns. Of Markdown, a heading is the question and what stands below it the answer. Of other prose a
passage is the question, with the request to go on, and the next passage the answer: so a voice can be learned, if little else.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from trainer.data.formats import Message
from trainer.schema import show_value
from trainer.workshop.jsonlist import Broken

GO_ON = "Continue this text:"
PASSAGE_CHARACTERS = 600
_SPEAKERS = {
    "user": "user", "human": "user", "question": "user", "q": "user", "instruction": "user", "prompt": "user",
    "assistant": "assistant", "ai": "assistant", "bot": "assistant", "answer": "assistant", "a": "assistant",
    "response": "assistant", "gpt": "assistant", "system": "system",
}  # fmt: skip
_ROLES = {**_SPEAKERS, "developer": "system"}
_NAMES = "|".join(_SPEAKERS)
_TURN = re.compile(  # at the beginning of a line, or after ### anywhere; "Input" only after ###: alone it says too little
    rf"^[#*\s>]{{0,6}}(?P<name>{_NAMES})\s*\**\s*:\**[ \t]*|#{{3,6}}[ \t]*(?P<marked>{_NAMES}|input)[ \t]*:[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_CHATML = re.compile(
    r"<\|im_start\|>\s*(?P<role>[^\n<]*)\n?(?P<content>.*?)(?P<end><\|im_end\|>|(?=\n<\|im_start\|>)|\Z)", re.DOTALL
)
_MARKER = re.compile(r"<\|?/?\w{1,24}\|?>")  # what begins and ends a sequence
_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_TITLE = 80  # characters of a line that may stand above the first heading and teach nothing
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


class UnknownRoleError(ValueError):
    """Raised for a transcript in which somebody speaks whom we do not know."""


def read_transcript(text: str) -> list[Message]:
    """Return the turns of a transcript; raises `ValueError` for a text that is none.

    What stands before the first turn is the system message where turns are marked by ###, as Alpaca's are.
    """
    if turns := _read_chatml(text):
        return turns
    marks = _find_marks(text)
    roles = [_role_of(mark) for mark in marks]
    preamble = text[: marks[0].start()].strip() if marks else ""
    if "user" not in roles or "assistant" not in roles or (preamble and not _may_be_system(preamble, marks[0])):
        raise ValueError("is a text without turns; give it as a file of its own (.txt or .md), or --map its columns")
    turns = [Message("system", preamble)] if preamble else []
    for role, mark, end in zip(roles, marks, [mark.start() for mark in marks[1:]] + [len(text)], strict=True):
        _add_turn(turns, role, text[mark.end() : end].strip())
    return turns


def _find_marks(text: str) -> list[re.Match[str]]:
    """Return what begins the turns. Where ### marks them, "Question:" or "User:" at a line's beginning is part of a turn."""
    marks = list(_TURN.finditer(text))
    hashed = [mark for mark in marks if "###" in mark[0]]
    if {"user", "assistant"} <= {_role_of(mark) for mark in hashed}:
        return hashed
    return [mark for mark in marks if mark["name"]]


def _role_of(mark: re.Match[str]) -> str:
    return _SPEAKERS.get((mark["name"] or mark["marked"]).lower(), "input")


def _may_be_system(preamble: str, mark: re.Match[str]) -> bool:
    """Whether what precedes the first mark is part of the prompt, rather than a document in which somebody is quoted."""
    return "###" in mark[0] and not _HEADING.search(preamble)


def _add_turn(turns: list[Message], role: str, content: str) -> None:
    """Append a turn; an input belongs to the question before it, and one that is empty says that there is none."""
    if role != "input":
        turns.append(Message(role, content))
    elif content and turns and turns[-1].role == "user":
        turns[-1] = Message("user", f"{turns[-1].content}\n\n{content}")
    elif content:
        turns.append(Message("user", content))


def _read_chatml(text: str) -> list[Message]:
    """Return the turns of a text that is ChatML from beginning to end, none for another, such as one about ChatML."""
    if "<|im_start|>" not in text or _MARKER.sub("", _CHATML.sub("", text)).strip():
        return []
    turns = []
    for number, match in enumerate(_CHATML.finditer(text), start=1):
        role, content = match["role"].strip(), match["content"].strip()
        if role.lower() not in _ROLES:
            remedy = "write it as a turn of user or assistant, or leave it out"
            raise UnknownRoleError(f"turn {number} of ChatML: {show_value(role)} is nobody we know; {remedy}")
        if content or match["end"]:  # else the request to answer, which some leave at the end
            turns.append(Message(_ROLES[role.lower()], content))
    return turns


def read_document(text: str) -> Iterator[tuple[int, list[Message] | Broken]]:
    """Yield (line, turns) for each conversation that can be made of a document, or what is wrong with a part of it."""
    try:
        yield 1, read_transcript(text)
        return
    except UnknownRoleError as error:
        yield 1, Broken(str(error))
        return
    except ValueError:
        pass
    covered = _FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)  # a comment in code is no heading
    headings = list(_HEADING.finditer(covered))
    yield from _read_sections(text, headings) if headings else _read_passages(text)


def _read_sections(text: str, headings: Sequence[re.Match[str]]) -> Iterator[tuple[int, list[Message] | Broken]]:
    before = text[: headings[0].start()]
    if "\n" in before.strip() or len(before.strip()) > _TITLE:
        words = len(before.split())
        line = _line_of(text, len(before) - len(before.lstrip()))
        yield line, Broken(f"holds {words} words before the first heading, which answer nothing; put a heading above them")
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        if body := text[heading.end() : end].strip():
            yield _line_of(text, heading.start()), [Message("user", heading[1].strip()), Message("assistant", body)]


def _read_passages(text: str) -> Iterator[tuple[int, list[Message]]]:
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
