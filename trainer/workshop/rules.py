"""The rules that look at one sample alone: what is repaired, what is told, and what a sample is dropped for."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.data.formats import Message
from trainer.workshop.forms import drop_blank_system
from trainer.workshop.near import normalise
from trainer.workshop.personal import find_personal, mask

# C0 but tab and line feed, DEL, C1, zero width characters that join nothing, direction overrides, the byte order mark, tags
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ufff9-\ufffb\u202a-\u202e\u2066-\u2069]")
_BROKEN = re.compile("[\ud800-\udfff\ufffd]")
_MANY_BLANKS = re.compile(r"\n{4,}")
_MOJIBAKE = re.compile("Ã[\x80-\xbf©¨¤¶¼]|â€[™œ\x9d“”¦]|Â[\xa0«»°]")
_MACHINE = re.compile(  # what a model says of itself, whatever else it says
    r"\bas an? (?:AI |large |AI-based )*language model\b|\bas an AI(?: assistant)?,? (?:I|my|it)\b"
    r"|\bI(?:'m| am) (?:just |only )?an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|\bmy training data (?:only goes|ends)\b"
    r"|\b(?:I|my)\b[^.!?\n]{0,60}\bknowledge cut-?off\b|\bknowledge cut-?off\b[^.!?\n]{0,60}\b(?:I|my)\b"  # others explain it
    r"|\bI (?:do not|don't) have (?:personal (?:opinions|experiences|feelings|beliefs)|access to real-time)\b"
    r"|\bas of my last (?:update|knowledge)\b",
    re.IGNORECASE,
)
_REFUSING = re.compile(
    r"\b(?:sorry|apologi[sz]e|unfortunately|afraid)\b.{0,40}\b(?:can(?:no|')t|can not|unable|not able|won't|will not)\b"
    r"|^\W*I (?:can(?:no|')t|can not|am (?:not able|unable) to|won't|will not|must decline)\b"
    r"|\bI(?:'m| am) (?:not able|unable) to (?:assist|help|fulfil|comply|provide|support|create|engage|answer)\b"
    r"|\b(?:against|violates?) (?:my|our|the) (?:policy|policies|guidelines|programming)\b|\bethical guidelines\b"
    r"|\b(?:inappropriate|not appropriate|harmful or illegal|illegal or unethical)\b",
    re.IGNORECASE,
)
_MACHINE_HINTS = (
    " ai",
    "language model",
    "artificial",
    "cutoff",
    "cut-off",
    "training data",
    "i do not",
    "i don't",
    "as of my",
)
_REGRET_HINTS = ("sorry", "apolog", "unfortunately", "afraid", "i can", "i am", "i'm", "i won", "i will", "i must")
_DENIAL_HINTS = ("can't", "cannot", "can not", "unable", "not able", "won't", "will not", "decline")
_REASON_HINTS = ("polic", "guideline", "programming", "appropriate", "illegal")
_BOILERPLATE_HINTS = ("lorem ipsum", "cookies", "javascript", "newsletter")
_SHORT = 80
_ASKING = 40  # characters of a question that are enough to ask for a label
_LABEL = re.compile(r"\W*(?:n/?a|none|test)\W*", re.IGNORECASE)
_SENTENCE = re.compile(  # what would end it begins with a comma or a space: nothing is looked for at other characters
    r"(?:[^.!?;\n, ]+|(?!,? but (?:I can|you can|you could|let me|let us|here)\b)[, ])+[.!?;]*|, but\b", re.IGNORECASE
)
_LEAST_HELP = 12  # words beside a refusal that make it an answer
_BOILERPLATE = re.compile(
    r"^\W*(?:lorem ipsum dolor|click here to (?:subscribe|read more)|all rights reserved|\[(?:deleted|removed)\]|n/?a|none|null"
    r"|nan|todo|tbd|test|<noinput>|no(?:ne)? (?:answer|response)(?: (?:given|provided))?|placeholder)\W*$"
    r"|\blorem ipsum dolor\b|\bthis site uses cookies\b|\benable javascript\b|\bsubscribe to our newsletter\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Seen:
    """What a rule saw in a message: [start, end) of its content."""

    rule: str
    message: int
    start: int
    end: int
    text: str


class Dropped(Exception):  # noqa: N818 - no error: the fate of a sample
    """Raised with the rule that a sample is dropped by, and what the rule saw."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule, self.text = rule, text


def repair_text(text: str) -> tuple[str, bool]:
    """Return ``text`` with line breaks of one kind, without control characters, composed (NFC); and whether it changed.

    Raises `Dropped` where characters were lost before: nobody can guess them.
    """
    if not text.isascii() and (found := _BROKEN.search(text)):
        raise Dropped("encoding", f"holds a character that was lost in reading or writing, at position {found.start()}")
    if text.isascii() and text.isprintable():
        return text, False
    mended = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    mended = _MANY_BLANKS.sub("\n\n\n", _CONTROL.sub("", mended))
    return mended, mended != text


def repair_label(text: str) -> str:
    """Return the name of a category or group, with what was lost in reading or writing marked: it is counted, not learned."""
    return _BROKEN.sub("\ufffd", text)


