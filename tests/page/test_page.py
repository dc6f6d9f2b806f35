"""The page of a run or a baseline: true to its figures, well-formed, and deaf to whatever others wrote into them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from baseline_figures import make_baseline
from hypothesis import given
from hypothesis import strategies as st
from run_figures import BEGAN, Foretold, events_of, full_baseline, make_link, write_run

from trainer import control
from trainer.cluster.outcome import Outcome
from trainer.errors import InputError
from trainer.measure.predict import predict
from trainer.measure.store import save_baseline
from trainer.measure.verdict import judge
from trainer.report import page as page_module
from trainer.report.chart import Axis, make_axis, make_log_axis, smooth, thin
from trainer.report.page import try_page, write_page
from trainer.report.story import read_story

HOSTILE = (
    "\"'><script>alert(1)</script><img src=//x.invalid onerror=alert(1)>{{ 8888*7 }}{% raw %}"
    "$\\frac{$&lt; \x1b[31m\x00\ud800\u202e_"
)
PLOTS_OF_RUN = {"loss", "learning-rate", "step-times", "throughput", "communication", "timeline", "speed-up", "network"}


class Reader(HTMLParser):
    """Keeps the elements, attributes and texts of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.html = page.read_text("utf-8")
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] != [("style", {})]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def figures(self) -> dict[str, Any]:
        """Every figure with where it comes from, such as "summary:/loss_best"."""
        found = [attributes for tag, attributes in self.elements if tag == "data"]
        return {f"{each['data-of']}:{each['data-key']}": json.loads(str(each["value"])) for each in found}


def drawings(page: Path) -> dict[str, ElementTree.Element]:
    """The plots of a page by name, the one for a desk where there are two; parsed as XML, so they are well-formed."""
    found = re.findall(r"<svg .*?</svg>", page.read_text("utf-8"), re.DOTALL)
    return {plot.attrib["data-plot"]: plot for plot in map(ElementTree.fromstring, reversed(found))}


