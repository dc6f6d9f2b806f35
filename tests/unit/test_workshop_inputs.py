"""What people call a data set: each odd or broken file is read, or refused with line and reason; nothing is lost silently."""

# ruff: noqa: E501 - the table of cases is read across

from __future__ import annotations

import codecs
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainer.data.formats import Sample, parse_line
from trainer.errors import InputError
from trainer.workshop.curate import Curator
from trainer.workshop.prose import read_transcript
from trainer.workshop.settings import Settings
from trainer.workshop.sources import find_sources, read_portions, say_passed_over

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

PAIR = '{"prompt": "ahoy?", "completion": "arr"}'
CHAT = '{"messages": [{"role": "user", "content": "ahoy?"}, {"role": "assistant", "content": "arr"}]}'
SHARE = '{"conversations": [{"from": "human", "value": "ahoy?"}, {"from": "gpt", "value": "arr"}]}'
ONE = ["ahoy?", "arr"]
HINT = "--map FIELD=COLUMN tells what is what"
STRAY = "is not CSV: ',' expected after '\"'; write a quote within a quoted cell twice"
REST = "is not CSV: looks like more of the broken row above it"


@dataclass
class Became:
    """What a file became: the contents of each conversation, and what was dropped as "line rule: text"."""

    kept: list[list[str]]
    dropped: list[str]
    num_read: int


def curate(path: Path, **changes: Any) -> Became:
    """Return what the workers make of a file, one portion after the other."""
    curator = Curator(Settings(**changes), None)
    kept, dropped, num_read = [], [], 0
    for portion in read_portions(path):
        for record in portion.records:  # one by one, so that no example is left out for being the sixth
            curated = curator.curate(type(portion)(portion.path, [record]))
            num_read += curated.num_read
            for line in curated.lines:
                sample = parse_line(line, path, 1)
                assert isinstance(sample, Sample), sample
                kept.append([message.content for message in sample.messages])
            for rule, (first,) in curated.dropped.examples.items():
                place, _, text = first.removeprefix(f"{path}:").partition(": ")
                dropped.append(f"{place} {rule}: {text}")
    return Became(kept, dropped, num_read)


def table(*rows: str) -> str:
    return "\n".join(rows) + "\n"


DEEP = '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}"
NESTED = json.dumps({"messages": json.dumps([{"role": "user", "content": "ahoy?"}, {"role": "assistant", "content": "arr"}])})
LONG = json.dumps({"prompt": "ahoy?", "completion": "arr " * 5_000_000})

