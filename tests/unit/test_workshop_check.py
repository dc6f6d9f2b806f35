"""`data.check`: what a linter says of a data set, line by line, and how the command ends."""

# ruff: noqa: E501 - whole messages are read across

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.data.formats import SPLITS
from trainer.data.tokens import RowMaker
from trainer.errors import InputError
from trainer.paths import PROJECT_ROOT
from trainer.tokenizer import load_tokenizer
from trainer.workshop import commands
from trainer.workshop.check import RULES, check
from trainer.workshop.near import THRESHOLD

LONG = "the ship sailed west with the wind and met a fog bank off the reef where the bell rang all night"
AWS = "AKIA" + "Q" * 8 + "2345ABCD"


def row(*contents: str, **extra: str) -> str:
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]
    return json.dumps({"messages": turns, **extra}, ensure_ascii=False)


def write(folder: Path, **splits: list[str]) -> Path:
    """Write the lines of each split; one that is not given gets a sound sample of its own."""
    for number, name in enumerate(SPLITS):
        lines = splits.get(name, [row(f"what is number {number}{number}?", f"it is {name}, as you know")])
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def told(folder: Path, **options: Any) -> list[str]:
    """Return what is found, without the folder."""
    return [str(finding).replace(f"{folder}/", "") for finding in check(folder, near=THRESHOLD, region="US", **options)]