def of_class(plot: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [each for each in plot.iter() if name in each.get("class", "").split()]


def scale(plot: ElementTree.Element, axis: str) -> Callable[[float], float]:
    """What a pixel's coordinate means on a plot's axis, by the first and the last of its ticks."""
    ticks = [tick for tick in of_class(plot, "tick") if axis in tick.get("class", "")]
    marks = [(float(tick.attrib[axis]), float(str(tick.text).replace(",", ""))) for tick in (ticks[0], ticks[-1])]
    (from_pixel, from_value), (to_pixel, to_value) = [(pixel - 4 * (axis == "y"), value) for pixel, value in marks]
    return lambda pixel: from_value + (pixel - from_pixel) * (to_value - from_value) / (to_pixel - from_pixel)


def read_line(plot: ElementTree.Element, label: str) -> list[tuple[float, float]]:
    """The points of a line as a person would read them off the axes."""
    [path] = [each for each in plot.iter() if each.get("data-series") == label]
    return read_points(plot, path)


def read_points(plot: ElementTree.Element, path: ElementTree.Element) -> list[tuple[float, float]]:
    numbers = [float(word) for word in re.findall(r"-?[\d.]+", path.attrib["d"])]
    x, y = scale(plot, "x"), scale(plot, "y")
    return [(x(a), y(b)) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of a hundred steps on three hosts, which a baseline foretold."""
    folder = tmp_path_factory.mktemp("runs") / "20261125-100000-pirate"
    return write_page(write_run(folder, forecast=Foretold(full_baseline())))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a baseline of three hosts, one of whose links is down."""
    measured = full_baseline()
    broken = measured["links"][4]
    measured["links"][4] = make_link(broken["hosts"], broken["network"], False, "10.77.0.13 does not answer")
    return write_page(save_baseline(measured, tmp_path_factory.mktemp("baselines")))


def look_up(table: Any, pointer: str) -> Any:
    for part in pointer.strip("/").split("/"):
        table = table[int(part)] if isinstance(table, list) else table[part.replace("~1", "/").replace("~0", "~")]
    return table


def test_every_figure_is_the_summarys(run: Path) -> None:
    """Each figure of the page, followed to where it says that it comes from, is the very number there."""
    sources = {name: json.loads((run.parent / f"{name}.json").read_text("utf-8")) for name in ("summary", "baseline")}
    figures = Reader(run).figures
    assert {key: look_up(sources[key.split(":")[0]], key.split(":")[1]) for key in figures} == figures
    shares = {f"share_in_style/{when}" for when in ("before", "after")}
    speeds = {f"baseline/{kind}_speedup" for kind in ("predicted", "measured")}
    rates = {"tokens_per_s", "supervised_tokens_per_s", "comm_share", "wait_share", "train_s", "steps"}
    memory = {f"peak_memory_mib/{rank}" for rank in range(3)}
    wanted = {"loss_before", "loss_best", "best_step"} | shares | speeds | rates | memory
    assert {f"summary:/{key}" for key in wanted} <= set(figures)


def test_the_headline_says_what_came_of_it(run: Path, tmp_path: Path) -> None:
    """Loss before and best, and the style if there is one; a run that learned nothing says that."""
    summary = json.loads((run.parent / "summary.json").read_text("utf-8"))
    best = f"{summary['loss_best']:.4f}"
    assert headline(run) == f"The validation loss fell from 3.5508 to {best}; 88% of the replies are in pirate style."
    early = write_run(tmp_path / "early", Outcome(4, "no"), until=10)
    assert headline(write_page(early)) == "The validation loss is 3.5508 and has not fallen."
    lines = (early / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (early / "metrics.jsonl").write_text("".join([*lines[:3], lines[-1]]), "utf-8")
    assert headline(write_page(early)) == "Nothing was learned."
    (early / "summary.json").unlink()
    (early / "metrics.jsonl").write_text("".join(lines[:3]), "utf-8")
    assert headline(write_page(early)) == "Nothing has been learned yet."


def test_one_host_is_not_said_to_be_sped_up(run: Path, tmp_path: Path) -> None:
    """Against a baseline of itself a host is faster or slower than it was; a speed-up is what more hosts bring."""
    alone = write_page(write_run(tmp_path / "run", hosts={"alpha": 2}, steps=4, forecast=Foretold(full_baseline(2))))
    told = {page: [word in Reader(page).text for word in ("speed-up", "beside the baseline")] for page in (run, alone)}
    assert told == {run: [True, False], alone: [False, True]}


def headline(page: Path) -> str:
    [found] = re.findall(r"<h1>(.*)</h1>", page.read_text("utf-8"))
    return re.sub(r"<[^>]*>", "", found)


def test_plots_show_what_was_told(run: Path) -> None:
    """Read off the axes, every step's loss and learning rate and every validation are those of metrics.jsonl."""
    events = [json.loads(line) for line in (run.parent / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    plots = drawings(run)
    assert set(plots) == PLOTS_OF_RUN
    losses = read_line(plots["loss"], "training")
    assert [x for x, _ in losses] == pytest.approx([step["step"] for step in steps], abs=0.05)
    assert [y for _, y in losses] == pytest.approx([step["loss"] for step in steps], abs=0.005)
    rates = read_line(plots["learning-rate"], "learning rate")
    assert [y / 1e3 for _, y in rates] == pytest.approx([step["learning_rate"] for step in steps], abs=2e-6)
    validated = [(event["step"], event["loss"]) for event in events if event["event"] == "validated"]
    dots = read_line(plots["loss"], "validation")
    assert [value for pair in dots for value in pair] == pytest.approx(
        [value for pair in validated for value in pair], abs=0.05
    )
    bars = [int(bar.attrib["data-count"]) for bar in of_class(plots["step-times"], "bar")]
    assert sum(bars) == len(steps)


def test_each_host_has_its_line(run: Path) -> None:
    """Throughput is drawn for each host by its name, and for all together, which is what the steps' tokens took."""
    plot = drawings(run)["throughput"]
    labels = [str(each.get("data-series")) for each in plot.iter() if each.get("data-series")]
    assert labels == ["together", "alpha", "beta", "gamma"]
    rates = [event["rank_tokens_per_s"][1] for event in events_of() if event["event"] == "step"]
    shown = [y for _, y in read_line(plot, "beta")]
    means = [sum(pair) / 2 for pair in zip(rates[::2], rates[1::2], strict=True)]
    assert shown == pytest.approx(means, abs=1.5)


def test_communication_and_waiting_lie_upon_each_other(run: Path) -> None:
    """The upper edge is both shares together."""
    told = [event for event in events_of() if event["event"] == "step"]
    shares = [[100 * (each["comm_s"] + each["wait_s"]) / each["step_s"] for each in told[n : n + 2]] for n in range(0, 100, 2)]
    _, upper = of_class(drawings(run)["communication"], "area")
    points = read_points(drawings(run)["communication"], upper)[:50]
    assert [y for _, y in points] == pytest.approx([sum(pair) / 2 for pair in shares], abs=0.1)


def test_every_plot_has_words_and_a_file(run: Path, baseline: Path) -> None:
    """Title and description are named by the drawing; ids are unique; beside the page lies a PNG of each plot."""
    for page in (run, baseline):
        reader = Reader(page)
        ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for name, plot in drawings(page).items():
            title, description = plot[0], plot[1]
            assert (title.tag, description.tag, plot.get("role")) == ("title", "desc", "img")
            assert plot.attrib["aria-labelledby"] == f"{title.attrib['id']} {description.attrib['id']}"
            assert len(str(description.text)) > 10
            assert (page.parent / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert {path.stem for path in (page.parent / "plots").iterdir()} == set(drawings(page))


def test_a_baseline_says_its_verdict_first(baseline: Path) -> None:
    """The headline is the verdict's; hosts, links, all-reduces and predictions are its figures; what is down is named."""
    stored = json.loads((baseline.parent / "baseline.json").read_text("utf-8"))
    reader = Reader(baseline)
    assert f"<h1>{stored['verdict']['headline']}</h1>" in reader.html
    assert {key: look_up(stored, key.removeprefix("baseline:")) for key in reader.figures} == reader.figures
    assert {key.split("/")[1] for key in reader.figures} == {"hosts", "links", "all_reduce", "prediction", "job"}
    assert "10.77.0.13 does not answer" in reader.text
    plot = drawings(baseline)["speed-up"]
    predicted = [entry for entry in stored["prediction"] if (entry["scaling"], entry["network"]) == ("strong", "10.99.0.0/24")]
    shown = read_line(plot, "10.99.0.0/24 with mpi")
    assert [x for x, _ in shown] == pytest.approx(range(1, 9), abs=0.05)
    assert [y for _, y in shown] == pytest.approx([1.0, *(entry["speedup"] for entry in predicted)], abs=0.05)


def test_a_run_that_is_going_says_so(tmp_path: Path) -> None:
    """Without an end: figures of the steps so far, and that no end is recorded. Half a line at the end is passed over."""
    folder = write_run(tmp_path / "run", None, until=40)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "rank": 0, "ti')
    reader = Reader(write_page(folder))
    steps = [event for event in events_of(until=40) if event["event"] == "step"]
    assert "No end is recorded: the run is still going, or was cut off." in reader.text
    assert reader.figures["metrics:/steps"] == 40
    assert reader.figures["metrics:/tokens_per_s"] == pytest.approx(
        sum(step["tokens"] for step in steps) / sum(step["step_s"] for step in steps)
    )
    assert reader.figures["metrics:/loss_best"] == min(e["loss"] for e in events_of(until=40) if e["event"] == "validated")


def test_figures_so_far_are_those_of_the_end(tmp_path: Path) -> None:
    """What the page adds up from the events of a run is what the ranks say of it when it is done."""
    story = read_story(write_run(tmp_path / "run"))
    shared = {key: value for key, value in story.summary.items() if key in story.so_far}
    assert {"loss_best", "tokens_per_s", "comm_share", "train_s", "steps", "answers"} <= set(shared)
    exact = {key: value for key, value in shared.items() if not isinstance(value, float)}
    assert {key: story.so_far[key] for key in exact} == exact
    for key in set(shared) - set(exact):
        assert story.so_far[key] == pytest.approx(shared[key]), key


def test_a_run_goes_on_after_its_summary(tmp_path: Path) -> None:
    """Steps that are done again in the same folder count once, as they were the last time; the old end is not the end."""
    folder = write_run(tmp_path / "run", Outcome(75, "a rank was lost"), until=60)
    again = [event for event in events_of(until=60) if event["event"] == "step" and event["step"] > 50]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({**event, "loss": 1.0, "time": event["time"] + 500}) + "\n" for event in again)
    story = read_story(folder)
    assert story.state == "unfinished"
    assert [step.step for step in story.steps] == list(range(1, 61))
    assert [step.loss for step in story.steps[50:]] == [1.0] * 10
    assert "No end is recorded" in Reader(write_page(folder)).text


def test_what_a_resume_has_undone_does_not_count(tmp_path: Path) -> None:
    """Steps and validations after the checkpoint that a run goes on from are gone, though none is made again; checkpoints
    and the return are on the timeline.
    """
    folder = write_run(tmp_path / "run", None, until=60)
    kinds = ({"event": "checkpoint", "step": 40}, {"event": "resumed", "step": 40, "attempt": 2})
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({**event, "rank": 0, "time": BEGAN + 900}) + "\n" for event in kinds)
    story = read_story(folder)
    assert story.steps[-1].step == 40
    assert [event["step"] for event in story.of("validated")] == [0, 25]
    page = write_page(folder)
    labels = [each.text for each in drawings(page)["timeline"].iter("text")]
    assert {"checkpoints", "resumed"} <= set(labels)
    assert "goes on after step 40" in Reader(page).text


@pytest.mark.parametrize(
    ("outcome", "state", "told"),
    [
        (Outcome(4, "step 41: the loss is nan"), "failed", "The run ended with exit code 4. step 41: the loss is nan"),
        (Outcome(75, "a rank was lost"), "failed", "The run ended with exit code 75. a rank was lost"),
        (Outcome(130, "interrupted"), "interrupted", "The run was interrupted; what it had learned is kept. interrupted"),
    ],
)
def test_a_run_that_failed(tmp_path: Path, outcome: Outcome, state: str, told: str) -> None:
    """It says how it ended and why, has the figures up to there, and its end on its timeline."""
    page = write_page(write_run(tmp_path / "run", outcome, until=40))
    reader = Reader(page)
    assert f" {state} " in reader.text
    assert told in reader.text
    assert reader.figures["metrics:/steps"] == 40
    faults = [each for each in of_class(drawings(page)["timeline"], "dot") if outcome.message in "".join(each.itertext())]
    assert len(faults) == 1


@pytest.mark.parametrize("num_events", range(9))
def test_however_early_a_run_ends(tmp_path: Path, num_events: int) -> None:
    """From no event at all to the second step, each beginning of a run has a page."""
    folder = write_run(tmp_path / "run", None)
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:num_events]), "utf-8")
    assert "No end is recorded" in Reader(write_page(folder)).text


@pytest.mark.parametrize("kind", ["null", "text", "absent"])
def test_figures_that_are_none(tmp_path: Path, kind: str) -> None:
    """A loss that was not finite, a field of another kind, or one that an older version did not tell is left out."""
    folder = write_run(tmp_path / "run")
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    for event in events:
        for key in set(event) - {"event", "rank", "time", "step"}:
            if kind == "absent":
                del event[key]
            else:
                event[key] = None if kind == "null" else "x"
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), "utf-8")
    for without in ((), ("summary.json", "config.toml")):
        for name in without:
            (folder / name).unlink()
        assert "<h1>" in Reader(write_page(folder)).html


