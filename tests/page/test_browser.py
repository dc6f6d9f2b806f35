"""The page of a real run in a real browser: no error, no request, every figure as it is read, in both themes and on a phone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_figures import Foretold, full_baseline, write_run
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from support import plan_tiny

from trainer.cluster.launch import execute
from trainer.measure.store import save_baseline
from trainer.report.page import write_page
from trainer.report.record import Record

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
QUIET = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
UNITS = {"%": 100, "MiB": 1, "MB": 1e-6, "ms": 1e3, "µs": 1e6, "s": 1, "Gbit/s": 8e-9, "Mbit/s": 8e-6, "min": 1 / 60}
LARGE = {"MiB": 2**-20, "Gbit/s": 8e-9, "Mbit/s": 8e-6, "MB": 1e-6}  # of bytes


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless Chromium with a profile of its own that logs all that it is told and asks for."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if not (found and driver):
        pytest.skip("no Chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = found
    profile = tmp_path_factory.mktemp("profile")
    for word in ("headless=new", "no-sandbox", "disable-gpu", *QUIET, f"user-data-dir={profile}"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of six steps of two real ranks, with answers."""
    prompt = 'style.demo_prompts=["Who goes there <b>?"]'
    settings = (
        "train.steps=6",
        "train.eval_every=3",
        prompt,
        'style.markers=["aye"]',
        "style.min_markers=1",
        "style.max_reply_tokens=4",
    )
    launch = plan_tiny(tiny_model, tiny_data, tmp_path_factory.mktemp("runs"), 2, *settings)
    record = Record(launch.kept.run_dir)
    outcome = execute(launch, record)
    record.finish(outcome)
    assert outcome.exit_code == 0
    return write_page(launch.kept.run_dir)


@pytest.fixture(scope="module")
def pages(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind: of a real run, of one on three hosts that a baseline foretold, and of that baseline."""
    folder = tmp_path_factory.mktemp("pages")
    measured = full_baseline(3)
    foretold = write_page(write_run(folder / "run", forecast=Foretold(measured)))
    return {"trained": trained, "foretold": foretold, "baseline": write_page(save_baseline(measured, folder))}


def show(browser: Chrome, page: Path, width: int = 1100, theme: str = "light") -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())


KINDS = pytest.mark.parametrize("kind", ["trained", "foretold", "baseline"])


@KINDS
def test_no_error_and_no_request(browser: Chrome, pages: dict[str, Path], kind: str) -> None:
    """The console stays silent, and the file itself is all that is ever asked for."""
    for log in ("browser", "performance"):
        browser.get_log(log)  # of what was before
    show(browser, pages[kind])
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [pages[kind].as_uri()]
    assert browser.execute_script("return document.scripts.length") == 0


@KINDS
def test_every_figure_is_read_as_it_is(browser: Chrome, pages: dict[str, Path], kind: str) -> None:
    """What stands there, to the last digit that is shown, is what summary.json or baseline.json holds."""
    show(browser, pages[kind])
    script = "return [...document.querySelectorAll('data')].map(e => [e.dataset.of, e.dataset.key, e.value, e.textContent])"
    figures = browser.execute_script(script)
    assert len(figures) > 15
    for source, key, value, text in figures:
        table = json.loads((pages[kind].parent / f"{source}.json").read_text("utf-8"))
        stored = look_up(table, key)
        assert float(value) == stored, key
        assert_reads(text, stored)


def look_up(table: Any, pointer: str) -> Any:
    for part in pointer.strip("/").split("/"):
        table = table[int(part)] if isinstance(table, list) else table[part.replace("~1", "/").replace("~0", "~")]
    return table


def assert_reads(text: str, value: float) -> None:
    """Whether ``text`` is ``value`` rounded to the digits that it has, in the unit that it has."""
    if clock := re.fullmatch(r"(?:(\d+) h )?(?:(\d+):)?(\d+)(?::(\d\d)| min)", text):
        hours, minutes = int(clock[1] or clock[2] or 0), int(clock[3])
        assert abs(hours * 3600 + minutes * 60 + int(clock[4] or 0) - value) <= (0.5 if clock[4] else 60), text
        return
    match = re.fullmatch(r"(-?[\d,]+)(?:\.(\d+))? ?(\D*)", text)
    assert match, text
    units = LARGE if value > 1e6 and match[3] in LARGE else UNITS
    number = float(f"{match[1]}.{match[2] or 0}".replace(",", ""))
    assert abs(number - value * units.get(match[3], 1)) <= 0.5 * 10.0 ** -len(match[2] or "") + 1e-9, (text, value)


@KINDS
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 700, 360])
def test_it_fits_and_can_be_read(browser: Chrome, pages: dict[str, Path], kind: str, theme: str, width: int) -> None:
    """Nothing is wider than the window; each plot is shown once and its letters are no smaller than 9 pixels."""
    show(browser, pages[kind], width, theme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    shown = browser.execute_script(
        "return [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width)"
        ".map(s => [s.dataset.plot, s.getBoundingClientRect().width, 12 * s.getScreenCTM().a])"
    )
    names = [name for name, _, _ in shown]
    assert len(names) == len(set(names)) >= 5
    assert [name for name, size, letters in shown if size > width or letters < 9] == []


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(…)" as WCAG 2 defines it."""
    parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@KINDS
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(browser: Chrome, pages: dict[str, Path], kind: str, theme: str) -> None:
    """All text has a contrast of 4.5 to 1 with the page, lines of plots 3 to 1; the page is light or dark as it was asked."""
    show(browser, pages[kind], 1100, theme)
    paper = luminance(browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor"))
    assert (paper > 0.5) == (theme == "light")
    script = "return [...new Set([...document.querySelectorAll(arguments[0])].map(e => getComputedStyle(e)[arguments[1]]))]"
    texts = [browser.execute_script(script, *where) for where in (("main *:not(svg *)", "color"), ("svg text", "fill"))]
    lines = browser.execute_script(script, "svg .line, svg .edge", "stroke")
    for least, colours in ((4.5, [*texts[0], *texts[1]]), (3.0, lines)):
        ratios = {colour: _contrast(luminance(colour), paper) for colour in colours}
        assert {colour: ratio for colour, ratio in ratios.items() if ratio < least} == {}


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_it_can_be_printed(browser: Chrome, pages: dict[str, Path]) -> None:
    """On paper the ground is white, whatever the theme, and what is folded on the screen is open."""
    show(browser, pages["foretold"], 1100, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    height = browser.execute_script("return document.querySelector('.events').getBoundingClientRect().height")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert height > 50


def test_what_others_wrote_is_text(browser: Chrome, pages: dict[str, Path]) -> None:
    """A prompt with markup in it is read as it was typed."""
    show(browser, pages["trained"])
    assert browser.execute_script("return document.querySelector('.answers h3').textContent") == "Who goes there <b>?"