# name: (file name, content, contents of what is kept, what is dropped)
CASES: dict[str, tuple[str, str | bytes, list[list[str]], list[str]]] = {
    # forms
    "chat": ("a.jsonl", CHAT, [ONE], []),
    "prompt and completion": ("a.jsonl", PAIR, [ONE], []),
    "sharegpt": ("a.jsonl", SHARE, [ONE], []),
    "instruction with input": ("a.jsonl", '{"instruction": "a", "input": "b", "output": "c"}', [["a\n\nb", "c"]], []),
    "instruction with an empty input": ("a.jsonl", '{"instruction": "a", "input": "", "output": "c"}', [["a", "c"]], []),
    "instruction with context": ("a.jsonl", '{"instruction": "a", "context": "b", "response": "c"}', [["a\n\nb", "c"]], []),
    "question and answer": ("a.jsonl", '{"Question": "a?", "Answer": "c"}', [["a?", "c"]], []),
    "a system prompt beside": ("a.jsonl", '{"system": "s", "prompt": "a", "response": "c"}', [["s", "a", "c"]], []),
    "preferences": (
        "a.jsonl",
        '{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": []}',
        [],
        ['1 form: has no question, or an empty one, only answer among "chosen", "rejected"; --map question=COLUMN names it'],
    ),
    "prompt and chosen": (
        "a.jsonl",
        '{"prompt": "a", "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        [["a", "b"]],
        [],
    ),
    "a bare list of turns": ("a.jsonl", '["ahoy?", "arr"]', [ONE], []),
    "a transcript": ("a.jsonl", json.dumps({"text": "User: ahoy?\nAssistant: arr"}), [ONE], []),
    "a transcript of the old kind": ("a.jsonl", json.dumps({"text": "### Human: ahoy?\n### Assistant: arr"}), [ONE], []),
    "ChatML as text": (
        "a.jsonl",
        json.dumps({"text": "<|im_start|>user\nahoy?<|im_end|>\n<|im_start|>assistant\narr<|im_end|>"}),
        [ONE],
        [],
    ),
    "parts of content": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "ahoy?"}]}, {"role": "assistant", "content": "arr"}]}',
        [ONE],
        [],
    ),
    "mixed forms": ("a.jsonl", table(CHAT, PAIR, SHARE, '["ahoy?", "arr"]'), [ONE] * 4, []),
    "nested JSON strings": ("a.jsonl", NESTED, [ONE], []),
    "a number for an answer": ("a.jsonl", '{"prompt": "1+1", "completion": 2}', [["1+1", "2"]], []),
    "unknown columns": ("a.jsonl", '{"a": "x", "b": "y"}', [], [f'1 form: holds no conversation that we know, only "a", "b"; {HINT}']),
    # JSON, broken
    "a trailing comma": (
        "a.jsonl",
        table(PAIR, PAIR[:-1] + ",}"),
        [ONE],
        ["2 json: is not JSON: Expecting property name enclosed in double quotes at column 41"],
    ),
    "single quotes": ("a.jsonl", "{'prompt': 'a'}", [], ["1 json: is not JSON: Expecting property name enclosed in double quotes at column 2"]),
    "two objects on a line": ("a.jsonl", PAIR + PAIR, [], ["1 json: is not JSON: Extra data at column 41"]),
    "a line cut off": ("a.jsonl", table(PAIR, PAIR[:20]), [ONE], ["2 json: is not JSON: Expecting property name enclosed in double quotes at column 21"]),
    "an object over several lines": (
        "a.jsonl",
        '{"prompt": "a",\n"completion": "b"}',
        [],
        ["1 json: is not JSON: Expecting property name enclosed in double quotes at column 16", "2 json: is not JSON: Extra data at column 13"],
    ),
    "a key twice": ("a.jsonl", '{"prompt": "a", "prompt": "b", "completion": "c"}', [], ['1 json: has "prompt" twice; which one is meant?']),
    "empty lines": ("a.jsonl", f"\n{PAIR}\n\n", [ONE], ["1 empty-line: the line is empty", "3 empty-line: the line is empty"]),
    "no newline at the end": ("a.jsonl", f"{PAIR}\n{PAIR}", [ONE] * 2, []),
    "Windows' line ends": ("a.jsonl", f"{PAIR}\r\n{PAIR}\r\n", [ONE] * 2, []),
    "nesting without end": ("a.jsonl", DEEP, [], ["1 json: is nested too deeply"]),
    "a number without end": ("a.jsonl", "9" * 5000, [], ["1 json: holds a number that is too long"]),
    "null": ("a.jsonl", "null", [], ["1 form: is null, which holds no conversation"]),
    "NaN": ("a.jsonl", '{"prompt": NaN, "completion": "a"}', [], ['1 form: has no question, or an empty one, only answer among "prompt", "completion"; --map question=COLUMN names it']),
    "a line of 20 MB": ("a.jsonl", LONG, [["ahoy?", ("arr " * 5_000_000).rstrip()]], []),
    "an object for a content": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": {"a": 1}}]}',
        [],
        ['1 form: messages[0].content: {"a": 1} is not a text'],
    ),
    "a role that nobody knows": (
        "a.jsonl",
        '{"messages": [{"role": "wizard", "content": "a"}]}',
        [],
        ['1 form: messages[0].role: "wizard" is nobody we know'],
    ),
    "a tool's turn": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}',
        [],
        ['1 form: messages[1].role: "tool" is nobody we know'],
    ),
    # turns
    "two turns of one speaker": (
        "a.jsonl",
        '["a"]\n' + json.dumps({"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("user", "b"), ("assistant", "c"))]}),
        [["a\n\nb", "c"]],
        ["1 schema: has no question with an answer"],
    ),
    "the assistant begins": (
        "a.jsonl",
        json.dumps({"messages": [{"role": r, "content": c} for r, c in (("assistant", "hi"), ("user", "a"), ("assistant", "c"))]}),
        [["a", "c"]],
        [],
    ),
    "nobody answers": ("a.jsonl", json.dumps({"messages": [{"role": "user", "content": "a"}]}), [], ["1 schema: has no question with an answer"]),
    "the user has the last word": (
        "a.jsonl",
        json.dumps({"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]}),
        [["a", "b"]],
        [],
    ),
    "an empty turn": (
        "a.jsonl",
        json.dumps({"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", " \n"))]}),
        [],
        ["1 empty-turn: messages[1].content: is empty"],
    ),
    "a late system message": (
        "a.jsonl",
        json.dumps({"messages": [{"role": r, "content": r} for r in ("user", "system", "assistant")]}),
        [],
        ["1 schema: messages[1]: a system message may only come first"],
    ),
    "an answer that repeats the question": ("a.jsonl", '{"prompt": "Ahoy?", "completion": "ahoy!"}', [], ["1 identical-turns: the answer repeats the question"]),
    # encodings and characters
    "a byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + PAIR.encode(), [ONE], []),
    "UTF-16": ("a.jsonl", f"{PAIR}\n{PAIR}\n".encode("utf-16"), [ONE] * 2, []),
    "UTF-16 without a mark": ("a.jsonl", f"{PAIR}\n{PAIR}\n".encode("utf-16-le"), [ONE] * 2, []),
    "UTF-32": ("a.jsonl", codecs.BOM_UTF32_LE + f"{PAIR}\n".encode("utf-32-le"), [ONE], []),
    "Latin-1 all through": (
        "a.jsonl",
        "\n".join(f'{{"prompt": "où est le garçon n° {n}?", "completion": "à côté de la fenêtre, près du café"}}' for n in range(40)).encode("latin-1"),
        [[f"où est le garçon n° {n}?", "à côté de la fenêtre, près du café"] for n in range(40)],
        [],
    ),
    "one line of Latin-1 in UTF-8": (
        "a.jsonl",
        (table(*[PAIR.replace("arr", "Jürgen")] * 30)).encode() + '{"prompt": "é", "completion": "b"}'.encode("latin-1"),
        [["ahoy?", "Jürgen"]] * 30,
        ["31 encoding: is not UTF-8 text, from byte 13 on"],
    ),
    "null characters inside": ("a.jsonl", '{"prompt": "a\\u0000b", "completion": "c\\u0007"}', [["ab", "c"]], []),
    "null bytes between": ("a.jsonl", PAIR.encode() + b"\n\0\0\n" + PAIR.encode(), [ONE] * 2, ["2 json: is not JSON: Expecting value at column 1"]),
    "lone surrogates": (
        "a.jsonl",
        '{"prompt": "a\\ud83c", "completion": "c"}',
        [],
        ["1 encoding: holds a character that was lost in reading or writing, at position 1"],
    ),
    "characters that were lost": (
        "a.jsonl",
        '{"prompt": "a", "completion": "caf\ufffd"}',
        [],
        ["1 encoding: holds a character that was lost in reading or writing, at position 3"],
    ),
    "right-to-left text": ("a.jsonl", '{"prompt": "שלום?", "completion": "مرحبا"}', [["שלום?", "مرحبا"]], []),
    "direction overrides": ("a.jsonl", '{"prompt": "a\u202eb\u2066", "completion": "c"}', [["ab", "c"]], []),
    "emoji that are joined": ("a.jsonl", '{"prompt": "👩‍👩‍👧?", "completion": "🏴‍☠️ 👍🏽"}', [["👩‍👩‍👧?", "🏴‍☠️ 👍🏽"]], []),
    "accents apart": ("a.jsonl", '{"prompt": "cafe\u0301", "completion": "b"}', [["café", "b"]], []),
    "line separators": ("a.jsonl", '{"prompt": "a\u2028b", "completion": "c\u0085d"}', [["a\u2028b", "c\u0085d"]], []),
    "Windows' line ends inside": ("a.jsonl", '{"prompt": "a\\r\\nb", "completion": "c\\rd"}', [["a\nb", "c\nd"]], []),
    # JSON files
    "a list": ("a.json", f"[{PAIR},\n {CHAT}]", [ONE] * 2, []),
    "a list in an object": ("a.json", f'{{"version": 1, "data": [{PAIR}, {PAIR}]}}', [ONE] * 2, []),
    "one object": ("a.json", CHAT, [ONE], []),
    "lines by another name": ("a.json", f"{PAIR}\n{PAIR}\n", [ONE] * 2, []),
    "a list cut off": ("a.json", f"[{PAIR},\n", [ONE], ["2 broken: the list never ends: the file is cut off"]),
    "a list broken inside": (
        "a.json",
        f"[{PAIR},\n{{'a'}},\n{PAIR}]",
        [ONE],
        ["2 broken: is not JSON: Expecting property name enclosed in double quotes; nothing after it is read"],
    ),
    "a list without commas": ("a.json", f"[{PAIR}\n{PAIR}]", [ONE], ["2 broken: is not JSON: a comma is missing before {"]),
    "a list of nothing": ("a.json", "[]", [], []),
    "a text for JSON": ("a.json", '"hello"', [], ["1 broken: is not a list of samples"]),
    "an empty JSON file": ("a.json", "", [], ["1 broken: the file is empty"]),
    # tables
    "CSV": ("a.csv", "prompt,completion\nahoy?,arr\n", [ONE], []),
    "CSV of a spreadsheet": ("a.csv", "\ufeffprompt;completion\r\nahoy?;arr\r\n", [ONE], []),
    "TSV": ("a.tsv", "prompt\tcompletion\nahoy?\tarr\n", [ONE], []),
    "cells of several lines": ("a.csv", 'prompt,completion\n"a\nb","c, d"\nahoy?,arr\n', [["a\nb", "c, d"], ONE], []),
    "empty columns": ("a.csv", "prompt,completion,\nahoy?,arr,\n,,\n", [ONE], []),
    "an empty cell": (
        "a.csv",
        "prompt,completion\nahoy?,\n",
        [],
        ['2 form: has no answer, or an empty one, only question among "prompt", "completion"; --map answer=COLUMN names it'],
    ),
    "too many cells": ("a.csv", "prompt,completion\na,b,c\nahoy?,arr\n", [ONE], ["2 broken: has 3 cells for 2 columns; quote cells that hold a ','"]),
    "a quote that is not written twice": ("a.csv", 'prompt,completion\na,"b "c" d"\nahoy?,arr\n', [ONE], [f"2 broken: {STRAY}"]),
    "messages in a cell": ("a.csv", 'id,messages\n1,"[{""role"": ""user"", ""content"": ""ahoy?""}, {""role"": ""assistant"", ""content"": ""arr""}]"\n', [ONE], []),
    "an empty table": ("a.csv", "", [], ["1 broken: the file is empty"]),
    "null bytes in a table": ("a.csv", "prompt,completion\na\0,b\nahoy?,arr\n", [ONE], ["2 encoding: holds a character that was lost in reading or writing, at position 1"]),
    # texts
    "Markdown": ("a.md", "# Title\n\n## What is it?\nA ship.\n\n## Why?\n```\n# no heading\n```\n", [["What is it?", "A ship."], ["Why?", "```\n# no heading\n```"]], []),
    "a transcript as a file": ("a.txt", "Q: ahoy?\nA: arr\n", [ONE], []),
    "prose": ("a.txt", f"{'one ' * 120}\n\n{'two ' * 120}", [[f"Continue this text:\n\n{('one ' * 120).strip()}", ("two " * 120).strip()]], []),
    "prose of one passage": ("a.txt", "only this", [], ["1 broken: is a text of one passage, with nothing to learn its continuation from"]),
    "an empty text": ("a.txt", " \n", [], ["1 broken: the file is empty"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_odd_input_is_read_or_refused_with_line_and_reason(name: str, tmp_path: Path) -> None:
    """What is kept is exactly that, and each record that is not is told with its line and why."""
    file, content, kept, dropped = CASES[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    became = curate(path)
    assert became.kept == kept
    # Python 3.13 names the trailing comma, older ones what they expected instead
    named = "Illegal trailing comma before end of object at column 40"
    usual = "Expecting property name enclosed in double quotes at column 41"
    assert [text.replace(named, usual) for text in became.dropped] == dropped


def test_there_are_sixty_of_them() -> None:
    """The table above is as long as it was meant to be."""
    assert len(CASES) >= 60


NO_FILE = (
    "the folder holds no file that is read; these are: "
    ".jsonl .ndjson .json .csv .tsv .parquet .arrow .feather .txt .md .markdown .text"
)
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing there": (lambda _: None, "{path}: there is no such file or folder"),
    "a file of no known kind": (
        lambda path: (path.mkdir(), (path / "a.exe").write_text("x"))[0],
        "{path}: " + NO_FILE,
    ),
    "an empty folder": (
        lambda path: path.mkdir(),
        "{path}: " + NO_FILE,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    """The path and what would do are told."""
    make, message = REFUSED[name]
    path = tmp_path / "source"
    make(path)
    with pytest.raises(InputError) as caught:
        find_sources([str(path)], lambda _: pytest.fail("asked the hub"))
    assert str(caught.value) == message.format(path=path)


def test_a_folder_where_a_file_is_expected_is_gone_through(tmp_path: Path) -> None:
    """A folder by the name of a file is a folder; hidden files, read-me files and a manifest beside data are left alone."""
    folder = tmp_path / "a.jsonl"
    (folder / "deep").mkdir(parents=True)
    for name in ("deep/b.jsonl", "a.csv", ".hidden.jsonl", "README.md", "manifest.json", "._a.csv"):
        (folder / name).write_text(PAIR)
    files, _ = find_sources([str(folder), str(folder / "a.csv")], lambda _: pytest.fail("asked the hub"))
    assert [str(file.relative_to(folder)) for file in files] == ["a.csv", "deep/b.jsonl"]


def test_utf16_cut_within_a_character_is_refused(tmp_path: Path) -> None:
    """A file that was not copied whole is named, with what its bytes look like."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(PAIR.encode("utf-16-be")[:-1])
    with pytest.raises(InputError) as caught:
        curate(path)
    assert str(caught.value) == f"{path}: looks like utf-16-be, but is not: truncated data; save it as UTF-8"


def test_binary_files_are_refused(tmp_path: Path) -> None:
    """Bytes that are no text in any encoding are told as such, not guessed at."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\0\0\0\1\0\0\0\0" * 99)
    with pytest.raises(InputError) as caught:
        list(read_portions(path))
    assert str(caught.value) == f"{path}: holds no text: 693 of its first 792 bytes are null"


def test_a_hub_id_is_asked_for_where_no_such_path_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """owner/name is the hub's unless it is a path; hf: says so in any case; patterns are matched; all problems come together."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for name in ("own/a.jsonl", "own/b.jsonl", "from-hub.jsonl"):
        (tmp_path / name).write_text(PAIR)
    asked: list[str] = []

    def fetch(name: str) -> Path:
        asked.append(name)
        if name == "no/such":
            raise InputError(f"{name}: is nowhere")
        return tmp_path / "from-hub.jsonl"

    found, _ = find_sources(["owner/name", "hf:own/a", "own/*.jsonl", "own/a.jsonl"], fetch)
    assert [file.name for file in found] == ["from-hub.jsonl", "a.jsonl", "b.jsonl"]
    assert asked == ["owner/name", "own/a"]
    with pytest.raises(InputError) as caught:
        find_sources(["no/such", "missing", "none*.csv"], fetch)
    assert str(caught.value) == "no/such: is nowhere\nmissing: there is no such file or folder\nnone*.csv: matches no file"


def test_a_mapping_names_the_columns(tmp_path: Path) -> None:
    """Columns of any name are read once they are told, a spelling mistake is caught, and --form decides what a record is."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"Frage": "ahoy?", "Antwort": "arr", "Thema": "see"}\n')
    assert curate(path, mapping=(("question", "Frage"), ("answer", "Antwort"))).kept == [ONE]
    assert curate(path, mapping=(("question", "Farge"),)).dropped == [
        '1 form: has no "Farge", which --map names for question; did you mean Frage?'
    ]
    path.write_text('{"text": "User: a\\nAssistant: b", "prompt": "ahoy?", "completion": "arr"}\n')
    assert curate(path).kept == [ONE]
    assert curate(path, form="text").kept == [["a", "b"]]


def test_a_system_prompt_is_added_where_there_is_none(tmp_path: Path) -> None:
    """--system does not replace a conversation's own."""
    path = tmp_path / "a.jsonl"
    path.write_text(table(PAIR, '{"system": "own", "prompt": "a", "response": "b"}'))
    assert curate(path, system="Be brief.").kept == [["Be brief.", *ONE], ["own", "a", "b"]]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_columns_are_read(suffix: str, tmp_path: Path) -> None:
    """Parquet and Arrow, with lists of structs as the hub has them; a broken file is refused by name."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install --require-hashes -r requirements-parquet.lock")
    feather, parquet = (importlib.import_module(f"pyarrow.{name}") for name in ("feather", "parquet"))
    rows = [json.loads(SHARE)] * 3
    path = tmp_path / f"a.{suffix}"
    content = pyarrow.Table.from_pylist(rows)
    if suffix == "parquet":
        parquet.write_table(content, path)
    elif suffix == "feather":
        feather.write_feather(content, path)
    else:  # as `datasets` writes it
        with pyarrow.ipc.new_stream(path, content.schema) as writer:
            writer.write_table(content)
    assert curate(path).kept == [ONE] * 3
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=rf"^{path}: cannot be read as {suffix}: "):
        curate(path)


def test_without_pyarrow_the_remedy_is_told(tmp_path: Path) -> None:
    """Where pyarrow is not installed, the command that brings it."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\nfrom trainer.workshop.sources import read_portions\n"
        f"list(read_portions(Path({str(tmp_path / 'a.parquet')!r})))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    said = "reading .parquet needs pyarrow; .venv/bin/python -m pip install --require-hashes -r requirements-parquet.lock brings it"
    assert shown.stderr.strip().endswith(said)


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "messages", "prompt", "completion", "from", "value", "text"]), inner
        )
    ),
    max_leaves=12,
)


