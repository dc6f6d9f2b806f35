"""One portion of a source, curated: what the workers of `data.prepare` do."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import Message, Sample
from trainer.data.tokens import RowMaker
from trainer.workers import load_by_name
from trainer.workshop import rules
from trainer.workshop.forms import Draft, read_record
from trainer.workshop.jsonlist import Broken
from trainer.workshop.near import Signer, hash_text, normalise, normalise_spoken
from trainer.workshop.pirate import STYLES
from trainer.workshop.rules import Dropped
from trainer.workshop.settings import Model, Settings
from trainer.workshop.sources import Portion

INFO = np.dtype(
    [
        ("key", "<u8"),  # hash of the whole row, with the seed: the order of rows
        ("words", "<u8"),  # hash of its normalised turns: equal for exact duplicates
        ("question", "<u8"),  # hash of its first question
        ("group", "<u8"),  # hash of the group that it was given, or of the sample that it was split from; 0 for none
        ("offset", "<i8"),  # where its line begins
        ("size", "<i4"),  # bytes of its line
        ("tokens", "<i4"),  # tokens, 0 if not counted
        ("category", "<i4"),  # number of its category
    ]
)
MOST_EXAMPLES = 5
_LANGUAGE_CERTAINTY = 0.5


@dataclass
class Tally:
    """Counts what rules did, with a few examples each (file:line and what was seen)."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rule: str, where: str, text: str) -> None:
        """Count one."""
        self.counts[rule] += 1
        told = self.examples.setdefault(rule, [])
        if len(told) < MOST_EXAMPLES:
            told.append(f"{where}: {text}" if text else where)

    def join(self, other: Tally) -> None:
        """Add what another counted."""
        self.counts.update(other.counts)
        for rule, told in other.examples.items():
            mine = self.examples.setdefault(rule, [])
            mine += told[: MOST_EXAMPLES - len(mine)]

    def as_dict(self) -> dict[str, Any]:
        """Return the tally as plain tables, the commonest rule first."""
        rules_by_count = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return {rule: {"count": count, "examples": self.examples[rule]} for rule, count in rules_by_count}


@dataclass
class Curated:
    """What a portion became. ``lines[i]``, ``info[i]``, ``bands[i]`` and ``categories[i]`` are one row."""

    lines: list[bytes]
    info: NDArray[Any]
    bands: NDArray[np.uint64]
    categories: list[str]
    num_read: int
    dropped: Tally
    changed: Tally


def make_curator(settings: Settings, model: Model | None) -> Callable[[Portion], Curated]:
    """Return what curates a portion; loads the tokenizer if tokens are to be counted."""
    maker = None
    if model and settings.does("length"):
        maker = RowMaker(load_by_name("trainer.tokenizer:load_tokenizer")(model.folder, model.trust_remote_code))
    return Curator(settings, maker).curate


