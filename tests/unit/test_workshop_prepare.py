"""`data.prepare`: nothing is lost without a word, no conversation is in two splits, and the order of files does not matter."""

# ruff: noqa: E501 - whole messages are read across

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.formats import SPLITS, check_splits, read_splits
from trainer.errors import InputError
from trainer.paths import PROJECT_ROOT
from trainer.workshop import split
from trainer.workshop.near import normalise
from trainer.workshop.prepare import prepare
from trainer.workshop.settings import Model, Settings

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
WORDS = "ship sail mast rope wind wave gull crew deck port star chart cask rum keel hull fog reef tide helm oar bell flag gold map".split()


def make_rows(count: int, seed: int = 0, **extra: Any) -> list[dict[str, Any]]:
    """Return prompt/completion rows of words by chance, none like another."""
    chance = random.Random(seed)
    return [
        {"prompt": " ".join(chance.choices(WORDS, k=9)), "completion": " ".join(chance.choices(WORDS, k=25)), **extra}
        for _ in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def questions(folder: Path) -> dict[str, list[str]]:
    """Return the first questions of each split."""
    return {
        name: [next(m.content for m in sample.messages if m.role == "user") for sample in samples]
        for name, samples in read_splits(folder).items()
    }


def test_a_data_set_is_one_that_the_trainer_reads(tmp_path: Path) -> None:
    """The three splits are sound, in their shares, and the manifest counts and hashes them."""
    source = write(tmp_path / "a.jsonl", make_rows(200))
    manifest = prepare([source], tmp_path / "out", Settings(valid=0.1, test=0.2, licence="CC0-1.0"))
    splits = read_splits(tmp_path / "out")
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 140, "valid": 20, "test": 40}
    assert manifest == json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["name"], manifest["licence"], manifest["read"]) == ("out", "CC0-1.0", 200)
    assert {name: file["rows"] for name, file in manifest["files"].items()} == {
        f"{name}.jsonl": len(samples) for name, samples in splits.items()
    }
    assert set(content(tmp_path / "out")) == {"manifest.json", *(f"{name}.jsonl" for name in SPLITS)}
    assert list(tmp_path.glob(".*")) == []


def attempt(files: list[Path], out: Path, chosen: Settings) -> tuple[dict[str, Any], str]:
    """Return the manifest, or what is said instead."""
    try:
        return prepare(files, out, chosen), ""
    except InputError as error:
        return {}, str(error)


rows_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.sampled_from(WORDS) | st.text(max_size=8), "completion": st.text(max_size=8) | st.sampled_from(WORDS)},
        optional={"category": st.sampled_from("ab"), "group": st.sampled_from("xyz")},
    ),
    min_size=6,
    max_size=30,
)


@patient
@given(rows_of_any_kind, st.integers(0, 5), st.randoms(use_true_random=False))
def test_no_sample_is_lost_or_in_two_splits_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], seed: int, chance: random.Random
) -> None:
    """Read is kept and dropped; the same question, words or group is in one split; files in any order give the same bytes."""
    folder = tmp_path_factory.mktemp("any")
    half = len(rows) // 2
    files = [write(folder / "a.jsonl", rows[:half]), write(folder / "b.jsonl", rows[half:])]
    chosen = Settings(seed=seed, valid=0.2, test=0.2)
    manifest, said = attempt(files, folder / "one", chosen)
    assert bool(manifest) != ("which is too few for train, valid and test" in said)
    if not manifest:
        return
    kept = sum(file["rows"] for file in manifest["files"].values())
    assert manifest["read"] == len(rows) == kept + sum(told["count"] for told in manifest["dropped"].values())
    seen: dict[tuple[str, str], str] = {}
    for name in SPLITS:
        for line in (folder / "one" / f"{name}.jsonl").read_bytes().decode().split("\n")[:-1]:
            row = json.loads(line)
            asked = row["messages"][0]["content"]
            for key in (("question", normalise(asked) or asked), ("group", row.get("group", f"none {line}"))):
                assert seen.setdefault(key, name) == name
    mixed = rows[:]
    chance.shuffle(mixed)
    prepare([write(folder / "c.jsonl", mixed)], folder / "two", chosen)
    prepare(files[::-1], folder / "three", chosen)
    splits = [{name: (folder / each / f"{name}.jsonl").read_bytes() for name in SPLITS} for each in ("one", "two", "three")]
    assert splits[0] == splits[1] == splits[2]


