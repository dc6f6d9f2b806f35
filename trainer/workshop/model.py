"""The tokenizer of a recipe's model, brought by a process that may import MLX."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.cluster.supervise import Supervisor
from trainer.config import RunConfig, render_toml
from trainer.errors import FlotillaError, InputError
from trainer.events import Event
from trainer.paths import PROJECT_ROOT
from trainer.recipe import load_config
from trainer.workers import load_by_name
from trainer.workshop.settings import Model


def find_model(recipe: str, overrides: Sequence[str]) -> tuple[RunConfig, Model]:
    """Return a recipe's configuration and the folder of its model, fetched or converted if need be."""
    config = load_config(recipe, overrides)
    return config, Model(folder=_fetch(config), trust_remote_code=config.model.trust_remote_code)


def load_tokenizer(model: Model) -> Any:
    """Return a model's tokenizer."""
    return load_by_name("trainer.tokenizer:load_tokenizer")(model.folder, model.trust_remote_code)


def _fetch(config: RunConfig) -> Path:
    fetched: list[Path] = []

    def on_event(event: Event) -> None:
        if event["event"] == "fetched":
            fetched.append(Path(event["model"]))
        elif event["event"] == "notice":
            print(event["text"], file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="flotilla-") as scratch:
        recipe = Path(scratch) / "config.toml"
        recipe.write_text(render_toml(config), "utf-8")
        command = [sys.executable, "-P", "-m", "trainer", "fetch", "--config", str(recipe)]
        outcome = Supervisor(on_event, lambda _: None).run(command, {"PYTHONPATH": str(PROJECT_ROOT)})
    if outcome.exit_code == InputError.exit_code:
        raise InputError(outcome.message)
    if outcome.exit_code:
        raise FlotillaError(outcome.message)
    return fetched[0]