def test_hostile_names_replies_and_messages(tmp_path: Path) -> None:
    """Prompts, replies, hosts, styles, messages and links of others are text: no element, attribute or address of theirs."""
    measured = full_baseline(2)
    rename = {"alpha": HOSTILE, "beta": f"{HOSTILE}/~.b"}
    measured = json.loads(re.sub("|".join(rename), lambda match: json.dumps(rename[match[0]])[1:-1], json.dumps(measured)))
    measured["verdict"]["reasons"].append(HOSTILE)
    measured["recipe"] = measured["inventory"] = measured["config"]["model"]["source"] = HOSTILE
    measured["links"][0] = make_link(measured["links"][0]["hosts"], HOSTILE, False, HOSTILE)
    measured["links"][1]["carried_by"] = {HOSTILE: HOSTILE}
    hosts = dict.fromkeys(rename.values(), 1)
    error = "HOSTILE"
    folder = write_run(
        tmp_path / "run",
        Outcome(4, HOSTILE),
        answers=((HOSTILE, HOSTILE, HOSTILE),),
        hosts=hosts,
        error=error,
        forecast=Foretold(measured),
    )
    config = (folder / "config.toml").read_text("utf-8").replace("pirate", "<script>alert(1)</script>")
    (folder / "config.toml").write_text(config, "utf-8")
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text().replace(error, json.dumps(HOSTILE)[1:-1]))
    (folder / "baseline.json").write_text(json.dumps(measured), "utf-8")
    for page in (write_page(folder), write_page(save_baseline({**measured, "name": "b"}, tmp_path / "b"))):
        reader = Reader(page)
        tags = {tag for tag, _ in reader.elements}
        assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base", "a"}
        names = {name for _, attributes in reader.elements for name in attributes}
        assert not [name for name in names if name.startswith("on") or name in ("src", "action", "formaction", "xlink:href")]
        assert [attributes["href"] for _, attributes in reader.elements if "href" in attributes] == ["data:,"]
        assert reader.text.count("<script>alert(1)</script>") >= 5
        assert "62216" not in reader.text
        assert not set(reader.html) & set("\x00\x1b\ud800\u202e")
        assert drawings(page)


