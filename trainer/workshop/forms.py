"""The forms in which people have conversations, told apart by what a record holds, and made one: messages.

| form | a record holds |
|---|---|
| chat | `messages` (or `conversation`, `turns`, …): a list of `role` and `content` |
| sharegpt | `conversations`: a list of `from` and `value` |
| pairs | a question and an answer under any of their usual names: prompt/completion, instruction/output, question/answer, … |
| text | `text` alone: a transcript ("User: … Assistant: …"), or prose, which `trainer.workshop.prose` makes into turns |
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.formats import ROLES, Message
from trainer.errors import InputError
from trainer.schema import show_value, suggest
from trainer.workshop.prose import read_transcript

FORMS = ("chat", "sharegpt", "pairs", "text")
NAMES: dict[str, tuple[str, ...]] = {  # what we call a field: what others do, likeliest first
    "messages": ("messages", "conversations", "conversation", "turns", "dialogue", "dialog", "chat"),
    "question": ("prompt", "instruction", "question", "query", "user", "human", "input_text", "problem", "source", "input"),
    "answer": (
        "completion", "response", "output", "answer", "assistant", "reply", "chosen", "target", "output_text", "solution",
        "text_output",
    ),
    "context": ("context", "input", "passage", "background"),
    "system": ("system", "system_prompt", "system_message"),
    "text": ("text", "content", "document", "body"),
    "category": ("category", "subject", "topic", "label", "class", "task", "source_dataset"),
    "group": ("group", "conversation_id", "dialogue_id", "thread_id", "session_id"),
}  # fmt: skip
_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "question": "user", "instruction": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "bard": "assistant",
    "model": "assistant", "ai": "assistant", "answer": "assistant", "response": "assistant", "agent": "assistant",
}  # fmt: skip
_ROLE_KEYS = ("role", "from", "speaker", "author")
_CONTENT_KEYS = ("content", "value", "text", "message")
_LABELS = ("category", "group")  # what tells of a conversation and is none of it
_KEY = re.compile(r"[\s-]+")


@dataclass(frozen=True)
class Draft:
    """A conversation as it was found: not yet known to be sound."""

    messages: tuple[Message, ...]
    category: str = ""
    group: str = ""
    unread: tuple[str, ...] = ()  # which of the two held no text, but a list or an object


def parse_mapping(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return {field: column} for texts such as "question=Frage"; raises `InputError` for what is none."""
    mapping, problems = {}, []
    for pair in pairs:
        field, sign, column = (part.strip() for part in pair.partition("="))
        if not sign or not column:
            problems.append(f"--map {pair}: write FIELD=COLUMN, such as question=prompt")
        elif field not in NAMES:
            problems.append(f"--map {pair}: {show_value(field)} is not one of {', '.join(NAMES)}{suggest(field, NAMES)}")
        mapping[field] = column
    if problems:
        raise InputError(problems)
    return mapping


def read_record(record: Any, mapping: Mapping[str, str], form: str = "") -> Draft:
    """Return the conversation of a record; raises `ValueError` saying why it holds none.

    ``mapping`` tells the columns of fields where their names are not the usual ones; ``form`` is one of `FORMS` or "" to look.
    """
    if isinstance(record, str):
        record = {"text": record}
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, dict):
        raise ValueError(f"is {show_value(record)}, which holds no conversation")
    fields = _find_fields(record, mapping)
    form = form or _detect(fields, record)
    system = _as_text(fields.get("system"), "system")
    if form == "pairs":
        messages = _read_pair(fields)
    elif form == "text":
        messages = read_transcript(_as_text(fields.get("text"), "text"))
    else:
        messages = _read_turns(_unwrap(fields.get("messages")))
    messages = drop_blank_system(messages)
    if system and messages and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    unread = tuple(name for name in _LABELS if isinstance(fields.get(name), (list, dict)))
    category, group = ("" if name in unread else _as_text(fields.get(name), name) for name in _LABELS)
    return Draft(tuple(messages), category, group, unread)


