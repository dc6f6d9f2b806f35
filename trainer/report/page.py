"""The page of a run or a baseline: one HTML file that needs nothing else, and a PNG of each plot in ``plots/`` beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import trainer
from trainer.cluster.plan import PLAN_FILE
from trainer.errors import InputError
from trainer.measure.store import FILE, find_baseline, read_baseline
from trainer.paths import baselines_dir, find_beside, runs_dir
from trainer.report.baseline_page import describe_baseline
from trainer.report.chart import Chart, Network, Plot
from trainer.report.markup import clean
from trainer.report.palette import DARK, LIGHT
from trainer.report.png import write_pngs
from trainer.report.run_page import describe_run
from trainer.report.story import read_story
from trainer.report.svg import HALF, NARROW, WIDE, draw

PAGE = "report.html"
PLOTS = "plots"


def find_reported(name: str, is_baseline: bool = False) -> Path:
    """Return the folder of what is to be shown: a run's or a baseline's, whether it is there or not.

    ``name`` is a folder, a name in ``runs/`` or ``baselines/``, or nothing for the latest; "baseline" is the latest baseline.
    """
    if is_baseline or name == "baseline":
        return find_baseline("" if name == "baseline" else name).parent.resolve()
    return find_beside(name, runs_dir(), baselines_dir()) if name else (runs_dir() / "latest").resolve()


def write_page(folder: Path) -> Path:
    """Make the page of the run or the baseline in ``folder``, and its plots; returns the page.

    Raises `InputError` if there is neither.
    """
    is_baseline = (folder / FILE).is_file() and not (folder / PLAN_FILE).is_file()  # a run may keep the one that foretold it
    if is_baseline or folder.parent == baselines_dir():
        return _write("baseline.html", folder, partial(describe_baseline, read_baseline(folder / FILE), folder.name))
    return _write("run.html", folder, partial(describe_run, read_story(folder)))


def try_page(folder: Path, say: Callable[[str], None]) -> None:
    """Make the page of what has just ended, and say where it is; whatever is wrong with a page is said, and fails nothing."""
    try:
        say(f"report {write_page(folder)}")
    except Exception as error:
        say(f"no report was made: {error}; ./inv report tries again")


def _write(template: str, folder: Path, describe: partial[dict[str, Any]]) -> Path:
    try:
        content = describe()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: holds figures that this version cannot show ({error!r})") from error
    page = folder / PAGE
    scratch = folder / f".{PAGE}"
    scratch.write_text(render(template, content), "utf-8")
    os.replace(scratch, page)
    write_pngs([*content["plots"].values()], folder / PLOTS)
    return page


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return the HTML of a page. Whatever is not markup of `trainer.report.markup` is escaped."""
    environment = Environment(
        loader=PackageLoader("trainer.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"clean": clean, "drawings": draw_all, "legend": list_legend, "caption": caption}
    palette = {"light": LIGHT, "dark": DARK}
    return environment.get_template(template).render(content, version=trainer.__version__, palette=palette)


def draw_all(plot: Plot) -> Markup:
    """Return the drawings of a plot: one for a desk and one for a phone, where that is another; the style shows one of them."""
    if not plot.is_wide:
        return Markup('<div class="fit">{}</div>').format(draw(plot, HALF))
    wide, narrow = draw(plot, WIDE), draw(plot, NARROW, "narrow-")
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def caption(plot: Plot) -> str:
    """Return what stands above a plot for those who see it."""
    return plot.caption if isinstance(plot, Network) else plot.description


def list_legend(plot: Plot) -> list[tuple[str, int, str]]:
    """Return label, colour and kind of what needs a legend."""
    if isinstance(plot, Chart) and len(plot.series) > 1:
        return [(series.label, series.colour, series.kind) for series in plot.series]
    if isinstance(plot, Network):
        return [(label, colour, "line") for label, colour in plot.legend]
    return []
