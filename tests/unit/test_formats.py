"""Chat samples in JSON Lines: what is read, and how each broken line is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.formats import ROLES, SPLITS, Message, Sample, read_samples, read_splits
from trainer.errors import InputError
from trainer.paths import PROJECT_ROOT

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test of time

GOOD = '{"messages": [{"role": "user", "content": "ahoy"}, {"role": "assistant", "content": "arr"}]}'


def write(folder: Path, text: str | bytes, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def turns(*pairs: tuple[Any, Any]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]})


def refusal(path: Path) -> str:
    """Return what is said about a file that must be refused, without its own name."""
    with pytest.raises(InputError) as caught:
        read_samples(path)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(str(path)) for line in lines)
    assert all(line.isprintable() for line in lines)
    return "\n".join(line.removeprefix(str(path)) for line in lines)


def try_to_read(path: Path) -> tuple[list[Sample], str]:
    """Return the samples, or none and what is said."""
    try:
        return read_samples(path), ""
    except InputError as error:
        return [], str(error)


def test_a_sample_keeps_its_turns_and_its_place(tmp_path: Path) -> None:
    """Messages come back as written, white space included, with file and line; other keys are left alone."""
    lines = [
        GOOD,
        '{"id": 3, "messages": [{"role": "user", "content": " a\\n\\n"}, {"content": "b 🏴‍☠️", "role": "assistant"}]}',
    ]
    path = write(tmp_path, "\n".join(lines) + "\n")
    first, second = read_samples(path)
    assert first == Sample((Message("user", "ahoy"), Message("assistant", "arr")), path, 1)
    assert second.as_dicts() == [{"role": "user", "content": " a\n\n"}, {"role": "assistant", "content": "b 🏴‍☠️"}]
    assert (first.where, second.where) == (f"{path}:1", f"{path}:2")


def test_a_conversation_may_have_a_system_turn_and_several_others(tmp_path: Path) -> None:
    """System first, then user and assistant in turn, ending with either."""
    text = turns(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert [message.role for message in read_samples(write(tmp_path, text))[0].messages] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


@pytest.mark.parametrize(
    "text",
    [
        GOOD.encode(),
        GOOD.encode() + b"\n",
        GOOD.encode() + b"\r\n",
        b"\xef\xbb\xbf" + GOOD.encode(),
        b"  " + GOOD.encode() + b"\t\n",
    ],
    ids=["no end", "LF", "CRLF", "BOM", "blanks"],
)
def test_habits_of_editors_are_fine(tmp_path: Path, text: bytes) -> None:
    """A missing last line break, CRLF, a byte order mark and blanks around a line change nothing."""
    assert read_samples(write(tmp_path, text)) == read_samples(write(tmp_path, GOOD))


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    """A line separator inside a text is part of it, and does not shift the numbers of the lines."""
    odd = turns(("user", "a"), ("assistant", "b\u2028c\u0085d\x0ce"))
    text = json.loads(odd)
    path = write(tmp_path, json.dumps(text, ensure_ascii=False) + "\n" + GOOD)
    assert [sample.line for sample in read_samples(path)] == [1, 2]
    assert read_samples(path)[0].messages[1].content == "b\u2028c\u0085d\x0ce"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "the line is empty"),
        ("   ", "the line is empty"),
        ("{", "is not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("hello", "is not JSON: Expecting value at column 1"),
        (GOOD + GOOD, f"is not JSON: Extra data at column {len(GOOD) + 1}"),
        (GOOD[:-1] + ",}", f"is not JSON: Illegal trailing comma before end of object at column {len(GOOD)}"),
        ('{"messages": "\x00"}', "is not JSON: Invalid control character at column 15"),
        ("\x00\x00", "is not JSON: Expecting value at column 1"),
        ('{"messages', "is not JSON: Unterminated string starting at column 2"),
        ("[]", 'is [], not an object such as {"messages": [...]}'),
        ("3", 'is 3, not an object such as {"messages": [...]}'),
        ("null", 'is null, not an object such as {"messages": [...]}'),
        (json.dumps("x" * 99), f'is "{"x" * 56}..., not an object such as {{"messages": [...]}}'),
        ("{}", 'has no "messages", only nothing'),
        ('{"prompt": "a", "completion": "b"}', 'has no "messages", only "prompt", "completion"'),
        ('{"mesages": []}', 'has no "messages", only "mesages"; did you mean messages?'),
        (
            '{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "Messages": 1}',
            'has no "messages", only "a", "b", "c", "d", "e", …; did you mean messages?',
        ),
        ('{"\\u001b[2J": 1}', 'has no "messages", only "\\u001b[2J"'),
        ('{"messages": []}', "messages: [] is not a list of messages"),
        ('{"messages": "hi"}', 'messages: "hi" is not a list of messages'),
        ('{"messages": {"role": "user"}}', 'messages: {"role": "user"} is not a list of messages'),
        ('{"messages": ["hi"]}', 'messages[0]: "hi" is not an object with "role" and "content"'),
        ('{"messages": [{"role": "user"}]}', "messages[0].content: is missing"),
        ('{"messages": [{"content": "hi"}]}', "messages[0].role: is missing"),
        (turns(("user", "a"), ("assistant", None)), "messages[1].content: null is not a text"),
        (turns(("user", ["a"]), ("assistant", "b")), 'messages[0].content: ["a"] is not a text'),
        (turns((3, "a")), "messages[0].role: 3 is not a text"),
        (turns(("tool", "a")), 'messages[0].role: "tool" is not one of system, user, assistant'),
        (
            turns(("asistant", "a")),
            'messages[0].role: "asistant" is not one of system, user, assistant; did you mean assistant?',
        ),
        (turns(("User", "a")), 'messages[0].role: "User" is not one of system, user, assistant; did you mean user?'),
        (turns(("user", "a"), ("assistant", "")), "messages[1].content: is empty"),
        (turns(("user", " \n\t"), ("assistant", "b")), "messages[0].content: is empty"),
        (
            turns(("user", "a\x00"), ("assistant", "b")),
            "messages[0].content: holds a null character at position 1, which is no text",
        ),
        (
            turns(("user", "a"), ("assistant", "bb\ud83c")),
            "messages[1].content: holds half of a character (a lone surrogate) at position 2, which is no text",
        ),
        (turns(("user", "a")), "has no assistant turn, so there is nothing to learn from it"),
        (turns(("system", "a")), "has no assistant turn, so there is nothing to learn from it"),
        (turns(("assistant", "a")), "the conversation does not begin with a user turn"),
        (turns(("system", "s"), ("assistant", "a")), "the conversation does not begin with a user turn"),
        (turns(("user", "a"), ("system", "s"), ("assistant", "b")), "messages[1]: a system message may only come first"),
        (turns(("user", "a"), ("user", "b"), ("assistant", "c")), "messages[1]: two user turns in a row; make them one"),
        (
            turns(("user", "a"), ("assistant", "b"), ("assistant", "c")),
            "messages[2]: two assistant turns in a row; make them one",
        ),
        (
            turns(("system", "s"), ("system", "s"), ("user", "a"), ("assistant", "b")),
            "messages[1]: a system message may only come first",
        ),
        ("9" * 5000, "is not a chat sample: it holds a number that is too long"),
        ("[" * 100_000, "is not a chat sample: it is nested too deeply"),
        ('{"messages": ' + "[" * 100_000, "is not a chat sample: it is nested too deeply"),
    ],
)
def test_a_broken_line_is_told_with_its_number(tmp_path: Path, line: str, complaint: str) -> None:
    """The seventh line is at fault, and the error says so, in one line that a terminal shows as it is."""
    path = write(tmp_path, "\n".join([*[GOOD] * 6, line, GOOD]))
    # Python 3.13 names the trailing comma, older ones what they expected instead
    older = complaint.replace(
        f"Illegal trailing comma before end of object at column {len(GOOD)}",
        f"Expecting property name enclosed in double quotes at column {len(GOOD) + 1}",
    )
    assert refusal(path) in (f":7: {complaint}", f":7: {older}")


@pytest.mark.parametrize("depth", range(100, 1500, 100))
def test_no_depth_of_nesting_is_too_much_for_the_error_itself(tmp_path: Path, depth: int) -> None:
    """What is just shallow enough to be read is also shown, or refused as too deep."""
    said = refusal(write(tmp_path, '{"messages": ' + "[" * depth + "]" * depth + "}"))
    assert said.startswith((":1: messages[0]: [[[[[", ":1: is not a chat sample: it is nested too deeply"))


def test_text_that_is_not_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    """Latin-1 and UTF-16 are named at the line of the first byte that cannot be read."""
    assert refusal(write(tmp_path, GOOD.encode() + b'\n{"a": "\xe9"}')) == ":2: is not UTF-8 text; save the file as UTF-8"
    assert refusal(write(tmp_path, GOOD.encode("utf-16"))) == ":1: is not UTF-8 text; save the file as UTF-8"


def test_all_broken_lines_come_at_once_up_to_twenty(tmp_path: Path) -> None:
    """Twenty lines are told, the rest counted."""
    said = refusal(write(tmp_path, "\n".join([*["[]"] * 23, GOOD]))).split("\n")
    assert said[:20] == [f':{line}: is [], not an object such as {{"messages": [...]}}' for line in range(1, 21)]
    assert said[20:] == [": and 3 more problems"]


@pytest.mark.parametrize("text", ["", "\ufeff"], ids=["empty", "BOM"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    """A split without samples is an error that says what is expected."""
    assert refusal(write(tmp_path, text)) == ": the file is empty; it needs a chat sample on each line"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A folder in a file's place is named."""
    assert refusal(tmp_path) == ": cannot be read: Is a directory"