@pytest.mark.parametrize("problem", [InputError("x: is full"), RuntimeError("boom"), OSError(28, "No space left on device")])
def test_a_page_that_cannot_be_made_fails_no_run(problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence, and that is all."""
    said: list[str] = []

    def fail(_: Path) -> Path:
        raise problem

    monkeypatch.setattr(page_module, "write_page", fail)
    try_page(tmp_path, said.append)
    assert said == [f"no report was made: {problem}; ./inv report tries again"]


def test_what_report_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is the latest run, "baseline" the latest baseline, a name or folder what lies there."""
    runs, baselines = tmp_path / "runs", tmp_path / "baselines"
    monkeypatch.setenv("FLOTILLA_RUNS", str(runs))
    monkeypatch.setenv("FLOTILLA_BASELINES", str(baselines))
    monkeypatch.chdir(tmp_path)
    run = write_run(runs / "one", steps=4)
    (runs / "latest").symlink_to("one")
    stored = save_baseline(full_baseline(2), baselines)
    for asked, is_baseline, folder in (
        ("", False, run),
        ("one", False, run),
        ("runs/one", False, run),
        ("baseline", False, stored),
        ("", True, stored),
        (stored.name, False, stored),
        (stored.name, True, stored),
        (str(stored / "baseline.json"), True, stored),
    ):
        assert control.report(asked, is_baseline) == 0
        assert capsys.readouterr().out == f"{folder / 'report.html'}\n"


@pytest.mark.parametrize(
    ("asked", "is_baseline", "told"),
    [
        ("", False, "{tmp}/runs/latest: there is no run here; ./inv train makes one"),
        ("nowhere", False, "{tmp}/nowhere: there is no run here; ./inv train makes one"),
        ("baseline", False, "{tmp}/baselines/latest/baseline.json: there is no baseline here; ./inv baseline makes one"),
        ("old", True, "{tmp}/old/baseline.json: is of version 0, this Flotilla reads 1; measure again with ./inv baseline"),
        ("half", False, "{tmp}/half/summary.json: is no summary of a run (Expecting value: line 1 column 1 (char 0))"),
        ("odd", True, "{tmp}/odd: holds figures that this version cannot show (KeyError('training'))"),
    ],
)
def test_nothing_to_report(
    asked: str,
    is_baseline: bool,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is not there, of an older version, half a file or of another form: one sentence and exit 2."""
    monkeypatch.setenv("FLOTILLA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FLOTILLA_BASELINES", str(tmp_path / "baselines"))
    monkeypatch.chdir(tmp_path)
    odd = full_baseline(2)
    del odd["hosts"]["alpha"]["training"]
    for name, text in {"old": {**full_baseline(2), "version": 0}, "odd": odd}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "baseline.json").write_text(json.dumps(text), "utf-8")
    (write_run(tmp_path / "half", steps=2) / "summary.json").write_text("", "utf-8")
    assert control.at_boundary(lambda: control.report(asked, is_baseline)) == 2
    assert capsys.readouterr() == ("", told.format(tmp=tmp_path) + "\n")


def test_one_host_has_a_page(tmp_path: Path) -> None:
    """A baseline of one machine has no links to draw, and says what others would bring."""
    alone = make_baseline({"alpha": 0.01}, steps=1000, all_reduce=[])
    alone["prediction"] = predict(alone)
    alone["verdict"] = judge(alone)
    page = write_page(save_baseline(alone, tmp_path))
    assert set(drawings(page)) == {"speed-up", "weak-scaling", "micro-batches"}
    assert "it is the only machine" in Reader(page).text


finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=20), st.booleans(), st.booleans(), st.booleans())
def test_axes_hold_their_values(values: list[float], from_zero: bool, tight: bool, whole: bool) -> None:
    """Every value lies on the axis, ticks are in order and evenly spaced, not too many, and whole where that is asked."""
    axis = make_axis(values, from_zero=from_zero, tight=tight, whole=whole)
    assert all(-1e-6 <= axis.place(value) <= 1 + 1e-6 for value in values)
    assert list(axis.ticks) == sorted(axis.ticks)
    assert len(axis.ticks) <= 9
    assert not from_zero or min(axis.low, *values) <= 0 or axis.low == 0
    if whole:
        assert all(tick == round(tick) for tick in axis.ticks)
    assert len({axis.name(tick) for tick in axis.ticks}) == len(axis.ticks)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1))
def test_logarithmic_axes_hold_their_values(values: list[float]) -> None:
    """From a power of ten to another, with a tick at each."""
    axis: Axis = make_log_axis(values)
    assert all(-1e-6 <= axis.place(value) <= 1 + 1e-6 for value in values)
    assert (axis.ticks[0], axis.ticks[-1]) == (axis.low, axis.high)


@given(st.lists(finite, min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_mean(values: list[float], most: int) -> None:
    """However few points are drawn, none is left out of them: weighted by their sizes, the means' mean is the values'."""
    points = [(float(number), value) for number, value in enumerate(values)]
    thinned = thin(points, most)
    assert len(thinned) <= most or len(points) <= most
    size = -(-len(points) // most) if len(points) > most else 1
    sizes = [min(size, len(points) - start) for start in range(0, len(points), size)]
    total = sum(value * count for (_, value), count in zip(thinned, sizes, strict=True))
    assert total == pytest.approx(sum(values), rel=1e-9, abs=1e-3)


def test_smoothing_leaves_a_constant_alone() -> None:
    """No bias towards where it begins: equal values stay equal, and the first is itself."""
    assert [y for _, y in smooth([(1.0, 2.5), (2.0, 2.5), (3.0, 2.5)], 0.9)] == pytest.approx([2.5] * 3)
    assert smooth([(1.0, 7.0), (2.0, 0.0)], 0.5)[0] == (1.0, 7.0)


def test_times_are_since_the_first_event_of_a_rank(tmp_path: Path) -> None:
    """The control machine's clock, which may be another than the head's, does not stretch the timeline."""
    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0].replace(str(BEGAN), "1.0") + "".join(lines[1:]), "utf-8")
    assert '"time": 1.0' in (folder / "metrics.jsonl").read_text("utf-8")
    assert read_story(folder).began_at == BEGAN + 3
