"""What the workshop once got wrong: samples that were lost, misread or overlooked without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.data.formats import Message
from trainer.workshop.check import check
from trainer.workshop.curate import Curator
from trainer.workshop.near import THRESHOLD, Spoken, have_like_parts, take_spoken
from trainer.workshop.prepare import prepare
from trainer.workshop.settings import Settings
from trainer.workshop.sources import read_portions

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