def join_turns(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation as training takes it; raises `Dropped` with what it lacks.

    A system message that says nothing goes; two turns of one speaker become one; a system message that comes late is dropped
    with its sample; a greeting of the assistant's before the first question goes, and so do questions that nobody answers at
    the end.
    """
    kept = drop_blank_system(messages)
    if (empty := next((i for i, message in enumerate(kept) if not message.content.strip()), None)) is not None:
        raise Dropped("empty-turn", f"messages[{empty}].content: is empty")
    joined: list[Message] = []
    for message in kept:
        if joined and joined[-1].role == message.role:
            joined[-1] = Message(message.role, f"{joined[-1].content}\n\n{message.content}")
        else:
            joined.append(message)
    if late := next((i for i, message in enumerate(joined) if i and message.role == "system"), 0):
        raise Dropped("schema", f"messages[{late}]: a system message may only come first")
    spoken = list(itertools.dropwhile(lambda m: m.role == "assistant", (m for m in joined if m.role != "system")))
    while spoken and spoken[-1].role == "user":
        spoken.pop()
    if not spoken:
        raise Dropped("schema", "has no question with an answer")
    return [message for message in joined if message.role == "system"] + spoken


def find_identical(messages: Sequence[Message]) -> Iterator[Seen]:
    """Yield each answer that repeats the question before it, or an earlier answer word for word."""
    said: set[str] = set()
    for index, (one, two) in enumerate(itertools.pairwise(messages), start=1):
        words = normalise(two.content)
        if two.role != "assistant" or not words:
            continue
        if words == normalise(one.content):
            yield Seen("identical-turns", index, 0, len(two.content), "the answer repeats the question")
        elif words in said and len(words) > 20:
            yield Seen("identical-turns", index, 0, len(two.content), "the answer repeats an earlier one")
        said.add(words)


def find_refusals(messages: Sequence[Message]) -> Iterator[Seen]:
    """Yield answers that refuse and offer nothing else, that speak of being a language model, or that are boilerplate.

    One that refuses and goes on to help was meant so.
    """
    for index, message in enumerate(messages):
        if message.role == "assistant":
            question = messages[index - 1].content if index else ""
            for rule, found in (
                ("refusal", _find_refusal(message.content)),
                ("boilerplate", _find_boilerplate(message.content, question)),
            ):
                if found:
                    yield Seen(rule, index, *found.span(), f'"{found[0].strip():.60}"')


def _holds(text: str, hints: Sequence[str]) -> bool:
    """Whether a text in lower case holds any of some words: a hundred times faster than the pattern that then looks closely."""
    for hint in hints:  # noqa: SIM110 - half the time of any()
        if hint in text:
            return True
    return False


def _find_refusal(text: str) -> re.Match[str] | None:
    lower = text.lower()
    machine = _MACHINE.search(text) if _holds(lower, _MACHINE_HINTS) else None
    if machine or not (_holds(lower, _REASON_HINTS) or (_holds(lower, _DENIAL_HINTS) and _holds(lower, _REGRET_HINTS))):
        return machine
    return _find_bare_refusal(text)


def _find_boilerplate(text: str, question: str) -> re.Match[str] | None:
    is_short = len(text) < _SHORT
    if is_short and len(question) > _ASKING and _LABEL.fullmatch(text):  # one of the answers that a classification may have
        return None
    return _BOILERPLATE.search(text) if is_short or _holds(text.lower(), _BOILERPLATE_HINTS) else None


def _find_bare_refusal(text: str) -> re.Match[str] | None:
    """Return the first refusing sentence of an answer in which little else is said."""
    sentences = list(_SENTENCE.finditer(text))
    refusing = [sentence for sentence in sentences if _REFUSING.search(sentence[0])]
    rest = sum(len(sentence[0].split()) for sentence in sentences if sentence not in refusing) if refusing else 0
    return refusing[0] if refusing and rest < _LEAST_HELP else None


def find_characters(messages: Sequence[Message]) -> Iterator[Seen]:
    """Yield control characters and signs of a wrong encoding, the first of each message."""
    for index, message in enumerate(messages):
        if found := _CONTROL.search(message.content):
            yield Seen("control-character", index, *found.span(), f"U+{ord(found[0]):04X}")
        if message.content.isascii():
            continue
        if found := _MOJIBAKE.search(message.content) or _BROKEN.search(message.content):
            yield Seen("encoding", index, *found.span(), f'"{found[0]}" comes of reading one encoding as another')


def find_private(messages: Sequence[Message], region: str) -> Iterator[Seen]:
    """Yield personal data and secrets; what they are is told, never what they say."""
    for index, message in enumerate(messages):
        for one in find_personal(message.content, region):
            yield Seen("secret" if one.is_secret else "personal-data", index, one.start, one.end, one.kind)


def mask_private(messages: Sequence[Message], region: str) -> tuple[list[Message], list[str]]:
    """Return the messages with personal data and secrets masked, and the kinds that were found."""
    masked, kinds = [], []
    for message in messages:
        found = find_personal(message.content, region)
        kinds += [one.kind for one in found]
        masked.append(Message(message.role, mask(message.content, found)) if found else message)
    return masked, kinds


@functools.cache
def _identifier() -> object:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its own function keeps one in the module

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def list_languages() -> frozenset[str]:
    """Return the languages that `find_language` tells apart."""
    return frozenset(_identifier().nb_classes)  # type: ignore[attr-defined]


def find_language(text: str) -> tuple[str, float]:
    """Return the likeliest language (ISO 639-1) of a text and the probability."""
    name, probability = _identifier().classify(text)  # type: ignore[attr-defined]
    return str(name), float(probability)
