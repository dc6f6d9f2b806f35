"""What a user asked for, read and checked: a new run, or an earlier one to go on with, as the inputs of a launch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainer.cluster.inventory import DEFAULT_INVENTORY, load_inventory
from trainer.cluster.launch import Again, Inputs, read_plan
from trainer.cluster.plan import RunPlan
from trainer.config import RunConfig
from trainer.data.checked import check_data
from trainer.errors import EXIT_OK, InputError
from trainer.paths import PROJECT_ROOT, cache_dir, find_beside, runs_dir
from trainer.recipe import DEFAULT_RECIPE, load_config

T = TypeVar("T")
_HOW = ("checkpoint.", "launch.")  # settings of how a run is done, not of what comes out of it
_BY_CONTENT = {"model.source": "model", "model.revision": "model", "data.path": "data"}  # compared by fingerprint


@dataclass(frozen=True)
class Request:
    """What the user asked for. ``resume`` names a run to go on with, True means the latest; None makes a new one."""

    inventory: str = DEFAULT_INVENTORY
    recipe: str = DEFAULT_RECIPE
    overrides: Sequence[str] = ()
    name: str = ""
    allow_slow_link: bool = False
    resume: str | bool | None = None
    branch: bool = False


def read_inputs(request: Request) -> Inputs:
    """Return cluster, configuration and data folder; raises `InputError` with the problems of all three together."""
    problems: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except InputError as error:
            problems.extend(error.problems)
            return None

    again = attempt(lambda: _find_earlier(request))
    earlier = again.plan if again else None
    cluster = attempt(lambda: load_inventory(find_beside(_choose_inventory(request, earlier), PROJECT_ROOT)))
    config = attempt(lambda: load_config(_choose_recipe(request, earlier), request.overrides))
    name = attempt(lambda: _choose_name(request, earlier))
    data = attempt(lambda: find_beside(config.data.path, PROJECT_ROOT)) if config else None
    if data:
        attempt(lambda: check_data(data, cache_dir(), remembers=False))
    if cluster is None or config is None or name is None or data is None or problems:
        raise InputError(problems)
    if again and not again.is_branch:
        refuse(find_changes(again.plan.config, config), again)
    return Inputs(cluster=cluster, config=config, data=data, name=name, again=again)


def find_changes(before: RunConfig, now: RunConfig) -> list[str]:
    """Return which settings differ that a run's results depend on, as "section.key: was 1, now 2"."""
    old, new = _flatten(before), _flatten(now)
    names = [name for name in new if not name.startswith(_HOW) and name not in _BY_CONTENT]
    return [f"{name}: was {old.get(name)}, now {new[name]}" for name in names if old.get(name) != new[name]]


def compare_content(again: Again, fingerprints: dict[str, str]) -> list[str]:
    """Return what is not what the earlier run had: the model in any case, the data unless the run branches off."""
    old = again.plan.fingerprints
    names = ["model"] if again.is_branch else ["model", "data"]
    return [f"{name}: was {old[name][:12]}, now {fingerprints[name][:12]}" for name in names if old[name] != fingerprints[name]]


def refuse(changed: list[str], again: Again) -> None:
    """Raise `InputError` with what has ``changed`` since an earlier run, if anything has."""
    if changed:
        told = "\n".join(f"  {text}" for text in changed)
        remedy = "" if again.is_branch else "; put it back, or start a new run from its newest checkpoint with --branch"
        raise InputError(f"{again.folder}: cannot go on, for something has changed{remedy}:\n{told}")


def _find_earlier(request: Request) -> Again | None:
    """Return the run to go on with, None for a new one; raises `InputError` if there is none, or nothing is left to do."""
    if request.resume is None or request.resume is False:
        if request.branch:
            raise InputError("--branch: needs --resume RUN, the run to branch off from")
        return None
    name = request.resume if isinstance(request.resume, str) else "latest"
    folder = find_beside(name, runs_dir()).resolve()
    plan = read_plan(folder)
    if not request.branch and read_exit_code(folder) == EXIT_OK:
        raise InputError(f"{folder}: has ended well, there is nothing to go on with; --branch starts a new run from its end")
    return Again(folder=folder, plan=plan, is_branch=request.branch)


def read_exit_code(folder: Path) -> int | None:
    """Return how a run ended, None while it has not."""
    try:
        code = json.loads((folder / "summary.json").read_text("utf-8"))["exit_code"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return code if isinstance(code, int) else None


def _choose_inventory(request: Request, earlier: RunPlan | None) -> str:
    return earlier.inventory if earlier and earlier.inventory and request.inventory == DEFAULT_INVENTORY else request.inventory


def _choose_recipe(request: Request, earlier: RunPlan | None) -> str | Path:
    return earlier.run_dir / "config.toml" if earlier and request.recipe == DEFAULT_RECIPE else request.recipe


def _choose_name(request: Request, earlier: RunPlan | None) -> str:
    if request.name:
        return _check_name(request.name)
    return earlier.name if earlier else _name_after(request.recipe)


def _flatten(config: RunConfig) -> dict[str, object]:
    return {f"{section}.{key}": value for section, table in config.as_dict().items() for key, value in table.items()}


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"--name {json.dumps(name)}: use up to 64 letters, digits, '-', '_' and '.'; it names a folder")
    return name


def _name_after(recipe: str) -> str:
    """Return a run's name made of its recipe's, with what a folder should not have in its name left out."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(recipe).stem).strip("-")[:64] or "run"
