"""The frozen `RunConfig`: every setting of a run with its default, limits and explanation, and nowhere else.

`recipe_schema` derives the JSON Schema of a recipe from these classes; ``trainer/schemas/recipe.json`` is its committed
form for editors. `trainer.recipe` reads recipes.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    dropout: float = _key(
        0.0, "Dropout on the adapter's input; its masks depend on the number of ranks.", minimum=0, exclusiveMaximum=1
    )
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
    checkpointing: bool = _key(
        False,
        "Keep only what enters each adapted layer and go backward through one layer at a time, computing it again: the same "
        "gradients in less memory, for about a third more time.",
    )
    eval_every: int = _key(50, "Steps between validations; 0 for only before and after training.", minimum=0)
    compare_every: int = _key(
        100, "Steps between comparisons of all ranks' parameters, which must be the same bit by bit; 0: never.", minimum=0
    )
    seed: int = _key(0, "Seed of the adapter's initial values, the order of samples and dropout.", minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    packing: bool = _key(True, "Put the samples of a micro-batch into one row without padding, none of which sees another.")
    fused_loss: bool = _key(True, "Compute the loss and its gradient in portions, so that all logits never exist at once.")
    kernels: bool = _key(True, "On a CPU, compute norms, rotations, activations and attention by NumPy instead of MLX.")
    trunk_cache: bool = _key(
        True,
        "Compute what enters the first adapted layer once for each sample and keep it on disk.",
    )
    trunk_cache_gib: float = _key(
        20.0, "Most disk space for what trunk_cache keeps, of all models and data together, in GiB.", exclusiveMinimum=0
    )
    balance: Literal["speed", "tokens"] = _key(
        "speed", "Give ranks work by their measured speed, or the same number of tokens each."
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = _key(50, "Steps between checkpoints, from which a run goes on; 0 counts no steps.", minimum=0)
    every_s: float = _key(300.0, "Seconds after which a checkpoint is due in any case; 0 looks at no clock.", minimum=0)
    keep: int = _key(2, "How many of the newest checkpoints each host keeps; that of the best step stays as well.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    backend: Literal["mpi", "ring", "jaccl"] = _key(
        "mpi",
        "What moves the gradients between ranks: Open MPI, MLX's ring over TCP, or RDMA over Thunderbolt 5 (jaccl). "
        "Open MPI starts the ranks in any case.",
    )
    threads_per_rank: int = _key(0, "CPU threads of each rank; 0 shares the host's cores among its ranks.", minimum=0)
    start_timeout_s: float = _key(300.0, "Seconds in which all ranks must have started and agreed.", exclusiveMinimum=0)
    on_loss: Literal["stop", "wait", "continue"] = _key(
        "continue",
        "When a rank or a host is lost: end the run, wait for the host, or go on without it from the last checkpoint until it "
        "is back.",
    )
    min_hosts: int = _key(1, "With fewer hosts than that a run does not go on; it waits.", minimum=1)
    wait_s: float = _key(3600.0, "Longest wait for hosts that were lost, in seconds; then the run ends.", minimum=0)
    silence_s: float = _key(8.0, "Seconds without a sign of life after which a host counts as lost.", exclusiveMinimum=1)
    stall_s: float = _key(
        60.0,
        "A rank ends itself if a step takes so many seconds, and ten times as long as usual.",
        exclusiveMinimum=0,
    )


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
    speed: SpeedConfig = field(
        default_factory=SpeedConfig,
        metadata={"description": "How work is saved: exactly, and each can be switched off."},
    )
    checkpoint: CheckpointConfig = field(
        default_factory=CheckpointConfig,
        metadata={"description": "What a run that was interrupted or lost goes on from."},
    )
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


def parse_config(table: Mapping[str, Any]) -> RunConfig:
    """Return the `RunConfig` of tables that have passed `recipe_schema`."""
    sections = {f.name: f.default_factory for f in dataclasses.fields(RunConfig)}
    built = {name: _build(sections[name], values) for name, values in table.items()}
    return RunConfig(**built)


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