@patient
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=120),
    st.floats(0.01, 0.4),
    st.floats(0.01, 0.4),
)
def test_groups_are_dealt_whole(rows: list[tuple[int, int]], valid: float, test: float) -> None:
    """Each row that stays is in one split, groups are not torn, and with three groups or more no split is empty."""
    labels = np.array([group for group, _ in rows], np.int64)
    categories = np.array([category for _, category in rows], np.int32)
    rank = np.random.default_rng(0).permutation(len(rows))
    dealt = split.assign_splits(labels, rank, categories, np.ones(len(rows), np.bool_), valid=valid, test=test)
    assert set(dealt.tolist()) <= {0, 1, 2}
    assert all(len(set(dealt[labels == label].tolist())) == 1 for label in set(labels.tolist()))
    if len(set(labels.tolist())) >= 3:
        assert set(dealt.tolist()) == {0, 1, 2}


def test_each_category_gives_its_share(tmp_path: Path) -> None:
    """Of four categories of very different sizes, each is in every split in proportion."""
    sizes = {"a": 400, "b": 200, "c": 100, "d": 60}
    rows = [row for number, (name, size) in enumerate(sizes.items()) for row in make_rows(size, seed=number, topic=name)]
    manifest = prepare([write(tmp_path / "a.jsonl", rows)], tmp_path / "out", Settings(valid=0.1, test=0.1))
    assert manifest["categories"] == sizes
    for name in ("valid", "test"):
        counts = Counter(json.loads(line)["category"] for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines())
        assert all(abs(counts[category] - size / 10) <= 1 for category, size in sizes.items()), counts


def test_balance_caps_the_large_categories(tmp_path: Path) -> None:
    """No category has more than twice the median, and what went is told."""
    rows = [row for number, size in enumerate((300, 40, 50)) for row in make_rows(size, number, category=f"c{number}")]
    manifest = prepare([write(tmp_path / "a.jsonl", rows)], tmp_path / "out", Settings(balance=2))
    assert manifest["categories"] == {"c0": 100, "c1": 40, "c2": 50}
    assert manifest["dropped"]["balance"]["count"] == 200


def test_the_seed_alone_changes_the_splits(tmp_path: Path) -> None:
    """Equal seeds give equal bytes, another seed another order, of the same rows."""
    source = write(tmp_path / "a.jsonl", make_rows(60))
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        prepare([source], tmp_path / name, Settings(seed=seed))
    one, two, three = (questions(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three
    assert sorted(itertools.chain(*one.values())) == sorted(itertools.chain(*three.values()))


def test_several_processes_give_the_same_bytes(tmp_path: Path) -> None:
    """Two workers write what one does."""
    source = write(tmp_path / "a.jsonl", make_rows(9000))  # more than one portion
    for name, workers in (("one", 1), ("two", 2)):
        prepare([source], tmp_path / name / "out", Settings(), num_workers=workers)
    assert content(tmp_path / "one/out") == content(tmp_path / "two/out")


@pytest.fixture
def tiny(tiny_model: Path) -> Model:
    return Model(folder=tiny_model)


def chat(*contents: str, system: str = "") -> dict[str, Any]:
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def test_what_is_too_long_is_split_between_turns(tmp_path: Path, tiny: Model) -> None:
    """Parts keep whole turns and the system message, stay in one split, and a turn that is too long alone is dropped."""
    long = chat(*[f"{word} question" if i % 2 == 0 else f"{word} " * 8 for i, word in enumerate(WORDS[:12])], system="s")
    huge = chat("short", "x" * 900)
    source = write(tmp_path / "a.jsonl", [*make_rows(30), long, huge])
    limit = 260
    manifest = prepare([source], tmp_path / "out", Settings(max_tokens=limit), tiny)
    assert manifest["changed"]["split-at-turns"]["count"] == 1
    assert manifest["dropped"]["too-long"] == {"count": 1, "examples": [f"{source}:32: 926 tokens, above 260"]}
    places = {
        name: [s for s in samples if s.messages[0].role == "system"] for name, samples in read_splits(tmp_path / "out").items()
    }
    [(_, parts)] = [(name, found) for name, found in places.items() if found]
    assert len(parts) > 1
    turns = [message.content for part in parts for message in part.messages[1:]]
    assert sorted(turns) == sorted(message["content"].rstrip() for message in long["messages"][1:])
    assert all(part.messages[0].content == "s" and part.messages[-1].role == "assistant" for part in parts)
    assert manifest["tokens"]["longest"] <= limit
    dropping = prepare([source], tmp_path / "dropped", Settings(max_tokens=limit, overlong="drop"), tiny)
    assert dropping["dropped"]["too-long"]["count"] == 2


def test_a_step_can_be_left_out(tmp_path: Path) -> None:
    """Each step that is skipped leaves what it would have dropped."""
    rows = make_rows(40)
    rows += [rows[0], {**rows[1], "completion": rows[1]["completion"] + " aye"}]
    rows += [
        {"prompt": "who?", "completion": "As an AI language model, I cannot say."},
        {"prompt": "mail?", "completion": "a.b@mail.org"},
    ]
    source = write(tmp_path / "a.jsonl", rows)
    everything = prepare([source], tmp_path / "all", Settings())
    assert {rule: told["count"] for rule, told in everything["dropped"].items()} == {
        "exact-duplicate": 1,
        "near-duplicate": 1,
        "refusal": 1,
    }
    assert everything["changed"] == {"masked email": {"count": 1, "examples": [f"{source}:44"]}}
    nothing = prepare([source], tmp_path / "nothing", Settings(skip=("exact", "near", "refusals", "personal")))
    assert (nothing["dropped"], nothing["changed"]) == ({}, {})
    assert sum(file["rows"] for file in nothing["files"].values()) == 44
    dropping = prepare([source], tmp_path / "dropping", Settings(personal="drop"))
    assert dropping["dropped"]["personal-data"] == {"count": 1, "examples": [f"{source}:44: email"]}


def test_another_language_is_dropped(tmp_path: Path) -> None:
    """With --language en, a German conversation goes and is told."""
    english = [
        {"prompt": f"What is the name of ship number {n}?", "completion": f"The name of this ship is {WORDS[n]}."}
        for n in range(9)
    ]
    german = {
        "prompt": "Wie heißt das größte Schiff im Hafen?",
        "completion": "Das größte Schiff im Hafen heißt Seeadler, glaube ich.",
    }
    source = write(tmp_path / "a.jsonl", [*english, german])
    manifest = prepare([source], tmp_path / "out", Settings(language="en", skip=("near",)))
    assert manifest["dropped"] == {"language": {"count": 1, "examples": [f"{source}:10: is likely de, not en"]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": ("nears",)}, "--skip nears: is not one of characters, identical, refusals, personal, language, length, exact, near, balance, leaks; did you mean near?"),
        ({"personal": "hide"}, "--personal hide: is not one of mask, drop"),
        ({"form": "csv"}, "--form csv: is not one of chat, sharegpt, pairs, text"),
        ({"style": "parrot"}, "--to parrot: is not one of pirate"),
        ({"valid": 0.6, "test": 0.5}, "--valid 0.6 --test 0.5: are shares above 0 that leave something for train"),
        ({"near": 0.0, "balance": 0.5}, "--near 0.0: is a resemblance above 0, at most 1\n--balance 0.5: is at least 1, or 0 for no limit"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    """The option, the value and the rule."""
    with pytest.raises(InputError) as caught:
        Settings(**changes)
    assert str(caught.value) == message


def test_too_little_is_refused_with_what_became_of_the_rest(tmp_path: Path) -> None:
    """A data set needs three conversations; nothing is left where it would have been."""
    row = make_rows(1)[0]
    source = write(tmp_path / "a.jsonl", [row, row, {"a": 1}])
    with pytest.raises(InputError) as caught:
        prepare([source], tmp_path / "out", Settings())
    assert str(caught.value).split("\n") == [
        "1 of 3 samples are left, which is too few for train, valid and test; three conversations that differ are the least",
        f'form: 1 dropped, such as {source}:3: holds no conversation that we know, only "a"; --map FIELD=COLUMN tells what is what',
        f"exact-duplicate: 1 dropped, such as {json.dumps(row['prompt'][:60])}",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    """A folder that is there is refused; --replace writes anew what we wrote, and nothing else; a failure leaves the old one."""
    source, out = write(tmp_path / "a.jsonl", make_rows(30)), tmp_path / "out"
    prepare([source], out, Settings())
    before = content(out)
    with pytest.raises(InputError, match=f"^{out}: exists already; --replace writes it anew$"):
        prepare([source], out, Settings())
    with pytest.raises(InputError, match="too few"):
        prepare([write(tmp_path / "few.jsonl", make_rows(1))], out, Settings(), replace=True)
    assert content(out) == before
    prepare([source], out, Settings(seed=5), replace=True)
    assert content(out) != before
    with pytest.raises(InputError, match=f"^{out}: is a source and the target; give another folder with --out$"):
        prepare([out / "train.jsonl"], out, Settings(), replace=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=f"^{out}: exists already; give another folder with --out$"):
        prepare([source], out, Settings(), replace=True)
    assert (out / "notes.txt").read_text() == "mine"


KILLED = """
import sys
from pathlib import Path
from trainer.workshop.prepare import prepare
from trainer.workshop.settings import Settings
print("begins", flush=True)
prepare([Path(sys.argv[1])], Path(sys.argv[2]), Settings(), replace=True, num_workers=2)
"""


def test_killed_at_random_and_repeated_it_is_the_same(tmp_path: Path) -> None:
    """SIGKILL at six moments, a data set of before in its place: that one or the new one is there, and the repeat is byte-identical."""
    source, out = write(tmp_path / "a.jsonl", make_rows(6000)), tmp_path / "out"
    prepare([write(tmp_path / "old.jsonl", make_rows(30, seed=9))], out, Settings())
    old = content(out)
    prepare([source], tmp_path / "expected" / "out", Settings())
    expected = content(tmp_path / "expected/out")
    command = [sys.executable, "-c", KILLED, str(source), str(out)]
    chance = random.Random(3)
    for _ in range(6):
        with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 1.5))  # no event is awaited: any moment will do
            os.kill(process.pid, signal.SIGKILL)
        if out.exists():
            assert content(out) in (old, expected)
        else:  # between the two renames: the old one waits beside
            assert content(tmp_path / ".out.preparing/old") == old
    subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True)
    assert content(out) == expected
    assert not (tmp_path / ".out.preparing").exists()
    check_splits(out)


def tell_of(files: list[Path], out: Path, chosen: Settings, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the manifest and what was told beside it."""
    told: list[str] = []
    return prepare(files, out, chosen, tell=told.append, **options), told


def test_files_that_are_passed_over_are_told_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line on standard error, and the first twenty names with their count in the manifest; none where there are none."""
    source = write(tmp_path / "a.jsonl", make_rows(30))
    passed_over = [tmp_path / f"{number:02}.md" for number in range(25)]
    manifest = prepare([source], tmp_path / "out", Settings(), passed_over=passed_over)
    assert manifest["passed_over"] == {"count": 25, "names": [f"{number:02}.md" for number in range(20)]}
    said = "passed over: 00.md, 01.md, 02.md, 03.md, 04.md and 20 more: prose beside data; name the files to take them\n"
    assert capsys.readouterr().err == said
    assert "passed_over" not in prepare([source], tmp_path / "other", Settings())
    assert capsys.readouterr() == ("", "")


def test_a_step_that_drops_most_of_what_it_got_is_told(tmp_path: Path) -> None:
    """Each with its counts, an example, and how it is left out; one that drops half or less is not."""
    rows = make_rows(20)
    alike = [{**rows[0], "completion": rows[0]["completion"] + f" aye {number}"} for number in range(40)]
    refusing = [{"prompt": f"{WORDS[n % 24]} {n}?", "completion": "I cannot help with that."} for n in range(100)]
    source = write(tmp_path / "a.jsonl", [*rows, *alike, *refusing, *[{"a": 1}] * 161])
    manifest, told = tell_of([source], tmp_path / "out", Settings())
    assert manifest["dropped"]["near-duplicate"]["count"] == 40
    assert told == [
        f'reading dropped 161 of 321 samples, such as {source}:161: holds no conversation that we know, only "a"; --map FIELD=COLUMN tells what is what; mend them, or tell with --form or --map how they are to be read',
        f'refusals dropped 100 of 160 samples, such as {source}:61: "I cannot help with that."; --skip refusals keeps them',
        f"near dropped 40 of 60 samples, such as {manifest['dropped']['near-duplicate']['examples'][0]}; --skip near keeps them",
    ]
    _, told = tell_of([source], tmp_path / "all", Settings(skip=("refusals", "near", "leaks")))
    assert [line.split()[0] for line in told] == ["reading"]
    half = write(tmp_path / "half.jsonl", [*make_rows(20), *refusing[:20]])
    assert tell_of([half], tmp_path / "half", Settings())[1] == []


def test_parts_count_where_most_is_too_long(tmp_path: Path, tiny: Model) -> None:
    """What is told of the step that splits is made of parts; each question that is too long alone is dropped with its place."""
    mixed = chat("short", "x" * 900, "short too", "fine", "third", "y" * 900, system="s")
    source = write(tmp_path / "a.jsonl", [*make_rows(30), mixed])
    manifest = prepare([source], tmp_path / "out", Settings(max_tokens=260), tiny)
    assert manifest["changed"]["split-at-turns"] == {"count": 1, "examples": [f"{source}:31: 1897 tokens, 1 parts"]}
    assert manifest["dropped"] == {
        "too-long": {
            "count": 2,
            "examples": [
                f"{source}:31: messages[1] and its answer: 937 tokens, above 260",
                f"{source}:31: messages[5] and its answer: 937 tokens, above 260",
            ],
        }
    }
    assert sum(file["rows"] for file in manifest["files"].values()) == 31
    huge = [chat(f"{word} {number}", "x" * 900) for number, word in enumerate(WORDS * 2)]
    source = write(tmp_path / "b.jsonl", [*make_rows(30), *huge])
    _, told = tell_of([source], tmp_path / "huge", Settings(max_tokens=260), model=tiny)
    assert told == [
        f"length dropped 50 of 80 samples, such as {source}:31: 927 tokens, above 260; --skip length keeps them, for a recipe with a larger data.max_tokens"
    ]


def opened_alike(count: int, **extra: Any) -> list[dict[str, Any]]:
    """Return chats that have nothing in common but that they open with "Hi"."""
    return [{**chat("Hi", *(row["completion"], row["prompt"], row["prompt"][::-1])), **extra} for row in make_rows(count)]


def test_too_few_groups_are_told_apart_from_too_few_rows(tmp_path: Path) -> None:
    """Twelve chats that open alike are twelve, in one group: why is told, and what keeps them apart does."""
    source = write(tmp_path / "a.jsonl", opened_alike(12))
    with pytest.raises(InputError) as caught:
        prepare([source], tmp_path / "out", Settings())
    few = "which is too few for train, valid and test; a group is never torn"
    left = "12 of 12 samples are left, but in 1 group"
    assert str(caught.value) == f'{left}, {few}: 12 rows share the first question "Hi"; --skip leaks keeps them apart'
    assert prepare([source], tmp_path / "out", Settings(skip=("leaks",)))["read"] == 12
    grouped = [{**row, "group": "g1"} for row in make_rows(8)] + [{**row, "group": "g2"} for row in make_rows(4, seed=1)]
    with pytest.raises(InputError) as caught:
        prepare([write(tmp_path / "b.jsonl", grouped)], tmp_path / "b", Settings())
    left = "12 of 12 samples are left, but in 2 groups"
    assert str(caught.value) == f'{left}, {few}: 8 rows are of group "g1"; rename that column where they may be dealt apart'


def test_a_split_that_gets_less_than_half_of_its_share_is_told(tmp_path: Path) -> None:
    """Which, how much of how much, and which group is the cause; where groups are small, nothing is."""
    source = write(tmp_path / "a.jsonl", [*opened_alike(90), *make_rows(10, seed=3)])
    manifest, told = tell_of([source], tmp_path / "out", Settings(valid=0.2, test=0.1))
    assert {name: file["rows"] for name, file in manifest["files"].items()} == {
        "train.jsonl": 97,
        "valid.jsonl": 2,
        "test.jsonl": 1,
    }
    why = 'a group is never torn: 90 rows share the first question "Hi"; --skip leaks keeps them apart'
    assert told == [
        f"valid gets 2 of 100 rows, 2.0% where 20.0% was wanted; {why}",
        f"test gets 1 of 100 rows, 1.0% where 10.0% was wanted; {why}",
    ]
    assert tell_of([source], tmp_path / "apart", Settings(valid=0.2, test=0.1, skip=("leaks",)))[1] == []
    parts = write(tmp_path / "b.jsonl", [{**row, "group": "one"} for row in make_rows(60)] + make_rows(20, seed=5))
    _, told = tell_of([parts], tmp_path / "grouped", Settings(valid=0.3))
    assert [line.split("torn: ")[1] for line in told if line.startswith("valid")] == [
        '60 rows are of group "one"; rename that column where they may be dealt apart'
    ]
