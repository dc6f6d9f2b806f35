"""Pieces of a page. Whatever came from others, such as names, replies and messages, is text here and never markup."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean(text: object) -> str:
    """Return text fit for a page: without controls, halves of surrogate pairs, and what turns the direction of writing."""
    return _NO_TEXT.sub("\ufffd", str(text))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element. Children that are text and all attributes are escaped; underscores in attributes are hyphens."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    shown = Markup("").join(
        Markup(' {}="{}"').format(escape(key), _number(value) if isinstance(value, float) else clean(value))
        for key, value in named.items()
    )
    inner = Markup("").join(child if isinstance(child, Markup) else escape(clean(child)) for child in children)
    return Markup("<{}{}>{}</{}>").format(escape(name), shown, inner, escape(name))


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def figure(source: str, key: str, value: Any, text: str) -> Markup:
    """Return a figure as it is read, with where it comes from: ``key`` is the JSON pointer (RFC 6901) of ``value``."""
    return tag("data", text, value=json.dumps(value), data_of=source, data_key=f"/{key}")


def escape_key(name: str) -> str:
    """Return a name as a part of a figure's key, though it has a slash in it."""
    return name.replace("~", "~0").replace("/", "~1")


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


class Figures:
    """Looks figures up in sources, the first that has one, and writes them so that a reader can find them there again."""

    def __init__(self, **tables: Any) -> None:
        self._tables = tables

    def get(self, key: str) -> Any:
        """Return the value at ``key``, such as "share_in_style/after"; None if there is none, or no finite number."""
        return self._find(key)[1]

    def _find(self, key: str) -> tuple[str, Any]:
        found = [(source, _look_up(table, key)) for source, table in self._tables.items()]
        return next((pair for pair in found if pair[1] is not None), found[0])

    def show(self, key: str, form: str | Callable[[Any], str]) -> Markup:
        """Return the figure at ``key`` in a form such as "{:.1%}"; raises `LookupError` where it is no number."""
        source, value = self._find(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise LookupError(key)
        return figure(source, key, value, form.format(value) if isinstance(form, str) else form(value))

    def count(self, key: str, noun: str) -> Markup:
        """Return the number at ``key`` with what it counts: "1 step", "2 steps"."""
        return join(self.show(key, "{:,}"), f" {noun}" if self.get(key) == 1 else f" {noun}s")

    def has(self, *keys: str) -> bool:
        """Return whether there is a number at each of ``keys``."""
        return all(isinstance(self.get(key), (int, float)) for key in keys)


def _look_up(table: Any, key: str) -> Any:
    value = table
    for part in map(_unescape, key.split("/")):
        try:
            value = value[int(part)] if isinstance(value, (list, tuple)) else value[part]
        except (LookupError, TypeError, ValueError):
            return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def join(*parts: object) -> Markup:
    """Return text and markup as one piece of markup."""
    return Markup("").join(part if isinstance(part, Markup) else escape(clean(part)) for part in parts)
