"""Pirate speech by rules: second best to samples that somebody wrote, for those who have none.

Only words of a short list change, and only in running text. Code, formulas, links, addresses, paths, quotations, numbers,
names and words in capitals stay as they are, letter by letter; so do capitalised words but at the beginning of a sentence,
and there too where a second one follows. Code is known by its looks where nothing sets it apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from trainer.workshop.near import hash_text

# What looks like code without being set apart as such. Four plain words in a row are prose, whatever stands around them.
_NO_PROSE = r"(?![^\n]*\b[A-Za-z]?[a-z]+ [a-z]+ [a-z]+ [a-z]+\b)"
_NAME = r"[A-Za-z_$][\w$]*(?:(?:\.|::|->)[\w$]+|\[[^\]\n]*\])*"
_BRACKETS = r"\((?:[^()\n]|\((?:[^()\n]|\([^()\n]*\))*\))*\)"
_CALL = rf"\b[A-Za-z_][\w.]*(?!\(e?s\)){_BRACKETS}"  # but not "friend(s)"
_STRING = r"(?:'[^'\n]*'(?!\w)|\"[^\"\n]*\")"
_OPERAND = rf"(?:not )?(?:{_CALL}|{_NAME}|{_STRING}|[\d.]+)"
_CONDITION = rf"{_OPERAND}(?:(?: ?(?:[=!<>]=?|<>|[-+*/%&|]+) ?| (?:is|not in|in|and|or) ){_OPERAND}){{0,9}}"
_PLAIN = r"(?!(?:and|or|is|are|of|for)\b)"  # what stands beside a sign by chance
_COMPARED = (
    rf"(?:\b\w+ is (?:not )?null\b|\b{_PLAIN}{_NAME}(?: ?(?:[=!<>]=|<>|=) ?| [<>] )"
    rf"(?:{_STRING}|{_PLAIN}(?:{_CALL}|{_NAME})|-?\d[\w.]*))"
)
_TYPES = "(?:(?:let|const|var|my|local|export|static|final|auto|int|float|double|char|bool|string|String) +)*"
_ASSIGNED = rf"{_NO_PROSE}{_TYPES}{_NAME}(?:, ?{_NAME})*(?: ?: ?[\w\[\], |.]+)? ?(?:[-+*/%&|:^]|\*\*|//|<<|>>)?=(?!=) ?\S[^\n]*"
_CALLED = rf"(?:(?:await|return|yield|throw|raise|new) )*{_NAME}(?!\(e?s\)){_BRACKETS}(?:\.\w+{_BRACKETS})*[;,]?"
_SIMPLE = rf"(?:{_CALLED}|{_ASSIGNED}|return(?: [\w.\[\]'\"-]+)?|break|continue|pass)"
_PYTHON = (
    rf"(?:for [\w, ()*]{{1,60}} in {_CONDITION}|(?:el)?if {_CONDITION}|while {_CONDITION}"
    rf"|(?:async )?with {_CONDITION}(?: as \w+)?|(?:async )?def \w+\([^\n]*\)(?: *-> *[^\n:]+)?"
    r"|class \w+(?:\([^\n]*\))?|try|else|finally"
    rf"|except(?: [\w.]+| ?\([\w., ]+\))?(?: as \w+)?|case [^\n ]+) ?:(?: {_SIMPLE})?"
)
_BRACED = (  # what ends in ; { or } with a keyword or an operator; "Hello {name}" does not
    r"[^\n]*\{"
    r"|(?:(?:function|class|struct|enum|interface|return|const|let|var|import|export|try|catch|else|fn)\b"
    r"|(?:for|if|while) ?\()[^\n]*\}"
    rf"|(?![-*•] |\d+[.)] ){_NO_PROSE}(?=[^\n]*[;}}][ \t]*$)"
    rf"[^\n]*(?:[=-]>|(?<![=!<>])=|{_CALL}|\{{[^{{}}\n]*?[:;=(])[^\n]*[;}}]"
    rf"|{_NO_PROSE}(?:return|break|continue|import|using|package|throw|echo)\b[^\n]*;"
    r"|(?:public|private|static|void|int|char|float|double|bool|struct)\b[^\n]*;"
    r"|[a-z]+(?:-[a-z]+)*: ?\S+(?: \S+){0,3};"
)
_OTHER = (
    r"(?:from [\w.]+ )?import [\w.*, ]+|\$ (?=[a-z./])[^\n]+|>>> [^\n]+|// [^\n]+"
    r"|(?:SELECT|select) [^\n]+ (?:FROM|from) [^\n]+|(?:INSERT INTO|DELETE FROM|UPDATE|(?:CREATE|ALTER|DROP) TABLE) [^\n]+"
    r"|(?:WHERE|AND|OR|HAVING|ON) [^\n]*[=<>][^\n]*"
)
_CODE_LINE = (  # which does not end as a sentence does
    rf"^[ \t]*(?:{_PYTHON}|{_BRACED}|{_SIMPLE}|{_OTHER}|(?=[^\n]*[=<>!&|]){_CONDITION})(?<![a-z][.!?])[ \t]*$"
)
_KEPT = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`"  # code
    rf"|{_CODE_LINE}"
    r"|\$\$.*?\$\$|\$[^$\n]{1,200}\$|\\\(.*?\\\)|\\\[.*?\\\]"  # formulas
    r"|^(?: {4}|\t)[^\n]*$"  # indented code
    r"|\]\([^)\s]*\)|<[^<>\n]{1,200}>|\{[^{}\n]*\}"  # targets of links, markup, placeholders
    r"|\"[^\"\n]*\"|“[^”\n]*”"  # quotations
    r"|[=(\[{+] ?'[^'\n]*'(?!\w)(?:, ?'[^'\n]*'(?!\w))*"  # the same in code
    r"|(?:https?|ftp|mailto|file)://?\S+|www\.\S+|[^\s@]{1,64}@[^\s@]{1,255}\.\w+"  # links and addresses
    r"|\b(?:[\w-]{1,63}\.)+[A-Za-z]{2,24}(?::\d+)?[/?#](?:[^\s<>()\"']*[^\s<>()\"'.,;:!?])?"  # the same without a scheme
    r"|(?<!\w)[@#][A-Za-z_][\w-]*"  # names and tags
    r"|(?<![\w-])(?:--[A-Za-z][\w-]*|-[A-Za-z](?![\w-])|-[A-Za-z][\w-]*(?==))(?:=[^\s,;]*[^\s,;.!?])?"  # options
    rf"|\bfor \w+(?:, ?\w+)* in {_CALL}:?|{_COMPARED}(?: (?:and|or) {_COMPARED})*|{_CALL}"  # code within a sentence
    r"|(?<!\w)[~./\\]{0,9}\w+(?:[/\\]\w[\w.-]*)+|\b[\w-]{1,63}(?:\.[A-Za-z]\w*)+\b|\b\w*[\d_]\w*\b"  # paths, files
    r"|\bNo\. ?\d+"  # a number, not a denial
    r"|\b[A-Z]{2,}\b"  # what is written in capitals
    r"|\b[A-Z][\w'’-]+(?: [A-Z][\w'’-]+){0,9}"
    r"(?:(?: (?:of|and|the|for|in|on|at))+(?: [A-Z][\w'’-]+)+)+",  # titles: Lord of the Rings
    re.DOTALL | re.MULTILINE,
)
_BEGINS_WITH_CODE = re.compile(_CODE_LINE, re.MULTILINE)
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
_SELDOM_IN_NAMES = ("is", "are", "am")  # "Is Paris large?" asks, three capitalised words behind it make a title
_ALONE = {"no": "nay"}  # only where a comma or the end of the sentence follows
_KEEP_ING = frozenset(
    "thing king ring bring sing spring string wing swing sting cling fling sling ping during wring sibling darling sterling "
    "herring pudding shilling inning offing ceiling ding zing bling evening morning".split()
)
_SENTENCE_START = re.compile(r"(?:\A|[.!?:]['\")]*\s+|\n\s*(?:[-*•>#]+\s+|\d+[.)]\s+)?)\Z")
_TITLES = "Mr Mrs Ms Dr Prof St Mt Ft Capt Gen Col Lt Sgt Rev Hon Sen Gov vs".split()  # a name follows
_ABBREVIATIONS = frozenset([*_TITLES, *"Inc Ltd Co Corp Jr Sr No Nos etc approx Dept Fig fig Vol vol e.g i.e".split()])
_AFTER_TITLE = re.compile(rf"\b(?:{'|'.join(_TITLES)}|e\.g|i\.e)\.\s+\Z")
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
        word, after = match[0], text[match.end() :]
        if not word[0].isupper() or word.startswith(("I ", "I'")):
            return _change_word(word, after)
        may_change = _starts_sentence(before + text[: match.start()]) and not _is_in_name(word, after)
        return _change_word(word, after) if may_change else word

    return _TOKEN.sub(change, text)


def _starts_sentence(before: str) -> bool:
    tail = before[-80:]
    return not before.strip() or (bool(_SENTENCE_START.search(tail)) and not _AFTER_TITLE.search(tail))


def _is_in_name(word: str, after: str) -> bool:
    """Whether a word at a sentence's beginning is likely part of a name, such as My Fair Lady or Hello Kitty."""
    least = 3 if word.lower() in _SELDOM_IN_NAMES else 1
    return word.lower() in _WORDS and bool(re.match(rf"(?: [A-Z][a-z]+){{{least}}}", after))


def _change_word(word: str, after: str) -> str:
    plain = word.lower().replace("’", "'")
    if plain in _ALONE and re.match(r"[,.!]", after):
        new = _ALONE[plain]
    elif plain in _PHRASES or plain in _WORDS:
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
    if not re.match(r"[A-Z][a-z']*[ ,]", text) or _BEGINS_WITH_CODE.match(text):
        return text
    opening, address = _OPENINGS[number % len(_OPENINGS)], _ADDRESSES[number // 8 % len(_ADDRESSES)]
    end = _find_first_end(text.split("\n", 1)[0])
    if end is not None and address:
        text = f"{text[:end]}{address}{text[end:]}"
    return opening + text


def _find_first_end(line: str) -> int | None:
    """Return where the first sentence ends; abbreviations end none, and within what is kept nothing is put."""
    kept = [match.span() for match in _KEPT.finditer(line)]
    for match in _FIRST_END.finditer(line):
        end = match.start()
        is_short = line[:end].rsplit(maxsplit=1)[-1].lstrip("(") in _ABBREVIATIONS and line[end] == "."
        if not is_short and not any(first <= end <= last for first, last in kept):
            return end
    return None


STYLES: Mapping[str, Callable[[str], str]] = {"pirate": speak}
