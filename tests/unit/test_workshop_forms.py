"""What the workshop once got wrong: samples that were lost, misread or overlooked without a word."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invoke import Program
from numpy.typing import NDArray

from trainer.data.formats import SPLITS, Message
from trainer.data_tasks import namespace
from trainer.errors import InputError
from trainer.workshop import commands
from trainer.workshop.check import check
from trainer.workshop.curate import Curator
from trainer.workshop.near import THRESHOLD, Spoken, have_like_parts, take_spoken
from trainer.workshop.prepare import prepare
from trainer.workshop.rules import find_refusals, join_turns
from trainer.workshop.settings import Settings
from trainer.workshop.sources import read_portions
from trainer.workshop.stats import check_png, draw_histogram

INSTRUCTION = (
    "Read the following review of a product that a customer wrote after buying it in our shop, think about what the "
    "customer felt when writing it, and then tell whether the whole of it is positive or negative, answering with one of these "
    "two words and nothing else at all."
)
REVIEWS = {
    "It broke on the second day.": "negative",
    "My children love every part.": "positive",
    "The box came empty twice.": "negative",
    "Light, quiet, well made.": "positive",
    "Nobody answered my letters.": "negative",
    "Best kettle for years.": "positive",
}
PASSAGE = (
    "The schooner Albatross left Bristol in the spring of 1871 with nineteen hands, a cargo of iron rails and two cats. She "
    "passed the Azores after nine days, lost her foremast in a squall, and came into Halifax under a jury rig, where the owner "
    "sold her."
)
QUESTIONS = {
    "How many hands were aboard?": "Nineteen.",
    "What was the cargo?": "Iron rails.",
    "Where did she lose a mast?": "Past the Azores, in a squall.",
    "Who sold the ship?": "Her owner.",
    "Which year was it?": "1871",
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def chat(*contents: str) -> dict[str, Any]:
    return {"messages": [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]}


def speak(*contents: str) -> Spoken:
    return take_spoken([Message(**message) for message in chat(*contents)["messages"]])


ALIKE_BUT_FOR_A_PART = {
    "one instruction": [chat(f"{INSTRUCTION}\n\n{review}", label) for review, label in REVIEWS.items()],
    "one passage": [chat(f"{PASSAGE}\n\n{question}", answer) for question, answer in QUESTIONS.items()],
    "one passage in the same block": [chat(f"{PASSAGE} {question}", answer) for question, answer in QUESTIONS.items()],
}


@pytest.mark.parametrize("name", ALIKE_BUT_FOR_A_PART)
def test_samples_that_share_all_but_what_counts_are_no_near_duplicates(name: str, tmp_path: Path) -> None:
    """A fixed instruction with another text each, and several questions about one passage: all stay, and the linter agrees."""
    rows = ALIKE_BUT_FOR_A_PART[name]
    manifest = prepare([write(tmp_path / "a.jsonl", rows)], tmp_path / "out", Settings())
    assert sum(file["rows"] for file in manifest["files"].values()) == len(rows)
    assert "near-duplicate" not in manifest["dropped"]
    assert [str(finding) for finding in check(tmp_path / "a.jsonl", near=THRESHOLD, region="US")] == []


def test_a_word_exchanged_is_still_a_near_duplicate_in_every_part(tmp_path: Path) -> None:
    """The same sample with a word put in, in question and answer, is found where the question has blocks, too."""
    question, answer = f"{INSTRUCTION}\n\nIt broke on the second day that I had it.", "negative, it broke on the second day"
    rows = [chat(question, answer), chat(f"{question} indeed", f"{answer} indeed"), *ALIKE_BUT_FOR_A_PART["one passage"]]
    found = [str(finding) for finding in check(write(tmp_path / "a.jsonl", rows), near=THRESHOLD, region="US")]
    path = tmp_path / "a.jsonl"
    assert found == [f"{path}:2:1 warning near-duplicate: resembles {path}:1; keep one"]


def test_parts_are_compared_one_by_one() -> None:
    """Equal parts are alike whatever they are; blocks count if there are as many; an answer of signs is compared as signs."""
    assert have_like_parts(speak("a b c\n\nd", "yes"), speak("A, b c!\n\n\nd", "Yes."))
    assert not have_like_parts(speak("a b c\n\nd", "yes"), speak("a b c\n\ne", "yes"))
    assert have_like_parts(speak("a b c\n\nd", "yes"), speak("a b c\n\nd\n\ne", "yes"))
    assert not have_like_parts(speak("a", "👍"), speak("a", "👎"))


class _Counted:
    """A file whose lines are counted as they are gone through."""

    def __init__(self, file: Any, count: list[int]) -> None:
        self._file, self._count = file, count

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        for line in self._file:
            self._count[0] += 1
            yield line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_the_place_of_a_finding_does_not_cost_a_reading_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a finding on each of 100 lines, the file is gone through twice, not a hundred times."""
    path = write(tmp_path / "a.jsonl", [chat(f"who is number {n}{n}?", f"ask jo{n}@mail.org") for n in range(100)])
    count, usual = [0], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *rest, **more: _Counted(usual(self, *rest, **more), count))
    columns = {finding.column for finding in check(path, near=THRESHOLD, region="US", skip=["near-duplicate"])}
    monkeypatch.undo()
    lines = path.read_text().splitlines()
    assert columns == {line.index("jo") + 1 for line in lines}
    assert count[0] <= 2 * len(lines)


