"""What each ``data.*`` command does: the workshop's parts put together. Results go to stdout, the story to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainer.data.checked import check_data
from trainer.data.fill import fill_store
from trainer.data.formats import SPLITS
from trainer.data.store import key_store, open_store
from trainer.data.tokens import RowMaker
from trainer.errors import EXIT_OK, InputError
from trainer.fingerprint import hash_files
from trainer.paths import PROJECT_ROOT, cache_dir, find_beside
from trainer.workshop.check import check as find_findings
from trainer.workshop.check import find_splits
from trainer.workshop.forms import parse_mapping
from trainer.workshop.model import find_model, load_tokenizer
from trainer.workshop.near import THRESHOLD
from trainer.workshop.prepare import check_target
from trainer.workshop.prepare import prepare as make_set
from trainer.workshop.settings import Model, Settings, complain_of_near, complain_of_region
from trainer.workshop.show import choose_samples, show_samples
from trainer.workshop.sources import find_sources
from trainer.workshop.stats import check_png, count, draw_histogram, render_categories, render_histogram, render_splits

WIDTH = 110  # of tables where there is no terminal to ask
_MOST_FINDINGS = 200


@dataclass(frozen=True)
class Counting:
    """Which model tokens are counted with: a recipe and what is laid over it."""

    recipe: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """What `prepare` is asked for. ``numbers`` are those of the settings that come as text; an empty one was not given."""

    sources: Sequence[str]
    out: str
    settings: Mapping[str, Any]
    numbers: Mapping[str, str] = field(default_factory=dict)
    mapping: tuple[str, ...] = ()
    replace: bool = False


def prepare(order: Order, counting: Counting) -> int:
    """Make a data set of sources and show what became of them; returns the exit code."""
    target = Path(order.out).expanduser()
    check_target(target, (), order.replace)  # before anything is fetched
    mapping = tuple(parse_mapping(order.mapping).items())
    chosen = Settings(mapping=mapping, **order.settings, **read_numbers(**order.numbers))
    files, passed_over = find_sources(order.sources, fetch_from_hub)
    model: Model | None = None
    if "length" not in chosen.skip:
        config, model = find_model(counting.recipe, counting.overrides)
        chosen = dataclasses.replace(chosen, max_tokens=chosen.max_tokens or config.data.max_tokens)
    with _progress("preparing") as tick:
        manifest = make_set(files, target, chosen, model, replace=order.replace, tick=tick, passed_over=passed_over)
    _stdout().print(render_manifest(manifest))
    print(f"train on it: ./inv train -o data.path={target}; look at it: ./inv data.show {target}", file=sys.stderr)
    return EXIT_OK


def fetch_from_hub(name: str) -> Path:
    """Return the folder of a data set of the Hugging Face hub, downloaded if it is not there; raises `InputError`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.parquet", "*.jsonl", "*.json", "*.csv", "*.tsv", "*.arrow", "*.txt"]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise InputError(f"{name}: is neither a path nor a public data set of the Hugging Face hub") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{name}: there is no such path, and the Hugging Face hub cannot be reached for it") from error


def check(path: str, counting: Counting | None, *, as_json: bool, region: str, skip: Sequence[str], near: str = "") -> int:
    """Print what is wrong with a data set, a line each or as JSON; returns 2 if training would refuse it, else 0."""
    threshold, region = read_numbers(near=near).get("near", THRESHOLD), region.upper()
    if problems := [*complain_of_near(threshold), *complain_of_region(region)]:
        raise InputError(problems)
    maker, max_tokens = None, 0
    if counting:
        config, model = find_model(counting.recipe, counting.overrides)
        maker, max_tokens = RowMaker(load_tokenizer(model)), config.data.max_tokens
    counts: Counter[str] = Counter()
    told: list[dict[str, Any]] = []
    findings = find_findings(
        find_beside(path, PROJECT_ROOT),
        near=threshold,
        region=region,
        skip=skip,
        maker=maker,
        max_tokens=max_tokens,
    )
    for finding in findings:
        counts[finding.severity] += 1
        if as_json:
            told.append(finding.as_dict())
        elif sum(counts.values()) <= _MOST_FINDINGS:
            print(_plain(str(finding)))
    if as_json:
        print(
            json.dumps(
                {"findings": told, "errors": counts["error"], "warnings": counts["warning"]}, indent=2, ensure_ascii=False
            )
        )
    elif (rest := sum(counts.values()) - _MOST_FINDINGS) > 0:
        print(f"and {rest} more; --json tells all")
    if not as_json:
        print(f"{path}: {counts['error']} errors, {counts['warning']} warnings", file=sys.stderr)
    return InputError.exit_code if counts["error"] else EXIT_OK


