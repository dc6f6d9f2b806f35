"""Pirate speech by rules: second best to samples that somebody wrote, for those who have none.

Only words of a short list change, and only in running text. Code, formulas, links, addresses, paths, quotations, numbers,
names and words in capitals stay as they are, letter by letter; so do capitalised words but at the beginning of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from trainer.workshop.near import hash_text

_KEPT = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`"  # code
    r"|\$\$.*?\$\$|\$[^$\n]{1,200}\$|\\\(.*?\\\)|\\\[.*?\\\]"  # formulas
    r"|^(?: {4}|\t)[^\n]*$"  # indented code
    r"|\]\([^)\s]*\)|<[^<>\n]{1,200}>|\{[^{}\n]*\}"  # targets of links, markup, placeholders
    r"|\"[^\"\n]*\"|“[^”\n]*”"  # quotations
    r"|(?:https?|ftp|mailto|file)://?\S+|www\.\S+|\S+@\S+\.\w+"  # links and addresses
    r"|(?<!\w)[~./\\]*\w+(?:[/\\]\w[\w.-]*)+|\b[\w-]+(?:\.[A-Za-z]\w*)+\b|\b\w*[\d_]\w*\b"  # paths, files
    r"|\b[A-Z]{2,}\b"  # what is written in capitals
    r"|\b[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*"
    r"(?:(?: (?:of|and|the|for|in|on|at))+(?: [A-Z][\w'’-]+)+)+",  # titles: Lord of the Rings
    re.DOTALL | re.MULTILINE,
)
_PHRASES: Mapping[str, str] = {
    "there is": "there be", "there are": "there be", "it is": "'tis", "it's": "'tis", "it was": "'twas", "i am": "I be",
    "i'm": "I be",
    "you are": "ye be", "you're": "ye be", "they are": "they be", "they're": "they be", "we are": "we be", "we're": "we be",
    "that is": "that be", "that's": "that be", "what is": "what be", "what's": "what be", "here is": "here be",
    "here's": "here be",
    "he is": "he be", "he's": "he be", "she is": "she be", "she's": "she be", "there's": "there be",
    "is not": "ain't", "isn't": "ain't", "are not": "ain't", "aren't": "ain't", "am not": "ain't", "you've": "ye've",
    "you'll": "ye'll", "you'd": "ye'd", "of course": "aye",
}  # fmt: skip
_WORDS: Mapping[str, str] = {
    "you": "ye", "your": "yer", "yours": "yers", "yourself": "yerself", "yourselves": "yerselves",
    "my": "me", "myself": "meself",
    "of": "o'", "and": "an'", "for": "fer", "is": "be", "are": "be", "am": "be", "them": "'em", "old": "ol'", "never": "ne'er",
    "hello": "ahoy", "hi": "ahoy", "hey": "ahoy", "yes": "aye", "friend": "matey", "friends": "mateys", "sir": "cap'n",
    "very": "mighty", "yeah": "aye",
}  # fmt: skip
_IN_NAMES = ("old", "very", "never", "friend", "sir", "hey", "hi")
_ALONE = {"no": "nay"}  # only where a comma or the end of the sentence follows
_KEEP_ING = frozenset(
    "thing king ring bring sing spring string wing swing sting cling fling sling ping during wring sibling darling sterling "
    "herring pudding shilling inning offing ceiling ding zing bling evening morning".split()
)
_SENTENCE_START = re.compile(r"(?:\A|[.!?:]['\")]*\s+|\n\s*(?:[-*•>#]+\s+|\d+[.)]\s+)?)\Z")
_TOKEN = re.compile(
    "|".join(rf"\b{phrase.replace(' ', '[ ]')}\b(?!['’])" for phrase in sorted(_PHRASES, key=len, reverse=True))
    + r"|[A-Za-z]+(?:['’][A-Za-z]+)*",
    re.IGNORECASE,
)
_OPENINGS = ("Arr! ", "Aye! ", "Ahoy! ", "Yo ho! ", "Avast! ", "")
_ADDRESSES = (", matey", ", me hearty", ", shipmate", "")
_FIRST_END = re.compile(r"(?<=[a-z]{2})(?=[.!](?:\s|\Z))")


def speak(text: str) -> str:
    """Return ``text`` in pirate speech; the same for the same text, always."""
    spoken = _outside(text, _rewrite)
    return _adorn(spoken, hash_text(text))


def _outside(text: str, rewrite: Callable[[str, str], str]) -> str:
    """Return ``text`` with what lies between the kept stretches rewritten; ``rewrite`` also gets the text before."""
    pieces, place = [], 0
    for kept in _KEPT.finditer(text):
        pieces += [rewrite(text[place : kept.start()], text[:place]), kept[0]]
        place = kept.end()
    return "".join([*pieces, rewrite(text[place:], text[:place])])


def _rewrite(text: str, before: str) -> str:
    def change(match: re.Match[str]) -> str:
        word = match[0]
        starts = (
            bool(_SENTENCE_START.search((before + text[: match.start()])[-80:])) or not before + text[: match.start()].strip()
        )
        if word[0].isupper() and not starts and not word.startswith(("I ", "I'")):
            return word
        return _change_word(word, text[match.end() :])

    return _TOKEN.sub(change, text)


def _change_word(word: str, after: str) -> str:
    plain = word.lower().replace("’", "'")
    if plain in _ALONE and re.match(r"[,.!]", after):
        new = _ALONE[plain]
    elif plain in _PHRASES or plain in _WORDS:
        if (
            word[0].isupper()
            and re.match(r" [A-Z][a-z]", after)
            and plain in ("old", "very", "never", "friend", "sir", "hey", "hi")
        ):
            return word  # Old Trafford
        new = _PHRASES.get(plain) or _WORDS[plain]
    elif (
        word.islower()
        and len(word) > 4
        and plain.endswith("ing")
        and plain not in _KEEP_ING
        and re.search("[aeiouy]", plain[:-3])
    ):
        return f"{word[:-1]}'"
    else:
        return word
    return _capitalise(new) if word[0].isupper() else new


def _capitalise(word: str) -> str:
    place = next((i for i, c in enumerate(word) if c.isalpha()), 0)
    return word[:place] + word[place].upper() + word[place + 1 :]


def _adorn(text: str, number: int) -> str:
    """Put a call before the first sentence and a form of address behind it, where it is prose."""
    if not re.match(r"[A-Z][a-z']*[ ,]", text):
        return text
    opening, address = _OPENINGS[number % len(_OPENINGS)], _ADDRESSES[number // 8 % len(_ADDRESSES)]
    first = text.split("\n", 1)[0]
    kept = [match.span() for match in _KEPT.finditer(first)]
    end = next((m.start() for m in _FIRST_END.finditer(first) if not any(a <= m.start() <= b for a, b in kept)), None)
    if end is not None and address:
        text = f"{text[:end]}{address}{text[end:]}"
    return opening + text


STYLES: Mapping[str, Callable[[str], str]] = {"pirate": speak}