@patient
@given(st.lists(json_value, max_size=6))
def test_any_json_is_a_conversation_or_a_reason(tmp_path: Path, values: list[object]) -> None:
    """Each record of a file is kept or dropped with a reason, and what is kept is read back by the trainer."""
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    became = curate(path)
    assert became.num_read == len(values) == len(became.kept) + len(became.dropped)
    assert all(text.isprintable() for text in became.dropped)


@patient
@example(noise=b"\x00", name="a.jsonl")
@given(st.binary(max_size=300), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.md"]))
def test_any_bytes_end_in_conversations_or_reasons(tmp_path: Path, noise: bytes, name: str) -> None:
    """No file ends in anything but samples, reasons with lines, or one `InputError` that begins with its name."""
    path = tmp_path / name
    path.write_bytes(noise)
    try:
        became, said = curate(path), ""
    except InputError as error:
        became, said = Became([], [], 0), str(error)
    assert not said or said.startswith(f"{path}: ")
    assert all(text.split(" ", 1)[0].isdigit() for text in became.dropped)


@patient
@given(st.lists(json_value, min_size=1, max_size=8), st.booleans())
def test_a_list_is_read_like_lines(tmp_path: Path, values: list[object], pretty: bool) -> None:
    """The same records come of a JSON list, however it is laid out, as of JSON Lines."""
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text("".join(json.dumps(value) + "\n" for value in values))
    whole.write_text(json.dumps(values, indent=2 if pretty else None))
    one, two = curate(lines), curate(whole)
    assert one.kept == two.kept
    assert [text.split(" ", 1)[1] for text in one.dropped] == [text.split(" ", 1)[1] for text in two.dropped]


# rows after the head "prompt,completion": what is kept, what is dropped
STRAY_QUOTES: dict[str, tuple[str, list[list[str]], list[str]]] = {
    "in a cell": ('a,b\n1,"Some say "rain" gathers"\nahoy?,arr\n"ahoy?","arr"', [["a", "b"], ONE, ONE], [f"3 broken: {STRAY}"]),
    "an opened cell before a quoted one": ('1,"open\na,b\n"ahoy?","arr"', [["a", "b"], ONE], [f"2 broken: {STRAY}"]),
    "in two rows": ('1,"a "b" c"\n2,"d "e" f"\nahoy?,arr', [ONE], [f"2 broken: {STRAY}", f"3 broken: {STRAY}"]),
    "in a cell of several lines": (
        '"one\nhe said "hi" to me\nthree",x\n\nahoy?,arr',
        [ONE],
        [f"2 broken: {STRAY}", f"3 broken: {REST}", f"4 broken: {REST}"],
    ),
    "in a cell that ends on a line of its own": ('"He said "x"\n",b\nahoy?,arr', [ONE], [f"2 broken: {STRAY}", f"3 broken: {REST}"]),
    "where nothing is quoted": ('a 5" mast,b\nahoy?,arr', [['a 5" mast', "b"], ONE], []),
}  # fmt: skip


@pytest.mark.parametrize("name", STRAY_QUOTES)
def test_a_stray_quote_costs_its_own_row_alone(name: str, tmp_path: Path) -> None:
    """All rows before and behind the broken one are read, with their own lines; no piece of it passes for a row."""
    rows, kept, dropped = STRAY_QUOTES[name]
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,completion\n{rows}\n")
    became = curate(path)
    assert (became.kept, became.dropped) == (kept, dropped)


@pytest.mark.parametrize(
    ("rows", "line"),
    [('a,"b', 2), ('a,"b\n', 2), ('a,"', 2), ('c,d\n1,"open\na,b\nahoy?,arr\n', 3), ('"x\ny","open\nc,d\n\n', 3), ('a,b\r1,"c\r', 3)],
)  # fmt: skip
def test_a_quoted_cell_that_is_never_closed_is_refused(rows: str, line: int, tmp_path: Path) -> None:
    """It would swallow the rest of the file: the line on which the cell opens is told, and the remedy."""
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,completion\n{rows}", newline="")
    with pytest.raises(InputError) as caught:
        list(read_portions(path))
    said = "a quoted cell opens here and is never closed; close it, or write the quote twice if it is text"
    assert str(caught.value) == f"{path}:{line}: {said}"


BELOW = "Below is an instruction that describes a task, paired with an input. Write a response that completes the request."
CHATML = "<|im_start|>{}\n{}<|im_end|>\n"

# text of a record: the roles and contents of its turns, or why it has none
TRANSCRIPTS: dict[str, tuple[str, list[str] | str]] = {
    "turns on one line": ("### Human: ahoy?### Assistant: arr### Human: and? ### Assistant: aye", ["user: ahoy?", "assistant: arr", "user: and?", "assistant: aye"]),
    "Alpaca": (f"{BELOW}\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n3", [f"system: {BELOW}", "user: Add.\n\n1, 2", "assistant: 3"]),
    "Alpaca without an input": (f"{BELOW}\n\n### Instruction:\nAdd.\n\n### Input:\n\n### Response:\n3", [f"system: {BELOW}", "user: Add.", "assistant: 3"]),
    "an input that looks like turns": ("### Instruction: Answer.\n### Input:\nQuestion: who?\nHint: a bird.\n### Response: A: the gull", ["user: Answer.\n\nQuestion: who?\nHint: a bird.", "assistant: A: the gull"]),
    "an input of plain turns": ("User: a\nInput: b\nAssistant: c", ["user: a\nInput: b", "assistant: c"]),
    "turns that speak of marks": ("User: what is ### Human: good for?\nAssistant: for chats", ["user: what is ### Human: good for?", "assistant: for chats"]),
    "a preamble of plain turns": ("They met.\nUser: a\nAssistant: b", "is a text without turns; give it as a file of its own (.txt or .md), or --map its columns"),
    "a preamble with headings": ("# Title\n\n### Question: a\n\n### Answer: b", "is a text without turns; give it as a file of its own (.txt or .md), or --map its columns"),
    "ChatML on one line": ("<|im_start|>user\na<|im_end|><|im_start|>assistant\nb<|im_end|>", ["user: a", "assistant: b"]),
    "ChatML between a sequence's marks": ("<s>" + CHATML.format("system", "s") + CHATML.format("user", "a") + CHATML.format("assistant", "b") + "</s>", ["system: s", "user: a", "assistant: b"]),
    "ChatML that asks for an answer": (CHATML.format("user", "a") + CHATML.format("assistant", "b") + "<|im_start|>assistant", ["user: a", "assistant: b"]),
    "ChatML without ends": ("<|im_start|>user\na\n<|im_start|>assistant\nb", ["user: a", "assistant: b"]),
    "ChatML with a tool": (CHATML.format("user", "a") + CHATML.format("tool", "42") + CHATML.format("assistant", "b"), 'turn 2 of ChatML: "tool" is nobody we know; write it as a turn of user or assistant, or leave it out'),
    "ChatML with a function": (CHATML.format("user", "a") + CHATML.format("function name=f", "42"), 'turn 2 of ChatML: "function name=f" is nobody we know; write it as a turn of user or assistant, or leave it out'),
    "ChatML that is spoken of": ("User: what is <|im_start|>?\nAssistant: It begins a turn.", ["user: what is <|im_start|>?", "assistant: It begins a turn."]),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_transcript_keeps_every_turn(name: str) -> None:
    """All that is said is in some turn, by whom it was said; where that cannot be told, the reason is."""
    text, expected = TRANSCRIPTS[name]
    if isinstance(expected, str):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
            read_transcript(text)
        assert str(caught.value) == expected
    else:
        assert [f"{turn.role}: {turn.content}" for turn in read_transcript(text)] == expected


def test_a_document_in_which_a_tool_speaks_is_no_prose(tmp_path: Path) -> None:
    """A file of ChatML with an unknown role is dropped with the reason that a record would be, not read as a story."""
    path = tmp_path / "a.txt"
    path.write_text(TRANSCRIPTS["ChatML with a tool"][0])
    became = curate(path)
    assert (became.kept, became.dropped) == ([], [f"1 broken: {TRANSCRIPTS['ChatML with a tool'][1]}"])


def test_what_stands_before_the_first_heading_is_told(tmp_path: Path) -> None:
    """A title's line may stand there; a passage answers no heading, is counted as dropped, and the remedy told."""
    path, rest = tmp_path / "a.md", "# What is it?\nA ship.\n"
    path.write_text(f"\nAll about ships\n\n{rest}")
    assert curate(path).dropped == []
    path.write_text(f"\nShips are large.\nThey sail.\n\n{rest}")
    became = curate(path)
    assert became.kept == [["What is it?", "A ship."]]
    assert became.dropped == [
        "2 broken: holds 5 words before the first heading, which answer nothing; put a heading above them"
    ]
    path.write_text(f"{'word ' * 30}\n{rest}")
    assert curate(path).dropped == [
        "1 broken: holds 30 words before the first heading, which answer nothing; put a heading above them"
    ]


def test_what_is_passed_over_is_known(tmp_path: Path) -> None:
    """Files of a folder that are not read are returned beside those that are, but hidden ones, what tells of data, and what is named."""
    for name in ("good.jsonl", "deep/notes.md", "about.txt", "manifest.json", "a.xlsx", ".hidden.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PAIR)

    def names(*sources: str) -> list[list[str]]:
        found = find_sources([str(tmp_path / source) for source in sources], lambda _: pytest.fail("asked the hub"))
        return [[file.name for file in files] for files in found]

    assert names("") == [["good.jsonl"], ["a.xlsx", "about.txt", "notes.md"]]
    assert names("", "deep") == [["good.jsonl", "notes.md"], ["a.xlsx", "about.txt"]]
    assert names("*.jsonl") == [["good.jsonl"], []]
    assert say_passed_over(find_sources([str(tmp_path)], lambda _: pytest.fail("asked the hub"))[1]) == [
        "passed over: about.txt, notes.md: prose beside data; name the files to take them",
        "passed over: a.xlsx: of no kind that is read; these are: .jsonl .ndjson .json .csv .tsv .parquet .arrow .feather .txt .md .markdown .text",
    ]
    many = [Path(f"{number}.md") for number in range(9)]
    assert say_passed_over(many)[0].startswith("passed over: 0.md, 1.md, 2.md, 3.md, 4.md and 4 more: prose")
