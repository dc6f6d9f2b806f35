"""Personal data and secrets in a text: found, named, and masked.

What a pattern alone would confuse with ordinary numbers is proved: telephone numbers by the `phonenumbers` library, card
numbers by their check digit (Luhn), bank accounts by theirs (ISO 13616). Keys are told by the prefixes that their issuers
gave them.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass

SECRET_KINDS = ("key", "password", "private key", "token")


@dataclass(frozen=True)
class Found:
    """A stretch of a text, [start, end), and what it is."""

    kind: str
    start: int
    end: int

    @property
    def is_secret(self) -> bool:
        """Whether it opens something, rather than tells of somebody."""
        return self.kind in SECRET_KINDS


_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b"
)
_EXAMPLE = re.compile(r"@(?:[\w-]+\.)*example(?:\.(?:com|org|net))?$|\.(?:invalid|test|example)$", re.IGNORECASE)  # RFC 2606
_KEYS = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z2-7]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{60,251}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|sk-(?:ant-|proj-|live-)?[A-Za-z0-9_-]{20,200}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,200}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,250}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,250}"
    r"|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"
    r"|dop_v1_[a-f0-9]{64}|AGE-SECRET-KEY-1[A-Z0-9]{58})(?![A-Za-z0-9])"
)
_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}")
_PRIVATE = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_PASSWORD = re.compile(
    r"\b(?:password|passwd|pwd|passphrase|secret|api[_-]?key|access[_-]?token|auth[_-]?token)\b[\"']?\s*(?:[:=]|\bis\b)\s*[\"']?"
    r"(?P<value>[^\s\"'<>{}$(),;]{8,})",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(  # up to the last @ before a slash: passwords hold @ and : unescaped more often than they should
    r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/]{0,64}:(?P<value>[^\s/\"'<>]{3,128}|[^\s:/@]{3,128})@(?=[\w\[])", re.IGNORECASE
)
_DIGITS = re.compile(r"(?<![\w./:-])\+?\(?\d[\d ().\-/]{5,22}\d(?![\w-]|[.,:/]\d)")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\w)")
_IP6 = re.compile(  # from 2000::/3, where all global ones are; 2000::2 is likelier a slice than an address
    r"(?<![\w:.])(?=[23][0-9a-f]{3}:)(?=[0-9:]*[a-f]|(?:\d+:{1,2}){2}\d)"
    r"[0-9a-f]{4}(?:::?[0-9a-f]{1,4}){0,7}(?:::)?(?!\w|:[\w:]|\.\d)",
    re.IGNORECASE,
)
_DIGIT_HINTS = tuple("0123456789")
_KEY_HINTS = (
    "AKIA", "ASIA", "gh", "glpat", "sk-", "sk_", "rk_", "pk_", "xox", "AIza", "ya29", "hf_", "npm_", "pypi-", "SG.", "dop_v1_",
    "AGE-",
)  # fmt: skip
_PASSWORD_HINTS = ("pass", "pwd", "secret", "key", "token")


def _holds(text: str, hints: tuple[str, ...]) -> bool:
    """Whether a text holds any of some words: a hundred times faster than the patterns that then look closely."""
    for hint in hints:  # noqa: SIM110 - half the time of any()
        if hint in text:
            return True
    return False


def find_personal(text: str, region: str = "US") -> list[Found]:
    """Return personal data and secrets in ``text``, by place, none inside another; ``region`` is that of national numbers.

    Where a secret and something else overlap, the secret stays; secrets that overlap become one.
    """
    ordered = sorted(_find_all(text, region), key=lambda one: (one.start, -one.end))
    secrets: list[Found] = []
    others: list[Found] = []
    for one in filter(lambda one: one.is_secret, ordered):
        if secrets and one.start < secrets[-1].end:
            secrets[-1] = Found(secrets[-1].kind, secrets[-1].start, max(one.end, secrets[-1].end))
        else:
            secrets.append(one)
    for one in filter(lambda one: not one.is_secret, ordered):
        after = bisect.bisect_right(secrets, one.start, key=lambda secret: secret.end)
        is_free = after == len(secrets) or one.end <= secrets[after].start
        if is_free and (not others or one.start >= others[-1].end):
            others.append(one)
    return sorted(secrets + others, key=lambda one: one.start)


def mask(text: str, found: list[Found]) -> str:
    """Return ``text`` with each find replaced by its kind in brackets, such as [EMAIL]."""
    for one in reversed(found):
        text = f"{text[: one.start]}[{one.kind.upper()}]{text[one.end :]}"
    return text


def _find_all(text: str, region: str) -> Iterator[Found]:
    has_digits = _holds(text, _DIGIT_HINTS)
    if "-----BEGIN" in text:
        yield from (Found("private key", *match.span()) for match in _PRIVATE.finditer(text))
    if has_digits and _holds(text, _KEY_HINTS):
        yield from (Found("key", *match.span()) for match in _KEYS.finditer(text))
    if "eyJ" in text:
        yield from (Found("token", *match.span()) for match in _TOKEN.finditer(text))
    if _holds(text.lower(), _PASSWORD_HINTS):
        yield from (Found("password", *m.span("value")) for m in _PASSWORD.finditer(text) if _looks_secret(m["value"]))
    if "@" in text:
        if "://" in text:
            yield from (Found("password", *match.span("value")) for match in _URL_PASSWORD.finditer(text))
        yield from (Found("email", *match.span()) for match in _EMAIL.finditer(text) if not _EXAMPLE.search(match[0]))
    if has_digits:
        yield from _find_numbers(text, region)


def _find_numbers(text: str, region: str) -> Iterator[Found]:
    yield from (Found("card number", *m.span()) for m in _CARD.finditer(text) if _is_card(m[0]))
    yield from (Found("account number", *m.span()) for m in _IBAN.finditer(text) if _is_iban(m[0]))
    yield from (Found("social security number", *m.span()) for m in _SSN.finditer(text))
    yield from (Found("ip address", *m.span()) for m in _IP.finditer(text) if _is_public_address(m[0]))
    if ":" in text:
        yield from (Found("ip address", *m.span()) for m in _IP6.finditer(text) if _is_public_address(m[0]))
    for match in _DIGITS.finditer(text):
        if _is_phone(match[0], region, text[max(0, match.start() - 24) : match.start()]):
            yield Found("phone", *match.span())


def _looks_secret(value: str) -> bool:
    """A password that is written out mixes kinds of characters; a word in a sentence about passwords does not."""
    value = value.rstrip(".!?")
    kinds = [any(map(str.islower, value)), any(map(str.isupper, value)), any(map(str.isdigit, value)), not value.isalnum()]
    return len(value) >= 8 and (sum(kinds) >= 3 or (kinds[2] and sum(kinds) >= 2 and len(set(value)) >= 6))


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 4:
        return False
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    code = text.replace(" ", "")
    return 15 <= len(code) <= 34 and int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1


def _is_public_address(text: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


_PUBLIC_NUMBERS = (3, 4, 5)  # toll-free, premium rate, shared cost: of organisations, not of people
_CALL = re.compile(r"(?:phone|tel|call|mobile|cell|fax|whatsapp|text me|number is|reach (?:me|us))\W", re.IGNORECASE)


def _is_phone(text: str, region: str, before: str) -> bool:
    """Whether ``text`` is a telephone number. Digits without a plus or the usual gaps are one only where the words say so."""
    digits = sum(map(str.isdigit, text))
    if not 7 <= digits <= 15:
        return False
    grouped = re.fullmatch(r"\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}", text)
    if not (text.startswith("+") or grouped or _CALL.search(before + " ")):
        return False
    import phonenumbers

    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return False
    if phonenumbers.number_type(number) in _PUBLIC_NUMBERS:
        return False
    is_written_as_one = grouped or text.startswith("+")
    return bool(phonenumbers.is_possible_number(number) if is_written_as_one else phonenumbers.is_valid_number(number))