def show(path: str, counting: Counting, *, split: str, count: int, line: int, seed: int) -> int:
    """Print samples as the model sees them, what is learned set apart; returns the exit code."""
    files = find_splits(find_beside(path, PROJECT_ROOT))
    chosen = [file for file in files if file.stem == split] if split else files[:1]
    if not chosen:
        raise InputError(f"--split {split}: {path} has none of this name, but {', '.join(file.stem for file in files)}")
    samples = choose_samples(chosen, count, seed, line)
    _, model = find_model(counting.recipe, counting.overrides)
    console = _stdout()
    for text in show_samples(samples, load_tokenizer(model), is_plain=not (console.is_terminal and console.color_system)):
        console.print(text, soft_wrap=True)
    return EXIT_OK


def stats(path: str, counting: Counting, *, png: str) -> int:
    """Print what a data set is made of, and draw the histogram of its tokens into ``png``; returns the exit code."""
    drawn = Path(png).expanduser() if png else None
    if drawn:
        check_png(drawn)
    folder = find_beside(path, PROJECT_ROOT)
    check_data(folder, cache_dir(), remembers=False)
    figures = {file.stem: count(file) for file in find_splits(folder)}
    config, model = find_model(counting.recipe, counting.overrides)
    store = cache_dir() / "tokens" / key_store(hash_files(folder, [f"{split}.jsonl" for split in SPLITS]), model.folder)
    with _progress("tokenising") as tick:
        fill_store(store, folder, model.folder, trust_remote_code=model.trust_remote_code, tick=tick)
    rows, max_tokens = open_store(store, folder), config.data.max_tokens
    out = _stdout()
    out.print(render_splits(figures, rows))
    if categories := render_categories(figures):
        out.print(categories)
    print(render_histogram(np.concatenate([rows[split].lengths for split in SPLITS]), max_tokens))
    if drawn:
        draw_histogram(rows, max_tokens, drawn)
        print(f"drawn: {png}", file=sys.stderr)
    return EXIT_OK


def read_numbers(**options: str) -> dict[str, Any]:
    """Return the numbers that options were given, without those that were not; raises `InputError` for what is none."""
    numbers: dict[str, Any] = {}
    problems: list[str] = []
    for option, text in options.items():
        try:
            if not text:
                continue
            numbers[option] = float(text)
        except ValueError:
            problems.append(f"--{option} {text}: is not a number")
    if problems:
        raise InputError(problems)
    return numbers


def render_manifest(manifest: dict[str, Any]) -> Table:
    """Return what `data.prepare` shows: rows in and out, what was dropped and changed and why."""
    table = Table(
        "", "rows", "for example", title=f"data set {manifest['name']}, licence {manifest['licence']}", title_justify="left"
    )
    table.columns[1].justify = "right"
    table.add_row("read", f"{manifest['read']:,}", "")
    for kind in ("dropped", "changed"):
        for rule, told in manifest[kind].items():
            table.add_row(f"{kind}: {rule}", f"{told['count']:,}", _plain(told["examples"][0] if told["examples"] else ""))
    table.add_section()
    for name, file in manifest["files"].items():
        table.add_row(name, f"{file['rows']:,}", "")
    if tokens := manifest.get("tokens"):
        table.add_section()
        shares = ", ".join(f"{name} {count}" for name, count in tokens.items() if name != "all")
        table.add_row("tokens", f"{tokens['all']:,}", f"of a row: {shares}")
    return table


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give what shows how many bytes are done, on a terminal alone."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _stdout() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def _plain(text: str) -> str:
    """Return ``text`` without what could move a terminal's cursor."""
    return "".join(c if c.isprintable() else "�" for c in text)
