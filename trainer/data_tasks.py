"""The workshop's commands: ``./inv data.prepare``, ``data.check``, ``data.show``, ``data.stats``, ``data.style``."""

from __future__ import annotations

from collections.abc import Callable

from invoke import Argument, Collection, Context, Exit, Task, task

_RECIPE_HELP = "recipe whose model counts tokens; default pirate"
_OVERRIDE_HELP = "section.key=value laid over the recipe; may be given several times"
_REGION_HELP = "country of telephone numbers without a country code, such as DE"
_FORM_HELP = "chat, sharegpt, pairs or text; default: found by looking at each record"
_MAP_HELP = "FIELD=COLUMN where columns have unusual names, such as 'question=Frage'; may be given several times"
_SYSTEM_HELP = "system message for every conversation that has none"
_SKIP_HELP = "leave out a step: characters, identical, refusals, personal, language, length, exact, near, balance, leaks"
_PATH_HELP = "folder of a data set, or one of its files"


class _Task(Task):  # type: ignore[misc]  # invoke tells no types
    """A task whose short flags are those that every other command has, -r and -o.

    Invoke would deal them out in the order of the parameters, so that -r meant --region; and what a task has not, such as -r,
    it takes for its own without a word.
    """

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the arguments, with the two short names."""
        arguments: list[Argument] = super().get_arguments(ignore_unknown_help)
        for argument in arguments:
            if argument.name in ("recipe", "override"):
                argument.names = (*argument.names, argument.name[0])
        return arguments


@task(
    klass=_Task,
    auto_shortflags=False,
    positional=["source"],
    iterable=["also", "map", "skip", "override"],
    help={
        "source": "file, folder, quoted pattern ('raw/*.csv') or Hugging Face data set (owner/name)",
        "also": "one more source; may be given several times",
        "out": "folder to write, such as datasets/mine",
        "form": _FORM_HELP,
        "map": _MAP_HELP,
        "system": _SYSTEM_HELP,
        "licence": "licence of the data, for the manifest",
        "skip": _SKIP_HELP,
        "personal": "mask or drop personal data and secrets",
        "region": _REGION_HELP,
        "language": "keep this language alone, such as en",
        "max-tokens": "longest sample in tokens; default: the recipe's data.max_tokens",
        "overlong": "split too long samples between turns, or drop them",
        "near": "resemblance (Jaccard index of word pairs) of near duplicates; default 0.65",
        "balance": "keep of each category at most this many times the median category; 0: all",
        "valid": "share of valid; default 0.05",
        "test": "share of test; default 0.05",
        "seed": "seed of order and splits",
        "replace": "write anew a data set that data.prepare wrote",
        "recipe": _RECIPE_HELP,
        "override": _OVERRIDE_HELP,
    },
)
def prepare(
    _: Context,
    source: str,
    out: str,
    also: list[str] | None = None,
    form: str = "",
    map: list[str] | None = None,  # noqa: A002 - the option's name
    system: str = "",
    licence: str = "unknown",
    skip: list[str] | None = None,
    personal: str = "mask",
    region: str = "US",
    language: str = "",
    max_tokens: int = 0,
    overlong: str = "split",
    near: str = "",
    balance: str = "",
    valid: str = "",
    test: str = "",
    seed: int = 0,
    replace: bool = False,
    recipe: str = "pirate",
    override: list[str] | None = None,
) -> None:
    """Make a data set of files."""
    from trainer.workshop import commands

    settings = {
        "form": form,
        "system": system,
        "licence": licence,
        "skip": tuple(skip or ()),
        "personal": personal,
        "region": region,
        "language": language,
        "max_tokens": max_tokens,
        "overlong": overlong,
        "seed": seed,
    }
    numbers = {"near": near, "balance": balance, "valid": valid, "test": test}
    order = commands.Order([source, *(also or ())], out, settings, numbers, tuple(map or ()), replace)
    _end(lambda: commands.prepare(order, commands.Counting(recipe, tuple(override or ()))))


@task(
    klass=_Task,
    auto_shortflags=False,
    iterable=["skip", "override"],
    help={
        "path": _PATH_HELP,
        "json": "print all findings as JSON",
        "near": "resemblance of near duplicates; default 0.65",
        "region": _REGION_HELP,
        "skip": "a rule to leave out, such as refusal; may be given several times",
        "recipe": "also count tokens with this recipe's model, against its data.max_tokens",
        "override": _OVERRIDE_HELP,
    },
)
def check(
    _: Context,
    path: str,
    json: bool = False,
    near: str = "",
    region: str = "US",
    skip: list[str] | None = None,
    recipe: str = "",
    override: list[str] | None = None,
) -> None:
    """Go through a data set as a linter does."""
    from trainer.workshop import commands

    counting = commands.Counting(recipe, tuple(override or ())) if recipe else None
    _end(lambda: commands.check(path, counting, as_json=json, region=region, skip=skip or (), near=near))


@task(
    klass=_Task,
    auto_shortflags=False,
    iterable=["override"],
    help={
        "path": _PATH_HELP,
        "split": "train, valid or test; default: train",
        "count": "how many samples, chosen by chance",
        "line": "show this line instead",
        "seed": "which chance",
        "recipe": "recipe whose model sees them; default pirate",
        "override": _OVERRIDE_HELP,
    },
)
def show(
    _: Context,
    path: str,
    split: str = "",
    count: int = 3,
    line: int = 0,
    seed: int = 0,
    recipe: str = "pirate",
    override: list[str] | None = None,
) -> None:
    """Show samples as the model sees them."""
    from trainer.workshop import commands

    counting = commands.Counting(recipe, tuple(override or ()))
    _end(lambda: commands.show(path, counting, split=split, count=count, line=line, seed=seed))


@task(
    klass=_Task,
    auto_shortflags=False,
    iterable=["override"],
    help={
        "path": "folder of a data set",
        "png": "draw the histogram of tokens into this file",
        "recipe": _RECIPE_HELP,
        "override": _OVERRIDE_HELP,
    },
)
def stats(_: Context, path: str, png: str = "", recipe: str = "pirate", override: list[str] | None = None) -> None:
    """Tell what a data set is made of."""
    from trainer.workshop import commands

    counting = commands.Counting(recipe, tuple(override or ()))
    _end(lambda: commands.stats(path, counting, png=png))


@task(
    klass=_Task,
    auto_shortflags=False,
    iterable=["also", "map", "skip", "override"],
    help={
        "source": "what data.prepare takes: a file, a folder, a quoted pattern or a Hugging Face data set",
        "out": "folder to write, such as datasets/mine",
        "also": "one more source; may be given several times",
        "to": "the style: pirate",
        "form": _FORM_HELP,
        "map": _MAP_HELP,
        "system": _SYSTEM_HELP,
        "skip": _SKIP_HELP,
        "licence": "licence of the data, for the manifest",
        "seed": "seed of order and splits",
        "replace": "write anew a data set that data.prepare wrote",
        "recipe": _RECIPE_HELP,
        "override": _OVERRIDE_HELP,
    },
)
def style(
    _: Context,
    source: str,
    out: str,
    also: list[str] | None = None,
    to: str = "pirate",
    form: str = "",
    map: list[str] | None = None,  # noqa: A002 - the option's name
    system: str = "",
    skip: list[str] | None = None,
    licence: str = "unknown",
    seed: int = 0,
    replace: bool = False,
    recipe: str = "pirate",
    override: list[str] | None = None,
) -> None:
    """Put answers into a style by rules."""
    from trainer.workshop import commands

    settings = {
        "style": to,
        "form": form,
        "system": system,
        "skip": tuple(skip or ()),
        "licence": licence,
        "seed": seed,
    }
    order = commands.Order([source, *(also or ())], out, settings, mapping=tuple(map or ()), replace=replace)
    _end(lambda: commands.prepare(order, commands.Counting(recipe, tuple(override or ()))))


def _end(command: Callable[[], int]) -> None:
    """End the process with the exit code of a command; its error becomes a message."""
    from trainer.control import at_boundary

    raise Exit(code=at_boundary(command))


namespace = Collection("data", prepare, check, show, stats, style)
