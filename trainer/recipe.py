"""Reading recipes: a TOML file laid over the one that it ``extends``, overrides laid over both, all problems at once.

A recipe has the sections and keys of `trainer.config.RunConfig`; what it leaves out keeps the default written there. Its
top-level key ``extends`` names one that we ship, or a path from the recipe's own folder.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import RunConfig, parse_config, recipe_schema
from trainer.errors import InputError
from trainer.schema import escape_text, find_problems, suggest

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "pirate"


def load_config(recipe: str | Path = DEFAULT_RECIPE, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a recipe, with ``section.key=value`` overrides laid over it.

    ``recipe`` is the name of one that we ship (``trainer/recipes``) or a path to a TOML file. Raises `InputError`
    with every problem of the recipe and the overrides.
    """
    path = find_recipe(recipe)
    source = _show_path(path)
    table, problems = _read_recipe(path)
    for override in overrides:
        problems += _apply_override(table, override)
    if not problems:
        config = parse_config(table)
        problems = [f"{source}: {text}" for text in _find_conflicts(config)]
        problems += [f"-o {text}" for text in _find_idle(config, overrides)]
    if problems:
        raise InputError(problems)
    return config


def find_recipe(recipe: str | Path, folder: Path = Path()) -> Path:
    """Return the file of a recipe given by name or by path from ``folder``.

    Raises `InputError` with the names that exist.
    """
    shipped = None if "/" in str(recipe) else _find_file(RECIPES, f"{recipe}.toml")
    if path := shipped or _find_file(folder, recipe):
        return path
    names = sorted(p.stem for p in RECIPES.glob("*.toml"))
    hint = suggest(str(recipe), names)
    shown = escape_text(str(recipe)) or '""'
    raise InputError(f"{shown}: there is no such recipe{hint or '; there are ' + ', '.join(names)} (or give a .toml file)")


def _find_file(folder: Path, name: str | Path) -> Path | None:
    try:
        path = folder / Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, the home of nobody, a null byte
        return None


def _read_recipe(path: Path, extended_by: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """Return the tables of a recipe laid over those of the recipe that it ``extends``, and the problems of both."""
    if path.resolve() in extended_by:
        raise InputError(f"{_show_path(path)}: extends: the recipe extends itself")
    schema = recipe_schema()
    schema["properties"]["extends"] = {"type": "string"}
    table = _read_toml(path)
    problems = find_problems(table, schema, _show_path(path), root="")
    base = table.pop("extends", None)
    if not isinstance(base, str):
        return table, problems
    try:
        merged, base_problems = _read_recipe(find_recipe(base, path.parent), (*extended_by, path.resolve()))
    except InputError as error:
        return table, [*(f"{_show_path(path)}: extends: {problem}" for problem in error.problems), *problems]
    for section, values in table.items():
        below = merged.get(section)
        merged[section] = {**below, **values} if isinstance(below, dict) and isinstance(values, dict) else values
    return merged, base_problems + problems


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{_show_path(path)}:{line}: is not UTF-8 text; save the file as UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{_show_path(path)}: is nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and what int() says to thousands of digits
        raise InputError(f"{_show_path(path)}: not valid TOML: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _apply_override(table: dict[str, Any], override: str) -> list[str]:
    """Lay one ``section.key=value`` over ``table``; returns its problems, in which case the table stays as it was."""
    source = f"-o {escape_text(override)}"
    if not override.isascii() and re.search("[\ud800-\udfff]", override):
        return [f"{source}: is not UTF-8 text"]
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not equals or not dot:
        return [f"{source}: write it as section.key=value, such as optimizer.learning_rate=2e-4"]
    known = {f"{s}.{k}" for s, sub in recipe_schema()["properties"].items() for k in sub["properties"]}
    if path.strip() not in known:
        return [f"{source}: unknown key{suggest(path.strip(), known)}"]
    is_text = recipe_schema()["properties"][section]["properties"][key].get("type") == "string"
    value = _parse_value(text.strip(), is_text)
    problems = find_problems({section: {key: value}}, recipe_schema(), source, root="")
    if not problems and isinstance(table.setdefault(section, {}), dict):
        table[section][key] = value
    return problems


def _parse_value(text: str, is_text: bool) -> Any:
    """Return ``text`` read as a TOML value, or as it stands where it is none (paths and names need no quotes).

    ``is_text`` says that the setting is one: then 1e5 is the name of a commit, not a number.
    """
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    is_value = len(table) == 1 and (isinstance(table["value"], str) or not is_text)
    return table["value"] if is_value else text


def _find_conflicts(config: RunConfig) -> list[str]:
    """Return what a schema cannot say: settings that contradict each other."""
    problems = []
    if config.train.steps and config.schedule.warmup_steps >= config.train.steps:
        problems.append(
            f"schedule.warmup_steps: {config.schedule.warmup_steps} leaves nothing of train.steps = {config.train.steps}"
        )
    if config.adapter.num_layers == 0:
        problems.append("adapter.num_layers: 0 adapts no layer; use a positive number, or -1 for all layers")
    if config.style.markers and len(config.style.markers) < config.style.min_markers:
        problems.append(
            f"style.min_markers: {config.style.min_markers} is more than the {len(config.style.markers)} style.markers"
        )
    return problems


def _find_idle(config: RunConfig, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that would change nothing, which nobody means to give."""
    if not config.train.steps:
        return []
    idle = [override for override in overrides if override.partition("=")[0].strip() == "train.epochs"]
    steps = config.train.steps
    return [f"{escape_text(o)}: has no effect while train.steps = {steps}; add -o train.steps=0" for o in idle]


def _show_path(path: Path) -> str:
    return f"trainer/recipes/{path.name}" if path.parent == RECIPES else str(path)
