"""JSON Schema validation that reports every problem at once, in words for people.

A problem reads ``<source>: <path>: <value> <rule>``, for example
``inventory/pair.yml: $.all.children.cluster.hosts.mini.slots: 0 is below the minimum 1``.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

Schema = Mapping[str, Any]

_TYPE_NAMES = {
    "object": "a table of keys and values",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


def load_schema(name: str) -> Schema:
    """Return the JSON Schema ``trainer/schemas/<name>.json``."""
    text = resources.files("trainer").joinpath("schemas", f"{name}.json").read_text("utf-8")
    schema: Schema = json.loads(text)
    return schema


def find_problems(value: object, schema: Schema, source: str, root: str = "$") -> list[str]:
    """Return one line for each way in which ``value`` breaks ``schema``, ordered by path; empty if there is none.

    ``source`` names the file (or option) that the value came from; ``root`` is what paths begin with, "" for none.
    """
    errors = sorted(_Validator(schema).iter_errors(value), key=lambda e: [_sort_key(p) for p in e.absolute_path])
    mistyped = {tuple(e.absolute_path) for e in errors if e.validator == "type"}  # what else is wrong there is of no use
    errors = [e for e in errors if e.validator == "type" or tuple(e.absolute_path) not in mistyped]
    return [f"{source}: {where}: {text}" if where else f"{source}: {text}" for e in errors for where, text in _tell(e, root)]


def suggest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``; did you mean …?`` if a known word is close to ``word``, otherwise an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def show_value(value: object) -> str:
    """Return ``value`` as it would be written in JSON, shortened to fit a line, without anything a terminal obeys."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has not, or too deep
        text = reprlib.repr(value)
    text = escape_text(text)
    return text if len(text) <= 60 else text[:57] + "..."


def escape_text(text: str) -> str:
    """Return ``text`` with all that is not printable, line breaks among it, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def join_path(root: str, parts: Iterable[str | int]) -> str:
    """Return ``root`` and ``parts`` as one dotted path: ``$.hosts[0].slots``; odd keys in quotes."""
    path = root
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            key = part if re.fullmatch(r"[\w.:-]+", part) else show_value(part)
            path += f".{key}" if path else key
    return path


def _tell(error: ValidationError, root: str) -> list[tuple[str, str]]:
    """Return (path, text) pairs; several for keys that are unknown or missing, which belong to their own paths."""
    parts = list(error.absolute_path)
    known: Mapping[str, Any] = error.schema.get("properties", {}) if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        unknown = [key for key in error.instance if key not in known]
        return [(join_path(root, [*parts, str(key)]), f"unknown key{suggest(str(key), known)}") for key in unknown]
    if error.validator == "required" and isinstance(error.instance, Mapping):
        required: Any = error.validator_value
        missing = [key for key in required if key not in error.instance]
        # jsonschema raises one error per missing key, each listing all: keep the one that this error is about
        return [(join_path(root, [*parts, key]), "is missing") for key in missing if f"'{key}'" in error.message]
    if "propertyNames" in error.absolute_schema_path:
        return [(join_path(root, parts), f"the name {show_value(error.instance)} {_rule(error)}")]
    return [(join_path(root, parts), f"{show_value(error.instance)} {_rule(error)}")]


def _rule(error: ValidationError) -> str:
    """Return the rule that was broken, as the rest of a sentence that starts with the value."""
    limit: Any = error.validator_value
    custom = error.schema.get("x-rule") if isinstance(error.schema, Mapping) else None
    match str(error.validator):
        case "type":
            kinds = [limit] if isinstance(limit, str) else limit
            if "number" in kinds and isinstance(error.instance, (int, float)) and not isinstance(error.instance, bool):
                return "is not a finite number"
            return "is not " + " or ".join(_TYPE_NAMES[kind] for kind in kinds)
        case "minimum":
            return f"is below the minimum {limit}"
        case "maximum":
            return f"is above the maximum {limit}"
        case "exclusiveMinimum":
            return f"is not above {limit}"
        case "exclusiveMaximum":
            return f"is not below {limit}"
        case "enum":
            return f"is not one of {', '.join(map(str, limit))}{suggest(str(error.instance), map(str, limit))}"
        case "minLength" | "minItems" | "minProperties":
            return "is empty" if limit == 1 else f"has fewer than {limit} entries"
        case "uniqueItems":
            return "lists something twice"
        case "pattern":
            return str(custom) if custom else f"does not match {limit}"
        case _:
            return f"is not allowed ({error.message})"


def _is_integer(_: object, value: object) -> bool:
    """Plain JSON Schema takes 2.0 for a whole number; no code of ours does."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_: object, value: object) -> bool:
    """TOML can write nan and inf, which no comparison with a limit would catch, and integers beyond any float."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _check_pattern(_: object, pattern: str, value: object, __: Schema) -> Iterator[ValidationError]:
    """JSON Schema's ``$`` is the end of the text; Python's would let a line break pass before it."""
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _sort_key(part: str | int) -> tuple[str, int]:
    return ("", part) if isinstance(part, int) else (str(part), 0)


_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {"pattern": _check_pattern},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number}),
)