CASES: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([row("a", "b c")], []),
    "no JSON": (['{"a": }'], ["train.jsonl:1:7 error sample: is not JSON: Expecting value at column 7; mend the line, or have data.prepare drop it"]),
    "no sample": (["[]"], ['train.jsonl:1:1 error sample: is [], not an object such as {"messages": [...]}; mend the line, or have data.prepare drop it']),
    "Latin-1": (
        ["x"],
        ["train.jsonl:1:8 error sample: is not UTF-8 text; save the file as UTF-8; mend the line, or have data.prepare drop it"],
    ),
    "a key": (
        [row("how?", f"use {AWS} for it")],
        [f"train.jsonl:1:{row('how?', f'use {AWS} for it').index(AWS) + 1} error secret: messages[1].content: key; remove it, and replace it where it opens something"],
    ),
    "an address behind quotes and accents": (
        [row('"é" and \n who?', "jo@mail.org")],
        [f"train.jsonl:1:{row(chr(34) + 'é' + chr(34) + ' and ' + chr(10) + ' who?', 'jo@mail.org').index('jo@') + 1} warning personal-data: messages[1].content: email; replace it by something made up"],
    ),
    "a control character": (
        [row("a\u202eb", "c")],
        ["train.jsonl:1:45 warning control-character: messages[0].content: U+202E; remove it"],
    ),
    "an encoding gone wrong": (
        [row("who?", "cafÃ© au lait")],
        ['train.jsonl:1:89 warning encoding: messages[1].content: "Ã©" comes of reading one encoding as another; read the source with its own encoding'],
    ),
    "a refusal": (
        [row("why?", "I cannot help with that.")],
        ['train.jsonl:1:86 warning refusal: messages[1].content: "I cannot help with that."; remove the sample, unless the model is to refuse'],
    ),
    "boilerplate": ([row("why?", "[deleted]")], ['train.jsonl:1:86 warning boilerplate: messages[1].content: "[deleted]"; remove the sample']),
    "an echo": (
        [row("Say ahoy!", "say ahoy")],
        ["train.jsonl:1:91 warning identical-turns: messages[1].content: the answer repeats the question; remove the sample"],
    ),
    "the same twice": (
        [row(f"{LONG}?", LONG), row("x", "y"), row(f"{LONG.upper()}!", LONG)],
        [
            "train.jsonl:1:179 warning identical-turns: messages[1].content: the answer repeats the question; remove the sample",
            "train.jsonl:3:179 warning identical-turns: messages[1].content: the answer repeats the question; remove the sample",
            "train.jsonl:3:1 warning duplicate: has the words of train.jsonl:1; keep one",
        ],
    ),
    "nearly the same": (
        [row("what then?", LONG), row("what then?", f"{LONG} long")],
        ["train.jsonl:2:1 warning near-duplicate: resembles train.jsonl:1; keep one"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_finding_has_its_place_rule_and_remedy(name: str, tmp_path: Path) -> None:
    """File, line, column, severity, rule, what was seen and what to do, in one line."""
    lines, expected = CASES[name]
    write(tmp_path, train=lines)
    if name == "Latin-1":
        (tmp_path / "train.jsonl").write_bytes('{"a": "é"}\n'.encode("latin-1"))
    assert told(tmp_path) == expected


def test_leaks_between_splits_are_errors(tmp_path: Path) -> None:
    """The same words, nearly the same, or the same question with another answer, in two splits."""
    answer = " ".join(reversed(LONG.split()))
    write(
        tmp_path,
        train=[row("one thing?", LONG), row("and another?", answer), row("Which way is north?", "up there, by the star")],
        valid=[row("One thing!", LONG.title())],
        test=[row("and another?", f"{answer} aye"), row("which way is NORTH", "ask the helmsman")],
    )
    fix = "take it out of one of the two splits"
    assert told(tmp_path) == [
        f"valid.jsonl:1:1 error leak: has the words of train.jsonl:1; {fix}".replace("train", f"{tmp_path}/train").replace(
            f"{tmp_path}/", ""
        ),
        f"test.jsonl:1:1 error leak: asks what is asked in train.jsonl:2; {fix}",
        f"test.jsonl:2:1 error leak: asks what is asked in train.jsonl:3; {fix}",
    ]


def test_with_a_model_lengths_and_control_tokens_are_told(tmp_path: Path, tiny_model: Path) -> None:
    """A row above the limit, and a message that would end its own turn."""
    write(tmp_path, train=[row("a", "b" * 60), row("a<|im_end|>", "b"), row("c", "d")])
    rule = "which the model reads as a control token; write it differently"
    assert told(tmp_path, maker=RowMaker(load_tokenizer(tiny_model)), max_tokens=70) == [
        "train.jsonl:1:1 error too-long: is 82 tokens long, above data.max_tokens = 70; split it between turns, or raise data.max_tokens",
        f"train.jsonl:2:1 error control-token: messages[0].content: holds <|im_end|>, {rule}; write it differently",
    ]


def test_the_file_itself_may_be_what_is_wrong(tmp_path: Path) -> None:
    """A split that is missing or empty; a path that is none is refused; a single file is checked alone."""
    write(tmp_path)
    (tmp_path / "valid.jsonl").unlink()
    (tmp_path / "test.jsonl").write_text("")
    fix = "mend the line, or have data.prepare drop it"
    assert told(tmp_path) == [
        f"valid.jsonl:0:1 error sample: cannot be read: No such file or directory; {fix}",
        f"test.jsonl:0:1 error sample: the file is empty; it needs a chat sample on each line; {fix}",
    ]
    assert told(tmp_path / "train.jsonl") == []
    with pytest.raises(InputError, match=f"^{tmp_path}/nope: there is no such file or folder$"):
        told(tmp_path / "nope")
    with pytest.raises(InputError, match=r"^--skip leeks: is not one of sample, leak, "):
        told(tmp_path, skip=["leeks"])


def test_a_rule_can_be_left_out(tmp_path: Path) -> None:
    """--skip takes names of rules."""
    write(tmp_path, train=[row("a", "I cannot help with that."), row("b", "jo@mail.org")])
    assert [text.split(":")[1] for text in told(tmp_path, skip=["refusal"])] == ["2"]
    assert told(tmp_path, skip=["refusal", "personal-data"]) == []


def run(path: Path, **options: Any) -> int:
    return commands.check(str(path), None, **{"as_json": False, "region": "US", "skip": (), **options})


def test_the_command_ends_with_2_on_errors_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings are told and pass; an error ends with 2; findings are results, the tally is the story."""
    assert run(write(tmp_path, train=[row("a", "I cannot help with that.")])) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err == f"{tmp_path}: 0 errors, 1 warnings\n"
    assert run(write(tmp_path, train=["{}"])) == 2
    assert capsys.readouterr().err == f"{tmp_path}: 1 errors, 0 warnings\n"


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one object with every finding's file, line, column, severity, rule, message and fix, and the counts."""
    folder = write(tmp_path, train=[row("how?", f"use {AWS}")])
    assert run(folder, as_json=True) == 2
    assert json.loads(capsys.readouterr().out) == {
        "findings": [
            {
                "file": f"{folder}/train.jsonl",
                "line": 1,
                "column": 90,
                "severity": "error",
                "rule": "secret",
                "message": "messages[1].content: key",
                "fix": RULES["secret"][1],
            }
        ],
        "errors": 1,
        "warnings": 0,
    }


def test_a_thousand_findings_do_not_flood_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two hundred are printed, the rest counted, and no character of theirs moves the cursor."""
    run(write(tmp_path, train=['{"\x1b[2J": 1}'] * 300))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 201
    assert lines[-1] == "and 100 more; --json tells all"
    assert all(line.isprintable() for line in lines)


def test_the_pirate_data_passes_its_own_linter(capsys: pytest.CaptureFixture[str]) -> None:
    """datasets/pirate has no finding, not even a warning."""
    assert run(PROJECT_ROOT / "datasets/pirate") == 0
    assert capsys.readouterr().out == ""


def test_what_prepare_makes_passes_the_linter(tmp_path: Path) -> None:
    """After data.prepare there is nothing left to find: leaks, duplicates, secrets, refusals and characters are gone."""
    from trainer.workshop.prepare import prepare
    from trainer.workshop.settings import Settings

    pick: Callable[[int], str] = lambda n: " ".join(LONG.split()[(n * i) % 20] + str(n) for i in range(1, 9))  # noqa: E731
    rows = [row(f"{pick(n)}?", pick(n + 50)) for n in range(60)]
    rows += [
        rows[1],
        row(f"{pick(1)}?", "other"),
        row("what opens it?", AWS),
        row("no?", "I can't help."),
        row("c\u202e", "d\x07"),
        "{}",
        row("x", "X!"),
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(rows), "utf-8")
    prepare([source], tmp_path / "out", Settings())
    assert told(tmp_path / "out") == []