def curate(path: Path, **changes: Any) -> tuple[list[list[str]], dict[str, list[str]]]:
    """Return the contents of what is kept of a file, and examples of what is dropped, by rule."""
    curator = Curator(Settings(**changes), None)
    portions = [curator.curate(portion) for portion in read_portions(path)]
    kept = [[m["content"] for m in json.loads(line)["messages"]] for each in portions for line in each.lines]
    dropped = {rule: told for each in portions for rule, told in each.dropped.examples.items()}
    return kept, {rule: [text.removeprefix(f"{path}:") for text in told] for rule, told in dropped.items()}


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"q{number}", "completion": f"a{number}"}


SEVERAL_VALUES = {
    "two lists": (f"{json.dumps([pair(0), pair(1)])}\n{json.dumps([pair(2)])}", 3, {}),
    "an empty list, then one": (f"[]{json.dumps([pair(0)])}", 1, {}),
    "objects as jq writes them": ("\n".join(json.dumps(pair(n), indent=2) for n in range(3)), 3, {}),
    "lines after an empty one": ("\n" + "\n".join(json.dumps(pair(n)) for n in range(3)), 3, {}),
    "a list in an object, then a list": (json.dumps({"data": [pair(0)]}) + json.dumps([pair(1)]), 2, {}),
    "more than is read at once": ("\n".join(json.dumps({**pair(n), "more": "x" * 300_000}, indent=1) for n in range(9)), 9, {}),
    "commas between": (
        f"{json.dumps(pair(0))},\n{json.dumps(pair(1))}",
        1,
        {"broken": ['1: "," begins neither an object nor a list of samples; nothing after it is read']},
    ),
    "the second one broken": (
        f"{json.dumps([pair(0)])}\n[{{}}, nix]\n[]",
        1,
        {
            "broken": ["2: is not JSON: Expecting value; nothing after it is read"],
            "form": ["2: holds no conversation that we know, only nothing; --map FIELD=COLUMN tells what is what"],
        },
    ),
}


@pytest.mark.parametrize("name", SEVERAL_VALUES)
def test_each_value_of_a_json_file_is_read(name: str, tmp_path: Path) -> None:
    """Lists and objects that follow each other are all read; what is broken ends the reading with line and reason."""
    content, num_kept, dropped = SEVERAL_VALUES[name]
    path = tmp_path / "a.json"
    path.write_text(content)
    kept, told = curate(path)
    assert kept == [[f"q{n}", f"a{n}"] for n in range(num_kept)]
    assert told == dropped


def read(tmp_path: Path, *rows: Any, **changes: Any) -> tuple[list[list[str]], dict[str, list[str]]]:
    return curate(write(tmp_path / "a.jsonl", list(rows)), **changes)


