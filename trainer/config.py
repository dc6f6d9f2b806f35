"""The frozen `RunConfig`: every setting of a run with its default, limits and explanation, and nowhere else.

A recipe is a TOML file with the same sections and keys; what it leaves out keeps the default written here, or the
value of the recipe named by its top-level key ``extends`` (one that we ship, or a path from the recipe's folder).
`recipe_schema` derives the JSON Schema from these classes, ``trainer/schemas/recipe.json`` is its committed form for
editors, and `load_config` checks a recipe against it, all problems at once.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import InputError
from trainer.schema import escape_text, find_problems, suggest

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "pirate"
_ONE_LINE = {"pattern": r"^[^\u0000-\u001f\u007f]*$", "x-rule": "holds a control character"}


def _key(default: Any, doc: str, **limits: Any) -> Any:
    """Declare a setting: its default, what it means, and JSON Schema limits such as ``minimum=1``."""
    metadata = {"description": doc, **limits}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    source: str = _key(
        "bundled:smollm2-135m",
        "Where the base model comes from: 'bundled:smollm2-135m', a local folder in MLX or Hugging Face form, "
        "or a Hugging Face id such as 'mlx-community/Mistral-7B-Instruct-v0.3-4bit'.",
        minLength=1,
        **_ONE_LINE,
    )
    revision: str = _key(
        "main", "Branch, tag or commit of a Hugging Face id; ignored for the other sources.", minLength=1, **_ONE_LINE
    )
    trust_remote_code: bool = _key(False, "Let a model run Python code that it carries. Only for models that you trust.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str = _key(
        "datasets/pirate",
        "Folder with train.jsonl, valid.jsonl and test.jsonl of chat samples; relative to the current folder or, "
        "if it is not there, to the project.",
        minLength=1,
        **_ONE_LINE,
    )
    max_tokens: int = _key(512, "Longest sample in tokens, prompt included; a longer one is an error.", minimum=8)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    kind: Literal["lora", "dora"] = _key("lora", "Low-rank adapters (LoRA) or weight-decomposed ones (DoRA).")
    num_layers: int = _key(8, "How many of the model's last layers get adapters; -1 for all.", minimum=-1)
    rank: int = _key(8, "Rank of the adapter matrices.", minimum=1)
    scale: float = _key(
        20.0, "Factor on the adapter's output, as in mlx_lm (PEFT's alpha divided by rank).", exclusiveMinimum=0
    )
    dropout: float = _key(0.0, "Dropout on the adapter's input.", minimum=0, exclusiveMaximum=1)
    keys: tuple[str, ...] = _key(
        (), "Names of the linear layers to adapt, such as 'self_attn.q_proj'; empty for all.", uniqueItems=True
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float = _key(1e-4, "Peak learning rate of AdamW.", exclusiveMinimum=0)
    weight_decay: float = _key(0.01, "Decoupled weight decay.", minimum=0)
    beta1: float = _key(0.9, "Decay of the first moment.", minimum=0, exclusiveMaximum=1)
    beta2: float = _key(0.999, "Decay of the second moment.", minimum=0, exclusiveMaximum=1)
    eps: float = _key(1e-8, "Added to the denominator of the update.", exclusiveMinimum=0)
    clip_norm: float = _key(1.0, "Largest L2 norm of the averaged gradient; 0 turns clipping off.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    kind: Literal["constant", "linear", "cosine"] = _key("cosine", "How the learning rate falls after the warm-up.")
    warmup_steps: int = _key(0, "Steps in which the learning rate rises from near 0 to its peak.", minimum=0)
    final_ratio: float = _key(0.0, "Learning rate at the last step, as a share of the peak.", minimum=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    epochs: int = _key(1, "Passes over the training samples; ignored when steps is set.", minimum=1)
    steps: int = _key(0, "Optimizer steps; 0 means as many as the epochs need.", minimum=0)
    global_batch: int = _key(8, "Samples in one optimizer step, over all ranks together.", minimum=1)
    micro_batch: int = _key(4, "Samples that one rank computes at once; more than that are accumulated.", minimum=1)
    eval_every: int = _key(50, "Steps between validations; 0 for only before and after training.", minimum=0)
    seed: int = _key(0, "Seed of the adapter's initial values, the order of samples and dropout.", minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    backend: Literal["mpi"] = _key("mpi", "What moves the gradients between ranks.")
    threads_per_rank: int = _key(0, "CPU threads of each rank; 0 shares the host's cores among its ranks.", minimum=0)
    start_timeout_s: float = _key(300.0, "Seconds in which all ranks must have started and agreed.", exclusiveMinimum=0)


@dataclass(frozen=True, kw_only=True)
class StyleConfig:
    name: str = _key("", "What the style is called in tables, such as 'pirate'; empty leaves the style figures out.")
    markers: tuple[str, ...] = _key(
        (),
        "Words that betray the style, in lower case; '*' stands for letters, as in \"*in'\".",
        uniqueItems=True,
        items={"type": "string", "minLength": 1},
    )
    min_markers: int = _key(3, "A reply is in style if it has at least this many different markers.", minimum=1)
    demo_prompts: tuple[str, ...] = _key(
        (), "Prompts answered before and after training, side by side.", items={"type": "string", "minLength": 1}
    )
    max_reply_tokens: int = _key(96, "Longest reply to a demonstration or test prompt, in tokens.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run. Equal configurations, data and model give the same run on any number of ranks."""

    model: ModelConfig = field(default_factory=ModelConfig, metadata={"description": "The base model."})
    data: DataConfig = field(default_factory=DataConfig, metadata={"description": "The samples."})
    adapter: AdapterConfig = field(default_factory=AdapterConfig, metadata={"description": "What is trained."})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata={"description": "AdamW."})
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata={"description": "The learning rate over time."})
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"description": "How long and in what portions."})
    launch: LaunchConfig = field(default_factory=LaunchConfig, metadata={"description": "How ranks are started."})
    style: StyleConfig = field(default_factory=StyleConfig, metadata={"description": "How success is shown."})

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain tables, lists and values, fit for JSON and TOML."""
        return _plain(dataclasses.asdict(self))  # type: ignore[no-any-return]


def recipe_schema(cls: type = RunConfig) -> dict[str, Any]:
    """Return the JSON Schema of ``cls``, a dataclass made of `_key` fields and other such dataclasses."""
    hints = typing.get_type_hints(cls)
    properties = {f.name: _field_schema(hints[f.name], f) for f in dataclasses.fields(cls)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


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
    if problems:
        raise InputError(problems)
    return config


def parse_config(table: Mapping[str, Any]) -> RunConfig:
    """Return the `RunConfig` of tables that have passed `recipe_schema`."""
    sections = {f.name: f.default_factory for f in dataclasses.fields(RunConfig)}
    built = {name: _build(sections[name], values) for name, values in table.items()}
    return RunConfig(**built)


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


def _show_path(path: Path) -> str:
    return f"trainer/recipes/{path.name}" if path.parent == RECIPES else str(path)


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    converted = {k: tuple(v) if isinstance(v, list) else float(v) if hints[k] is float else v for k, v in values.items()}
    return cls(**converted)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _field_schema(hint: Any, declared: dataclasses.Field[Any]) -> dict[str, Any]:
    meta = dict(declared.metadata)
    if dataclasses.is_dataclass(hint):
        return {**recipe_schema(typing.cast(type, hint)), **meta}
    if typing.get_origin(hint) is Literal:
        return {"enum": list(typing.get_args(hint)), "default": declared.default, **meta}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": {"type": "string"}, "default": [], **meta}
    names: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
    assert not isinstance(hint, types.UnionType), f"{declared.name}: settings have exactly one type"
    return {"type": names[hint], "default": declared.default, **meta}


def render_toml(config: RunConfig) -> str:
    """Return ``config`` as a recipe with every key, the content of a run's ``config.toml``."""
    sections = []
    for name, table in config.as_dict().items():
        lines = [f"{key} = {_render_value(value)}" for key, value in table.items()]
        sections.append("\n".join([f"[{name}]", *lines]) + "\n")
    return "\n".join(sections)


def _render_value(value: Any) -> str:
    """JSON's texts, numbers, booleans and flat lists are TOML's as well, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