class Curator:
    """Applies the rules that need no other sample."""

    def __init__(self, settings: Settings, maker: RowMaker | None) -> None:
        self.settings, self._maker, self._signer = settings, maker, Signer()
        self._mapping = dict(settings.mapping)

    def curate(self, portion: Portion) -> Curated:
        """Return what becomes of a portion's records."""
        dropped, changed = Tally(), Tally()
        drafts: list[tuple[str, Draft]] = []
        for line, value in portion.records:
            where = f"{portion.path}:{line}"
            try:
                drafts.append((where, self._curate_one(value, functools.partial(_note, changed, where))))
            except Dropped as fate:
                dropped.add(fate.rule, where, fate.text)
        sized = self._fit(drafts, dropped, changed) if self._maker else [(draft, 0, 0) for _, draft in drafts]
        return self._pack(sized, len(portion.records), dropped, changed)

    def _curate_one(self, value: Any, note: Callable[[str, str], None]) -> Draft:
        draft = self._read(value)
        messages = list(draft.messages)
        if self.settings.system and messages[0].role != "system":
            messages = [Message("system", self.settings.system), *messages]
        messages = [self._repair(message, note) for message in messages]
        joined = rules.join_turns(messages)
        if len(joined) < len(messages):
            note("joined-turns", "")
        if self.settings.does("identical") and (seen := next(rules.find_identical(joined), None)):
            raise Dropped(seen.rule, seen.text)
        if self.settings.does("refusals") and (seen := next(rules.find_refusals(joined), None)):
            raise Dropped(seen.rule, seen.text)
        if self.settings.does("personal"):
            joined = self._mask(joined, note)
        if self.settings.does("language"):
            self._check_language(joined)
        if self.settings.style:
            speak = STYLES[self.settings.style]
            joined = [Message(m.role, speak(m.content)) if m.role == "assistant" else m for m in joined]
            note(f"spoken as {self.settings.style}", "")
        return Draft(tuple(joined), *self._label(draft, note))

    def _label(self, draft: Draft, note: Callable[[str, str], None]) -> tuple[str, str]:
        """Return category and group as they can be written: no reason to lose a sound conversation."""
        for name in draft.unread:
            note(name, f"the {name} is no text; it counts as none")
        category, group = (rules.repair_label(label.strip()) for label in (draft.category, draft.group))
        if (category, group) != (draft.category.strip(), draft.group.strip()):
            note("characters", "")
        return category, group

    def _read(self, value: Any) -> Draft:
        if isinstance(value, Broken):
            raise Dropped("broken", value.text)
        if isinstance(value, bytes):
            value = parse_json(value)
        try:
            draft = read_record(value, self._mapping, self.settings.form)
        except ValueError as error:
            raise Dropped("form", str(error)) from error
        if not draft.messages:
            raise Dropped("schema", "has no question with an answer")
        return draft

    def _repair(self, message: Message, note: Callable[[str, str], None]) -> Message:
        if not self.settings.does("characters"):
            if "\0" in message.content or any("\ud800" <= c <= "\udfff" for c in message.content):
                raise Dropped("encoding", "holds a null character or half of a character")
            return message
        text, is_changed = rules.repair_text(message.content)
        if is_changed:
            note("characters", "")
        return Message(message.role, text.strip() if message.role != "assistant" else text.rstrip().lstrip("\n"))

    def _mask(self, messages: list[Message], note: Callable[[str, str], None]) -> list[Message]:
        masked, kinds = rules.mask_private(messages, self.settings.region)
        if kinds and self.settings.personal == "drop":
            raise Dropped("personal-data", ", ".join(sorted(set(kinds))))
        for kind in kinds:
            note(f"masked {kind}", "")
        return masked

    def _check_language(self, messages: Sequence[Message]) -> None:
        language, certainty = rules.find_language(normalise_spoken(messages)[:2000])
        if language != self.settings.language and certainty > _LANGUAGE_CERTAINTY:
            raise Dropped("language", f"is likely {language}, not {self.settings.language}")

    def _fit(self, drafts: list[tuple[str, Draft]], dropped: Tally, changed: Tally) -> list[tuple[Draft, int, int]]:
        """Return (draft, tokens, origin) of what fits; a conversation that does not is split between its turns."""
        fitting: list[tuple[Draft, int, int]] = []
        for (where, draft), size in zip(drafts, self._count([draft for _, draft in drafts]), strict=True):
            if isinstance(size, str):
                dropped.add("template", where, size)
            elif size <= self.settings.max_tokens:
                fitting.append((draft, size, 0))
            else:
                parts, refused = self._split(draft) if self.settings.overlong == "split" else ([], [])
                origin = hash_text(where if not parts else normalise_spoken(draft.messages))
                fitting += [(part, tokens, origin) for part, tokens in parts]
                if parts:
                    changed.add("split-at-turns", where, f"{size} tokens, {len(parts)} parts")
                    for fate in refused:
                        dropped.add(fate.rule, where, fate.text)
                else:
                    dropped.add("too-long", where, f"{size} tokens, above {self.settings.max_tokens}")
        return fitting

    def _count(self, drafts: Sequence[Draft]) -> list[int | str]:
        """Return the tokens of each draft, or why the model's template refuses it."""
        assert self._maker is not None
        rows = self._maker.make([Sample(draft.messages, Path(), 0) for draft in drafts])
        return [str(row) if isinstance(row, ValueError) else len(row) for row in rows]

    def _split(self, draft: Draft) -> tuple[list[tuple[Draft, int]], list[Dropped]]:
        """Return as few parts as hold all turns that fit: each from a question to an answer, with the system's message.

        And what becomes of each question that does not even fit with its answer alone.
        """
        system = draft.messages[:1] if draft.messages[0].role == "system" else ()
        turns = draft.messages[len(system) :]
        fitting: list[tuple[Draft, int]] = []
        refused: list[Dropped] = []
        start = 0
        while start < len(turns):
            ends = range(start + 2, len(turns) + 1, 2)
            parts = [Draft(system + turns[start:end], draft.category, draft.group) for end in ends]
            sizes = self._count(parts)
            fits = [i for i, size in enumerate(sizes) if isinstance(size, int) and size <= self.settings.max_tokens]
            if fits:
                size = sizes[fits[-1]]
                assert isinstance(size, int)
                fitting.append((parts[fits[-1]], size))
            else:
                refused.append(self._refuse(len(system) + start, sizes[0]))
            start += 2 * (fits[-1] + 1) if fits else 2
        return fitting, refused

    def _refuse(self, index: int, size: int | str) -> Dropped:
        where = f"messages[{index}] and its answer"
        if isinstance(size, str):
            return Dropped("template", f"{where}: {size}")
        return Dropped("too-long", f"{where}: {size} tokens, above {self.settings.max_tokens}")

    def _pack(self, sized: list[tuple[Draft, int, int]], num_read: int, dropped: Tally, changed: Tally) -> Curated:
        info = np.zeros(len(sized), INFO)
        lines, words = [], []
        for row, (draft, tokens, origin) in enumerate(sized):
            line = render_line(draft)
            lines.append(line)
            words.append(normalise_spoken(draft.messages))
            question = next(message.content for message in draft.messages if message.role == "user")
            info[row]["key"] = hash_text(f"{self.settings.seed} {line.decode()}")
            info[row]["words"] = hash_text(words[-1] or line.decode())
            info[row]["question"] = hash_text(normalise(question) or question)
            info[row]["group"] = hash_text(draft.group) if draft.group else origin
            info[row]["size"], info[row]["tokens"] = len(line), tokens
        signed = self._signer.sign(words) if self.settings.does("near") or self.settings.does("leaks") else None
        bands = np.zeros((len(sized), 0), np.uint64) if signed is None else signed
        return Curated(lines, info, bands, [draft.category for draft, _, _ in sized], num_read, dropped, changed)


def _note(tally: Tally, where: str, rule: str, text: str) -> None:
    tally.add(rule, where, text)


def parse_json(raw: bytes) -> Any:
    """Return the value of a line of JSON; raises `Dropped` for one that holds none."""
    try:
        text = raw.decode().removesuffix("\n")
        if not text.strip():
            raise Dropped("empty-line", "the line is empty")
        return _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise Dropped("encoding", f"is not UTF-8 text, from byte {error.start + 1} on") from error
    except json.JSONDecodeError as error:
        raise Dropped("json", f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from error
    except RecursionError as error:
        raise Dropped("json", "is nested too deeply") from error
    except ValueError as error:
        raise Dropped("json", "holds a number that is too long") from error


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Dropped("json", f"has {json.dumps(twice)} twice; which one is meant?")
    return table


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_twice)
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def render_line(draft: Draft) -> bytes:
    """Return a conversation as a line of canonical chat JSONL."""
    row: dict[str, Any] = {"messages": [{"role": m.role, "content": m.content} for m in draft.messages]}
    row |= {"category": draft.category} if draft.category else {}
    row |= {"group": draft.group} if draft.group else {}
    return (_ENCODER.encode(row) + "\n").encode()