MESSAGES = chat("q", "a")["messages"]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
READ: dict[str, tuple[Any, list[str]]] = {
    "source tells where it is from": ({"source": "sharegpt", "input": "q", "output": "a"}, ["q", "a"]),
    "source beside target is the question": ({"source": "q", "target": "a"}, ["q", "a"]),
    "an empty instruction": ({"instruction": "", "input": "q", "output": "a"}, ["q", "a"]),
    "a null prompt": ({"prompt": None, "question": "q", "answer": "a"}, ["q", "a"]),
    "null messages": ({"messages": None, "conversations": SHARED}, ["q", "a"]),
    "an empty answer before a filled one": ({"prompt": "q", "completion": " ", "response": "a"}, ["q", "a"]),
    "a null role": ({"messages": [{"role": None, **turn} for turn in SHARED]}, ["q", "a"]),
    "a null content": ({"messages": [{"content": None, **turn} for turn in SHARED]}, ["q", "a"]),
    "objects for an answer": ({"prompt": "q", "completion": '[{"name": "Bob"}]'}, ["q", '[{"name": "Bob"}]']),
    "an empty list for an answer": ({"prompt": "q", "completion": "[]"}, ["q", "[]"]),
    "messages in a cell": ({"prompt": "q", "completion": json.dumps(MESSAGES[1:])}, ["q", "a"]),
    "an answer in a list": ({"prompt": "q", "completion": ["a"]}, ["q", "a"]),
    "an empty system message": ({"messages": [{"role": "system", "content": " "}, *MESSAGES]}, ["q", "a"]),
    "an empty system message beside a column": (
        {"system": "s", "messages": [{"role": "system", "content": ""}, *MESSAGES]},
        ["s", "q", "a"],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_record_is_read_as_it_was_meant(name: str, tmp_path: Path) -> None:
    """Columns that are empty hide none that are filled, a text stays a text, and what says nothing costs no conversation."""
    record, contents = READ[name]
    assert read(tmp_path, record) == ([contents], {})


REFUSED: dict[str, tuple[Any, str]] = {
    "several answers": (
        {"prompt": "q", "completion": ["a", "b"]},
        'answer: ["a", "b"] is a list of 2 texts; which one is the answer?',
    ),
    "a list for a system message": ({"system": ["s"], "prompt": "q", "completion": "a"}, 'system: ["s"] is not a text'),
    "an object for a context": ({"prompt": "q", "context": {"a": 1}, "completion": "a"}, 'context: {"a": 1} is not a text'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_is_no_text_is_named(name: str, tmp_path: Path) -> None:
    """The sample goes, and the message says which field is the reason."""
    record, message = REFUSED[name]
    assert read(tmp_path, record) == ([], {"form": [f"1: {message}"]})


def test_system_applies_where_the_own_message_is_empty(tmp_path: Path) -> None:
    """--system stands in for a system message that says nothing; a conversation of nothing else is dropped with its reason."""
    blank = {"role": "system", "content": "\n"}
    assert read(tmp_path, {"messages": [blank, *MESSAGES]}, {"messages": [blank]}, system="Be brief.") == (
        [["Be brief.", "q", "a"]],
        {"schema": ["2: has no question with an answer"]},
    )
    assert join_turns([Message("system", ""), Message("user", "q"), Message("assistant", "a")])[0].role == "user"


def test_labels_that_are_broken_cost_no_sample(tmp_path: Path) -> None:
    """Halves of characters and lost bytes in category and group are marked; lists and objects count as none and are told."""
    lines = [
        b'{"prompt": "q0", "completion": "a0", "category": "\\ud83c x", "group": "g\\udfff"}',
        b'{"prompt": "q1", "completion": "a1", "category": ["x"], "group": {"a": 1}}',
        b'{"prompt": "q2", "completion": "a2", "topic": "sea", "group": "g"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    manifest = prepare([path], tmp_path / "out", Settings(skip=("near",)), tell=pytest.fail)  # three rows need no words
    assert manifest["categories"] == {"(none)": 1, "sea": 1, "\ufffd x": 1}
    assert manifest["changed"] == {
        "characters": {"count": 1, "examples": [f"{path}:1"]},
        "category": {"count": 1, "examples": [f"{path}:2: the category is no text; it counts as none"]},
        "group": {"count": 1, "examples": [f"{path}:2: the group is no text; it counts as none"]},
    }
    table = tmp_path / "a.csv"
    table.write_bytes(b"prompt,completion,category\n" + b"q,a,sea\n" * 30 + b"q,a,caf\xe9\n" + "q,a,café\n".encode() * 30)
    assert len(curate(table)[0]) == 61


def find_rules(question: str, answer: str) -> list[str]:
    return [seen.rule for seen in find_refusals([Message("user", question), Message("assistant", answer)])]


@pytest.mark.parametrize("label", ["None", "none.", "N/A", "Test"])
def test_a_label_is_no_boilerplate_where_one_is_asked_for(label: str) -> None:
    """After a question that has room to ask for a label it is an answer; after a short one it is what an empty cell became."""
    assert find_rules("Which of these does the sentence name: a place, a person, or none?", label) == []
    assert find_rules("And then?", label) == ["boilerplate"]
    assert find_rules("Which of these does the sentence name: a place, a person, or none?", "[deleted]") == ["boilerplate"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A knowledge cutoff is the date after which a model has seen no text. Later events are unknown to it.", []),
        ("My knowledge cutoff is in 2021, and so the list ends there.", ["refusal"]),
        ("Since the knowledge cut-off is in 2021, I have not heard of it.", ["refusal"]),
        ("As of my last knowledge cutoff, there were nine of them.", ["refusal"]),
    ],
)
def test_only_a_model_speaking_of_itself_is_a_refusal(answer: str, expected: list[str]) -> None:
    """What a knowledge cutoff is may be explained; who has one is a machine."""
    assert find_rules("why?", answer) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region": "mistral"}, "--region MISTRAL: is no country in two letters (ISO 3166), such as DE or GB"),
        (
            {"language": "german"},
            "--language german: is no language that is recognised, in two or three letters (ISO 639), such as en or de",
        ),
        ({"balance": math.nan}, "--balance nan: is at least 1, or 0 for no limit"),
        ({"balance": math.inf}, "--balance inf: is at least 1, or 0 for no limit"),
        ({"near": math.nan}, "--near nan: is a resemblance above 0, at most 1"),
    ],
)
def test_a_setting_that_would_find_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    """The option, the value and the rule, instead of a traceback or of no finding at all."""
    with pytest.raises(InputError) as caught:
        Settings(**changes)
    assert str(caught.value) == message


def test_the_case_of_codes_does_not_count(tmp_path: Path) -> None:
    """--region de is Germany and --language EN is English, for data.check, too."""
    settings = Settings(region="de", language="EN")
    assert (settings.region, settings.language) == ("DE", "en")
    row = {"prompt": "How can I reach you?", "completion": "Call 030 901820, please."}
    assert read(tmp_path, row, region="de") == ([["How can I reach you?", "Call [PHONE], please."]], {})


def check_by_command(path: Path, **options: Any) -> int:
    return commands.check(str(path), None, **{"as_json": False, "region": "US", "skip": (), **options})


def test_data_check_refuses_what_data_prepare_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All problems at once, before anything is read; a region in small letters is one."""
    path = write(tmp_path / "a.jsonl", [chat("How can I reach you?", "Call 030 901820, please.")])
    with pytest.raises(InputError) as caught:
        check_by_command(path, near="5", region="xx")
    assert str(caught.value) == (
        "--near 5.0: is a resemblance above 0, at most 1\n"
        "--region XX: is no country in two letters (ISO 3166), such as DE or GB"
    )
    assert check_by_command(path, region="de") == 0
    assert "personal-data: messages[1].content: phone" in capsys.readouterr().out


def test_data_tasks_have_the_short_flags_of_all_commands_and_no_others() -> None:
    """-r is the recipe and -o lays over it; nothing is dealt out in the order of parameters."""
    flags = {
        (argument.name, name)
        for task in namespace.tasks.values()
        for argument in task.get_arguments(ignore_unknown_help=True)
        for name in argument.names
        if len(name) == 1
    }
    assert flags == {("recipe", "r"), ("override", "o")}


def test_a_target_that_exists_is_noticed_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the hub nor a model is asked where the folder could not be written in the end."""
    for name in ("fetch_from_hub", "find_model"):
        monkeypatch.setattr(commands, name, lambda *_: pytest.fail("fetched something"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    with pytest.raises(InputError) as caught:
        commands.prepare(commands.Order(["owner/name"], str(tmp_path / "out"), {}), commands.Counting("pirate"))
    assert str(caught.value) == f"{tmp_path / 'out'}: exists already; give another folder with --out"


def test_a_histogram_goes_into_a_png_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another kind, no folder, or a file that is something else is refused before work starts, and stays as it is."""
    monkeypatch.setattr(commands, "check_data", lambda *_, **__: pytest.fail("began to work"))
    notes = tmp_path / "notes.png"
    notes.write_text("mine")
    for path, rule in (
        (tmp_path / "x.svg", "is drawn as a PNG; give a name that ends in .png"),
        (tmp_path / "none/x.png", f"there is no folder {tmp_path / 'none'}; make it, or give another name"),
        (notes, "exists and is no PNG; give another name"),
    ):
        with pytest.raises(InputError) as caught:
            commands.stats(str(tmp_path), commands.Counting("pirate"), png=str(path))
        assert str(caught.value) == f"--png {path}: {rule}"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.png"]
    assert notes.read_text() == "mine"


@dataclass
class _Lengths:
    """As much of a token store as is drawn."""

    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)


def test_a_histogram_appears_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG of before is replaced; a drawing that fails leaves it, and nothing beside it."""
    rows: Any = {split: _Lengths(np.arange(10, 20)) for split in SPLITS}
    target = tmp_path / "a.PNG"
    check_png(target)
    draw_histogram(rows, 100, target)
    drawn = target.read_bytes()
    check_png(target)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        draw_histogram(rows, 100, target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.PNG"]
    assert target.read_bytes() == drawn


def test_data_style_takes_the_options_of_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """--form, --map, --system and --skip arrive as they do from data.prepare."""
    asked: list[commands.Order] = []
    monkeypatch.setattr(commands, "prepare", lambda order, _counting: asked.append(order) or 0)
    options = "--form pairs --map question=Frage --map answer=Antwort --system s --skip near --skip length"
    with pytest.raises(SystemExit):
        Program(namespace=namespace).run(["inv", "style", "a.csv", "out", *options.split()])
    [order] = asked
    assert order.mapping == ("question=Frage", "answer=Antwort")
    assert {name: order.settings[name] for name in ("style", "form", "system", "skip")} == {
        "style": "pirate", "form": "pairs", "system": "s", "skip": ("near", "length"),
    }  # fmt: skip