def test_a_long_line_is_read(tmp_path: Path) -> None:
    """A line of some megabytes is a sample like any other, and is cut where it is shown."""
    long = "x" * 5_000_000
    assert len(read_samples(write(tmp_path, turns(("user", long), ("assistant", "b"))))[0].messages[0].content) == len(long)
    assert len(refusal(write(tmp_path, json.dumps(long)))) < 200


def test_the_problems_of_all_splits_come_together(tmp_path: Path) -> None:
    """A missing split, an empty one and a broken one are told in one error."""
    write(tmp_path, "", "valid.jsonl")
    write(tmp_path, "[]", "test.jsonl")
    with pytest.raises(InputError) as caught:
        read_splits(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/train.jsonl: cannot be read: No such file or directory\n"
        f"{tmp_path}/valid.jsonl: the file is empty; it needs a chat sample on each line\n"
        f'{tmp_path}/test.jsonl:1: is [], not an object such as {{"messages": [...]}}'
    )


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_data_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    """The error names the setting to change."""
    write(tmp_path, GOOD, "file")
    with pytest.raises(InputError) as caught:
        read_splits(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: there is no such folder of data; data.path names it"


def test_the_shipped_data_is_good() -> None:
    """datasets/pirate reads without a complaint, and every sample ends with an answer."""
    splits = read_splits(PROJECT_ROOT / "datasets/pirate")
    assert tuple(splits) == SPLITS
    assert {sample.messages[-1].role for samples in splits.values() for sample in samples} == {"assistant"}


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ROLES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "messages", "x"]), inner),
    max_leaves=12,
)
nearly = st.fixed_dictionaries({"role": st.sampled_from(ROLES) | json_value, "content": st.text() | json_value})


@patient
@given(json_value | st.fixed_dictionaries({"messages": st.lists(nearly, max_size=5)}))
def test_any_json_is_a_sound_conversation_or_one_problem(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Whatever is accepted begins with a user, alternates, and has an answer; all else is one line of error."""
    path = write(tmp_path_factory.getbasetemp(), json.dumps(value), "any.jsonl")
    samples, said = try_to_read(path)
    assert not said or said.startswith(f"{path}:1: ")
    assert said.isprintable()
    if not samples:
        return
    [sample] = samples
    roles = [message.role for message in sample.messages]
    spoken = roles[roles[0] == "system" :]
    assert spoken == (["user", "assistant"] * len(spoken))[: len(spoken)]
    assert "assistant" in spoken
    assert sample.as_dicts() == [{key: item[key] for key in ("role", "content")} for item in value["messages"]]  # type: ignore[index]


@patient
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_line(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    """No file ends in anything but samples or an `InputError` that begins with its name."""
    path = write(tmp_path_factory.getbasetemp(), noise, "noise.jsonl")
    with pytest.raises(InputError) as caught:
        read_samples(path)
    assert all(line.startswith(str(path)) for line in str(caught.value).split("\n"))
