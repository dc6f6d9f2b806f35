"""What is written down about the configuration is what the code does."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from trainer.config import RunConfig, recipe_schema
from trainer.recipe import RECIPES, load_config
from trainer.reference import PAGE_FILE, SCHEMA_FILE, render_page, render_schema


@pytest.mark.parametrize(("path", "render"), [(SCHEMA_FILE, render_schema), (PAGE_FILE, render_page)])
def test_the_committed_reference_is_up_to_date(path: Path, render: typing.Callable[[], str]) -> None:
    """Schema and page are what `python -m trainer.reference` writes now."""
    assert path.read_text("utf-8") == render(), f"{path.name} is out of date: run python -m trainer.reference"


def test_schema_and_dataclasses_have_the_same_keys_and_defaults() -> None:
    """Walking the committed schema and the dataclasses in parallel meets the same sections, keys and defaults."""
    schema = json.loads(SCHEMA_FILE.read_text("utf-8"))["properties"]
    config = RunConfig()
    assert set(schema) - {"extends"} == {section.name for section in dataclasses.fields(config)}
    for section in dataclasses.fields(config):
        rules: dict[str, Any] = schema[section.name]["properties"]
        values = dataclasses.asdict(getattr(config, section.name))
        assert {key: rule["default"] for key, rule in rules.items()} == json.loads(json.dumps(values))


def test_every_default_passes_its_own_rule() -> None:
    """The default configuration, written out in full, is a valid recipe."""
    assert not list(Draft202012Validator(recipe_schema()).iter_errors(RunConfig().as_dict()))


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_every_shipped_recipe_is_valid(recipe: str) -> None:
    """Each file in trainer/recipes loads."""
    assert load_config(recipe).style.demo_prompts[0] == "Tell me about greek and roman history like a pirate"


def test_every_key_is_explained() -> None:
    """Each key of each section has a sentence of its own that ends with a full stop."""
    for section in recipe_schema()["properties"].values():
        texts = [rule["description"] for rule in section["properties"].values()]
        assert all(text.endswith(".") for text in texts)
        assert len(set(texts)) == len(texts)
