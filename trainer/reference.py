"""The reference of all recipe keys, in the two forms that are committed: for readers and for editors.

``python -m trainer.reference`` writes both; tests/contracts holds them equal to `trainer.config`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import recipe_schema
from trainer.paths import PROJECT_ROOT

SCHEMA_FILE = PROJECT_ROOT / "trainer" / "schemas" / "recipe.json"
PAGE_FILE = PROJECT_ROOT / "docs" / "recipes.md"

_INTRODUCTION = """\
# Recipes

A recipe says what to train, on what, how long, and how success is shown. It is a TOML file; what it leaves out keeps the
default below. `extends = "pirate"` at the top starts from another recipe. `-o section.key=value` changes one key for a
single run. A key that does not exist, or a value out of range, is an error that names the file, the key and the rule.

Shipped recipes: `pirate` (the default: the bundled model, this machine, some minutes) and `pirate-mistral` (Mistral 7B in
4 bits, for a Mac with 16 GB or several of them). For completion in an editor, name `trainer/schemas/recipe.json` as the schema.

This page is made from `trainer/config.py` by `python -m trainer.reference`.
"""


def render_schema() -> str:
    """Return the JSON Schema of a recipe file, ``extends`` included."""
    schema = recipe_schema()
    extends = {"type": "string", "description": "Name or path of the recipe that this one starts from."}
    full = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Flotilla recipe",
        **schema,
        "properties": {"extends": extends, **schema["properties"]},
    }
    return json.dumps(full, indent=2) + "\n"


def render_page() -> str:
    """Return the Markdown page with a table for each section."""
    parts = [_INTRODUCTION]
    for name, section in recipe_schema()["properties"].items():
        parts.append(f"## `[{name}]`\n\n{section['description']}\n\n| key | default | meaning |\n|---|---|---|")
        parts[-1] += "".join(f"\n{_row(key, rule)}" for key, rule in section["properties"].items()) + "\n"
    return "\n".join(parts)


def _row(key: str, rule: dict[str, Any]) -> str:
    choices = f" One of {', '.join(f'`{choice}`' for choice in rule['enum'])}." if "enum" in rule else ""
    return f"| `{key}` | `{json.dumps(rule['default'])}` | {rule['description']}{choices}{_limits(rule)} |"


def _limits(rule: dict[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{text} {rule[name]}" for name, text in words.items() if name in rule]
    return f" ({', '.join(limits)})" if limits else ""


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    print(path.relative_to(PROJECT_ROOT))


if __name__ == "__main__":
    _write(SCHEMA_FILE, render_schema())
    _write(PAGE_FILE, render_page())