def drop_blank_system(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without system messages that say nothing: many exports have one in each conversation."""
    return [message for message in messages if message.role != "system" or message.content.strip()]


def _find_fields(record: dict[Any, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """Return the record's values under our own names, of columns that are filled; a column is taken for one field only.

    "source" is a question beside "target" alone: elsewhere it tells where a record comes from.
    """
    columns = {_KEY.sub("_", str(key).strip().lower()): key for key in record}
    fields: dict[str, Any] = {}
    for field, column in mapping.items():
        if column not in record:
            raise ValueError(f'has no "{column}", which --map names for {field}{suggest(column, map(str, record))}')
        fields[field] = record[column]
    used = set(mapping.values())
    for field, names in NAMES.items():
        if field in fields:
            continue
        keys = [columns[name] for name in names if name in columns and (name != "source" or "target" in columns)]
        key = next((key for key in keys if key not in used and not _is_nothing(record[key])), None)
        if key is not None:
            fields[field] = record[key]
            used.add(key)
    return fields


def _detect(fields: dict[str, Any], record: dict[Any, Any]) -> str:
    if isinstance(_unwrap(fields.get("messages")), list):
        return "chat"
    if "question" in fields and "answer" in fields:
        return "pairs"
    if "text" in fields:
        return "text"
    shown = ", ".join(show_value(key) for key in list(record)[:6]) or "nothing"
    missing = next((name for name in ("question", "answer") if name in fields), "")
    if missing:
        other = "answer" if missing == "question" else "question"
        raise ValueError(f"has no {other}, or an empty one, only {missing} among {shown}; --map {other}=COLUMN names it")
    raise ValueError(f"holds no conversation that we know, only {shown}; --map FIELD=COLUMN tells what is what")


def _read_pair(fields: dict[str, Any]) -> list[Message]:
    question, answer = (_take_one(_unwrap(fields.get(name))) for name in ("question", "answer"))
    if isinstance(answer, list) and all(isinstance(item, str) for item in answer):
        raise ValueError(f"answer: {show_value(answer)} is a list of {len(answer)} texts; which one is the answer?")
    if isinstance(answer, list) and (turns := _read_turns(answer))[0].role != "assistant":  # the whole conversation
        return turns
    if isinstance(question, list) or isinstance(answer, list):  # both as lists of messages, as preference data has them
        turns = [*_read_turns(question)] if isinstance(question, list) else [Message("user", _as_text(question, "question"))]
        said = _read_turns(answer) if isinstance(answer, list) else [Message("assistant", _as_text(answer, "answer"))]
        return turns + said
    asked, context = _as_text(question, "question"), _as_text(fields.get("context"), "context")
    asked = f"{asked}\n\n{context}" if context.strip() else asked
    return [Message("user", asked), Message("assistant", _as_text(answer, "answer"))]


def _read_turns(turns: Any) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"messages: {show_value(turns)} is not a list of messages")
    return [_read_turn(index, turn) for index, turn in enumerate(turns)]


def _read_turn(index: int, turn: Any) -> Message:
    where = f"messages[{index}]"
    if isinstance(turn, str):  # a bare list of texts: the user begins
        return Message("assistant" if index % 2 else "user", turn)
    if not isinstance(turn, dict):
        raise ValueError(f"{where}: {show_value(turn)} is not a message")
    role, content = _pick(turn, _ROLE_KEYS), _pick(turn, _CONTENT_KEYS)
    if isinstance(content, list):  # parts, as multimodal data has them
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ValueError(f"{where}.content: holds something that is no text")
        content = "\n".join(part["text"] for part in content)
    if not isinstance(role, str) or role.strip().lower() not in _ROLES:
        raise ValueError(f"{where}.role: {show_value(role)} is nobody we know{suggest(str(role), ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"{where}.content: {show_value(content)} is not a text")
    return Message(_ROLES[role.strip().lower()], content)


def _pick(turn: dict[Any, Any], keys: Sequence[str]) -> Any:
    """Return the first of some values that is filled, else the first that is there: an empty turn is told as such."""
    there = [turn[key] for key in keys if key in turn]
    return next((value for value in there if not _is_nothing(value)), there[0] if there else None)


def _take_one(value: Any) -> Any:
    """Return the text of a list of exactly one text, all else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


def _unwrap(value: Any) -> Any:
    """Return what a text holds if it holds a list of messages in JSON, as cells of tables do; another list is a text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return inner if isinstance(inner, list) and inner and all(map(_is_message, inner)) else value
    return value


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(any(key in item for key in keys) for keys in (_ROLE_KEYS, _CONTENT_KEYS))


def _as_text(value: Any, name: str) -> str:
    """Return a value as text, "" for none; raises `ValueError` that begins with the field's ``name``."""
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        raise ValueError(f"{name}: {show_value(value)} is not a text")
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else str(value)


def _is_nothing(value: Any) -> bool:
    return (
        value is None
        or value == []
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )
