"""Bad input from end to end: every broken recipe, inventory, data file and option ends the command with exit code 2,
an exact message on standard error, and nothing written.

Most rows call what tasks.py calls, in this process; some are typed as a person would type them. The rows at the end
need a tokenizer or a model and get as far as the process that prepares a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trainer.control import Request, at_boundary, train
from trainer.paths import PROJECT_ROOT

GOOD = '{"messages": [{"role": "user", "content": "ahoy"}, {"role": "assistant", "content": "arr"}]}\n'
INVENTORY = "all:\n  children:\n    cluster:\n      hosts:\n"
HOSTS = "$.all.children.cluster.hosts"
DATA = "{cwd}/data/train.jsonl"
ROW = 'not an object such as {{"messages": [...]}}'


@dataclass(frozen=True)
class Case:
    """One way to be wrong: files in place of the good ones, options, and what is said about it.

    ``files`` maps a name to its content; None removes the file, a name that ends with / makes a folder. In
    ``message`` {cwd} is the folder, {model} that of a tiny model.
    """

    name: str
    message: str
    files: Mapping[str, str | bytes | None] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    inventory: str = "hosts.yml"
    recipe: str = "my.toml"
    run_name: str = ""


def recipe(name: str, text: str | bytes, message: str) -> Case:
    return Case(name, f"my.toml{message}", {"my.toml": text})


def hosts(name: str, message: str, *lines: str) -> Case:
    text = INVENTORY + "".join(f"        {line}\n" for line in lines)
    return Case(name, f"{{cwd}}/hosts.yml{message}", {"hosts.yml": text})


def inventory(name: str, text: str | bytes, message: str) -> Case:
    return Case(name, f"{{cwd}}/hosts.yml{message}", {"hosts.yml": text})


def samples(name: str, line: str | bytes, message: str) -> Case:
    """Put a broken line on line 7 of the training data."""
    raw = line if isinstance(line, bytes) else line.encode()
    return Case(name, f"{DATA}:7: {message}", {"data/train.jsonl": GOOD.encode() * 6 + raw + b"\n" + GOOD.encode()})


def option(name: str, override: str, message: str) -> Case:
    return Case(name, f"-o {override}: {message}", overrides=(override,))


def turns(*pairs: tuple[object, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]})


CHEAP = [
    # recipes
    recipe("a key that is unknown", "[train]\nepocs = 1", ": train.epocs: unknown key; did you mean epochs?"),
    recipe("a section that is misspelt", "[optimiser]\nlearning_rate = 1", ": optimiser: unknown key; did you mean optimizer?"),
    recipe("a text for a number", "[train]\nepochs = 'two'", ': train.epochs: "two" is not a whole number'),
    recipe("a fraction for a whole number", "[train]\nepochs = 1.0", ": train.epochs: 1.0 is not a whole number"),
    recipe("a number for a section", "train = 3", ": train: 3 is not a table of keys and values"),
    recipe("adapter rank 0", "[adapter]\nrank = 0", ": adapter.rank: 0 is below the minimum 1"),
    recipe(
        "no layers",
        "[adapter]\nnum_layers = 0",
        ": adapter.num_layers: 0 adapts no layer; use a positive number, or -1 for all layers",
    ),
    recipe("a negative learning rate", "[optimizer]\nlearning_rate = -1.0", ": optimizer.learning_rate: -1.0 is not above 0"),
    recipe("nan", "[optimizer]\nlearning_rate = nan", ": optimizer.learning_rate: NaN is not a finite number"),
    recipe("inf", "[optimizer]\nlearning_rate = inf", ": optimizer.learning_rate: Infinity is not a finite number"),
    recipe(
        "warm-up beyond the steps",
        "[train]\nsteps = 5\n[schedule]\nwarmup_steps = 9",
        ": schedule.warmup_steps: 9 leaves nothing of train.steps = 5",
    ),
    recipe(
        "an unknown backend",
        "[launch]\nbackend = 'nccl'",
        ': launch.backend: "nccl" is not one of mpi, ring, jaccl; did you mean jaccl?',
    ),
    recipe(
        "not TOML", "\n\n[train\n", ": not valid TOML: Expected ']' at the end of a table declaration (at line 3, column 7)"
    ),
    recipe("a recipe in Latin-1", b"# \xe9", ":1: is not UTF-8 text; save the file as UTF-8"),
    recipe("a recipe nested too deeply", "x = " + "[" * 5000, ": is nested too deeply"),
    recipe(
        "a recipe that extends nothing",
        "extends = 'pirats'",
        ": extends: pirats: there is no such recipe; did you mean pirate? (or give a .toml file)",
    ),
    recipe("a null byte in a path", '[data]\npath = "a\\u0000"', ': data.path: "a\\u0000" holds a control character'),
    Case(
        "a recipe that is missing",
        "nope.toml: there is no such recipe; there are pirate, pirate-mistral (or give a .toml file)",
        recipe="nope.toml",
    ),
    Case(
        "a folder for a recipe",
        "data: there is no such recipe; there are pirate, pirate-mistral (or give a .toml file)",
        recipe="data",
    ),
    # options
    option("an override that is unknown", "train.epoch=1", "unknown key; did you mean train.epochs?"),
    option("an override without a section", "epochs=1", "write it as section.key=value, such as optimizer.learning_rate=2e-4"),
    option("an override of the wrong type", "train.epochs=two", 'train.epochs: "two" is not a whole number'),
    option("an override with nan", "optimizer.learning_rate=nan", "optimizer.learning_rate: NaN is not a finite number"),
    Case(
        "a name with a slash",
        "--name \"../x\": use up to 64 letters, digits, '-', '_' and '.'; it names a folder",
        run_name="../x",
    ),
    # inventories
    hosts("a duplicate host", ':7: "mini" is listed twice, first on line 5', "mini: {slots: 1}", "other:", "mini: {slots: 2}"),
    hosts("slots 0", f": {HOSTS}.mini.slots: 0 is below the minimum 1", "mini: {slots: 0}"),
    hosts("slots as text", f': {HOSTS}.mini.slots: "2" is not a whole number', "mini: {slots: '2'}"),
    hosts("slots with a point", f": {HOSTS}.mini.slots: 2.0 is not a whole number", "mini: {slots: 2.0}"),
    hosts("slots misspelt", f": {HOSTS}.mini.slot: unknown variable; did you mean slots?", "mini: {slot: 2}"),
    hosts(
        "a range of hosts",
        f': {HOSTS}: the name "mini[1:3]" is not a host name (letters, digits, dots and hyphens)',
        "mini[1:3]:",
    ),
    hosts(
        "an option for a host",
        f': {HOSTS}: the name "-oProxyCommand=id" is not a host name (letters, digits, dots and hyphens)',
        "-oProxyCommand=id:",
    ),
    hosts("a Python object", ":5: could not determine a constructor for the tag '!id'", "mini: !id {}"),
    hosts("an alias", ":6: *a stands for another part of the file; write it out", "mini: &a {}", "midi: *a"),
    hosts("a template without quotes", ':5: a list or table cannot be a key; put "{{{{ … }}}}" in quotes', "m: {x: {{ y }} }"),
    hosts("one address for two hosts", f": {HOSTS}.b: has the same address x as a", "a: {address: x}", "b: {address: x}"),
    inventory("an empty inventory", "", ": the file is empty; it needs all.children.cluster.hosts"),
    inventory("an inventory of a list", "- mini", ': $: ["mini"] is not a table of keys and values'),
    inventory("an inventory in UTF-16", "all:".encode("utf-16"), ":1: is not UTF-8 text; save the file as UTF-8"),
    inventory("no group named cluster", "all: {children: {}}", ": $.all.children.cluster: is missing"),
    inventory("a null byte in an inventory", "all:\n  \x00", ":2: holds the character U+0000, which YAML does not allow"),
    Case("a missing inventory", "{cwd}/no.yml: cannot be read: No such file or directory", inventory="no.yml"),
    Case("a folder for an inventory", "{cwd}/data: cannot be read: Is a directory", inventory="data"),
    # data
    samples("not JSON", '{"messages": oops}', "is not JSON: Expecting value at column 14"),
    samples("an empty line", "", "the line is empty"),
    samples("a list", "[]", f"is [], {ROW}"),
    samples("no messages", '{"text": "arr"}', 'has no "messages", only "text"'),
    samples("messages that are no list", '{"messages": "arr"}', 'messages: "arr" is not a list of messages'),
    samples("no assistant turn", turns(("user", "a")), "has no assistant turn, so there is nothing to learn from it"),
    samples("an unknown role", turns(("parrot", "a")), 'messages[0].role: "parrot" is not one of system, user, assistant'),
    samples(
        "a misspelt role",
        turns(("user", "a"), ("assitant", "b")),
        'messages[1].role: "assitant" is not one of system, user, assistant; did you mean assistant?',
    ),
    samples("content null", turns(("user", "a"), ("assistant", None)), "messages[1].content: null is not a text"),
    samples("content empty", turns(("user", "a"), ("assistant", " ")), "messages[1].content: is empty"),
    samples("no content", '{"messages": [{"role": "user"}]}', "messages[0].content: is missing"),
    samples(
        "a system message in the middle",
        turns(("user", "a"), ("system", "s"), ("assistant", "b")),
        "messages[1]: a system message may only come first",
    ),
    samples(
        "a lone surrogate",
        turns(("user", "a"), ("assistant", "\udfff")),
        "messages[1].content: holds half of a character (a lone surrogate) at position 0, which is no text",
    ),
    samples("a line in Latin-1", b'{"\xe9": 1}', "is not UTF-8 text; save the file as UTF-8"),
    samples("null bytes", b"\x00" * 9, "is not JSON: Expecting value at column 1"),
    samples("a line nested too deeply", "[" * 50_000, "is not a chat sample: it is nested too deeply"),
    samples("a huge line", json.dumps("x" * 1_000_000), f'is "{"x" * 56}..., {ROW}'),
    samples("a terminal's escape", '{"\\u001b[2J": 1}', 'has no "messages", only "\\u001b[2J"'),
    Case(
        "data of CR only", f"{DATA}:1: is not JSON: Extra data at column 94", {"data/train.jsonl": GOOD.replace("\n", "\r") * 2}
    ),
    Case("an empty split", f"{DATA}: the file is empty; it needs a chat sample on each line", {"data/train.jsonl": ""}),
    Case("a missing split", "{cwd}/data/test.jsonl: cannot be read: No such file or directory", {"data/test.jsonl": None}),
    Case(
        "a folder for a split", f"{DATA}: cannot be read: Is a directory", {"data/train.jsonl": None, "data/train.jsonl/": ""}
    ),
    Case(
        "missing data",
        "{cwd}/nope: there is no such folder of data; data.path names it",
        overrides=("data.path=nope",),
    ),
    Case(
        "everything at once",
        "{cwd}/hosts.yml: $.all: is missing\n"
        "{cwd}/hosts.yml: $.hosts: unknown key\n"
        "--name \"a b\": use up to 64 letters, digits, '-', '_' and '.'; it names a folder\n"
        f"{DATA}:1: is 1, {ROW}\n"
        f"{DATA}:2: is 2, {ROW}\n"
        "{cwd}/data/valid.jsonl: the file is empty; it needs a chat sample on each line",
        {"hosts.yml": "hosts: []", "data/train.jsonl": "1\n2\n", "data/valid.jsonl": ""},
        run_name="a b",
    ),
]

MODEL = "model.source={model}"
NEEDS_A_MODEL = [
    Case(
        "a sample above the limit",
        "\n".join(
            f"{{cwd}}/data/{where}: is 28 tokens long, above data.max_tokens = 27"
            for where in ("train.jsonl:1", "train.jsonl:3", "valid.jsonl:1", "test.jsonl:1")
        ),
        {"data/train.jsonl": GOOD + turns(("user", "a"), ("assistant", "b")) + "\n" + GOOD},
        (MODEL, "data.max_tokens=27"),
    ),
    Case(
        "more layers than the model has",
        "adapter.num_layers: 8 is more than the model's 3 layers",
        {"data/train.jsonl": GOOD},
        (MODEL, "adapter.num_layers=8"),
    ),
    Case(
        "a layer that the model does not have",
        "adapter.keys: the model has no layer self_attn.qproj; it has mlp.down_proj, mlp.gate_proj, mlp.up_proj, "
        "self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj",
        {"data/train.jsonl": GOOD},
        (MODEL, "adapter.num_layers=2", 'adapter.keys=["self_attn.qproj"]'),
    ),
    Case(
        "a control token in a question",
        f"{DATA}:1: messages[0].content: holds <|im_end|>, which the model reads as a control token; write it differently",
        {"data/train.jsonl": turns(("user", "a<|im_end|>"), ("assistant", "b"))},
        (MODEL,),
    ),
    Case(
        "a model that is not bundled",
        'model.source: there is no bundled model "smollm"; did you mean smollm2-135m?',
        overrides=("model.source=bundled:smollm",),
    ),
    Case(
        "a missing model",
        "model.source: ./nope is neither a folder, nor bundled:smollm2-135m, nor a Hugging Face id (owner/name)",
        overrides=("model.source=./nope",),
    ),
    Case(
        "a folder that is no model",
        "model.source: {cwd}/data has no config.json; is it a model in MLX or Hugging Face form?",
        overrides=("model.source=data",),
    ),
    Case(
        "a model whose configuration is broken",
        "model.source: {cwd}/broken/config.json is not JSON: Expecting value: line 1 column 1 (char 0)",
        {"broken/": "", "broken/config.json": "", "broken/model.safetensors": "", "broken/tokenizer_config.json": "{}"},
        ("model.source=broken",),
    ),
    Case(
        "an unknown model source",
        "model.source: own er/name is not a Hugging Face id: Repo id must use alphanumeric chars, '-', '_' or '.'. "
        "The name cannot start or end with '-' or '.' and the maximum length is 96: 'own er/name'.",
        overrides=("model.source=own er/name",),
    ),
]

TYPED = [
    "nan",
    "a duplicate host",
    "not JSON",
    "an override without a section",
    "a name with a slash",
    "everything at once",
]


def lay_out(folder: Path, case: Case) -> None:
    """Write the good files and the case's over them."""
    (folder / "data").mkdir()
    good = {f"data/{split}.jsonl": GOOD for split in ("train", "valid", "test")}
    good |= {"hosts.yml": INVENTORY + "        here: {ansible_connection: local, slots: 2}\n", "my.toml": ""}
    for name, content in {**good, **case.files}.items():
        path = folder / name
        if content is None:
            continue
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def overrides_of(case: Case, model: str = "") -> list[str]:
    """Return the case's overrides, with the good data unless a recipe or an override of the case names its own."""
    own = [override.replace("{model}", model) for override in case.overrides]
    has_data = any(override.startswith("data.path") for override in own) or "[data]" in str(case.files.get("my.toml"))
    return own if has_data else ["data.path=data", *own]


def list_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refuse(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str = ""
) -> str:
    """Train as the case asks; assert exit code 2 and an untouched folder; return what was said."""
    lay_out(folder, case)
    monkeypatch.chdir(folder)
    before = list_files(folder)
    request = Request(inventory=case.inventory, recipe=case.recipe, overrides=overrides_of(case, model), name=case.run_name)
    code = at_boundary(lambda: train(request, dry_run=False, runs=folder / "runs"))
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert list_files(folder) == before, "the run's folder or another file was made"
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize("case", CHEAP, ids=lambda case: case.name)
def test_bad_input_is_told_exactly(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line a problem with its file and line or path, and neither a run nor a cache is made."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FLOTILLA_CACHE", str(cache))
    (tmp_path / "work").mkdir()
    said = refuse(case, tmp_path / "work", monkeypatch, capsys)
    assert said == case.message.format(cwd=tmp_path / "work") + "\n"
    assert all(line.isprintable() for line in said.split("\n"))
    assert not cache.exists()


@pytest.mark.parametrize("case", NEEDS_A_MODEL, ids=lambda case: case.name)
def test_bad_models_and_long_samples_are_told_exactly(
    case: Case,
    tmp_path: Path,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What only the preparing process can see ends the same way; no model is converted or downloaded for it."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("FLOTILLA_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refuse(case, tmp_path, monkeypatch, capsys, str(tiny_model))
    assert said == case.message.format(cwd=tmp_path) + "\n"
    assert not (cache / "models").exists()


@pytest.mark.parametrize("case", [case for case in CHEAP if case.name in TYPED], ids=lambda case: case.name)
def test_the_command_that_people_type_says_the_same(case: Case, tmp_path: Path) -> None:
    """`invoke train` in a folder of the user's ends with the same code and words, and writes nothing there or here."""
    folder = tmp_path / "work"
    folder.mkdir()
    lay_out(folder, case)
    before = list_files(tmp_path)
    command = [sys.executable, "-m", "invoke", "--search-root", str(PROJECT_ROOT), "train"]
    command += ["-i", case.inventory, "-r", case.recipe, *(["--name", case.run_name] if case.run_name else [])]
    command += [f"--override={override}" for override in overrides_of(case)]
    environment = {**os.environ, "FLOTILLA_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == case.message.format(cwd=folder) + "\n"
    assert list_files(tmp_path) == before


GOOD_VARIANTS = {
    "as it is": {},
    "BOM": {"data/train.jsonl": "\ufeff" + GOOD, "hosts.yml": "\ufeff" + INVENTORY + "        a:\n", "my.toml": "\ufeff"},
    "CRLF": {
        "data/train.jsonl": GOOD.replace("\n", "\r\n"),
        "hosts.yml": (INVENTORY + "        a:\n").replace("\n", "\r\n"),
        "my.toml": "[train]\r\nseed = 1\r\n",
    },
}


@pytest.mark.parametrize("files", GOOD_VARIANTS.values(), ids=GOOD_VARIANTS)
def test_what_is_not_broken_is_not_refused(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The good files that every row starts from plan a run, also as Windows would save them, and a dry run writes nothing."""
    lay_out(tmp_path, Case("good", "", files))
    monkeypatch.chdir(tmp_path)
    before = list_files(tmp_path)
    request = Request(inventory="hosts.yml", recipe="my.toml", overrides=["data.path=data"])
    assert at_boundary(lambda: train(request, dry_run=True, runs=tmp_path / "runs")) == 0
    assert capsys.readouterr().err == ""
    assert list_files(tmp_path) == before


def test_the_table_is_as_long_as_promised() -> None:
    """There are far more than 25 rows, and every row that is typed exists."""
    names = [case.name for case in [*CHEAP, *NEEDS_A_MODEL]]
    assert len(names) == len(set(names)) >= 70
    assert set(TYPED) <= set(names)
