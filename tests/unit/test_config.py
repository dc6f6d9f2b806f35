"""Recipes, overrides and the `RunConfig` that they make."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import RunConfig, parse_config, recipe_schema, render_toml
from trainer.errors import InputError
from trainer.recipe import RECIPES, find_recipe, load_config
from trainer.schema import find_problems

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test of time

SHIPPED = "pirate, pirate-mistral"


def refusal(recipe: str | Path, *overrides: str) -> str:
    """Return what `load_config` says about input that it must refuse."""
    with pytest.raises(InputError) as caught:
        load_config(recipe, overrides)
    return str(caught.value)


def write(folder: Path, text: str | bytes, name: str = "my.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Return a recipe that sets nothing, so that every default stands."""
    return write(tmp_path, "")


def test_an_empty_recipe_is_the_defaults(empty: Path) -> None:
    """A recipe that says nothing gives exactly the defaults of the dataclasses."""
    assert load_config(empty) == RunConfig()


def test_the_defaults_pass_their_own_limits() -> None:
    """No default breaks the schema that is derived beside it."""
    assert find_problems(RunConfig().as_dict(), recipe_schema(), "defaults") == []


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_by_name_and_by_path(path: Path) -> None:
    """A shipped recipe is found by its name and by its path, and is the same."""
    assert load_config(path.stem) == load_config(path)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_what_a_shipped_recipe_writes_is_what_it_gets(path: Path) -> None:
    """Every value that a shipped recipe writes down reaches the configuration."""
    table = tomllib.loads(path.read_text("utf-8"))
    table.pop("extends", None)
    config = load_config(path).as_dict()
    assert {section: {key: config[section][key] for key in values} for section, values in table.items()} == table


def test_extends_lays_a_recipe_over_another(tmp_path: Path) -> None:
    """A key keeps the value of the nearest recipe that sets it; sections are merged key by key."""
    write(tmp_path, "[train]\nepochs = 2\nsteps = 9\n[adapter]\nrank = 2", "ground.toml")
    write(tmp_path, "extends = 'ground.toml'\n[train]\nepochs = 3\n[data]\npath = 'd'", "middle.toml")
    config = load_config(write(tmp_path, "extends = 'middle.toml'\n[train]\nseed = 4"))
    assert (config.train.seed, config.train.epochs, config.train.steps) == (4, 3, 9)
    assert (config.adapter.rank, config.data.path) == (2, "d")


def test_extends_a_shipped_recipe_by_name(tmp_path: Path) -> None:
    """``extends = "pirate"`` with one key changed differs from pirate in that key alone."""
    pirate = load_config("pirate")
    changed = load_config(write(tmp_path, "extends = 'pirate'\n[train]\nseed = 7"))
    assert changed == dataclasses.replace(pirate, train=dataclasses.replace(pirate.train, seed=7))


def test_extends_is_looked_for_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in ``extends`` is relative to the recipe that names it, from whatever folder the command runs."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path, "[train]\nseed = 5", "recipes/ground.toml")
    mine = write(tmp_path, "extends = 'ground.toml'", "recipes/mine.toml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(mine).train.seed == 5


@pytest.mark.parametrize("spelling", ["a.toml", "./a.toml", "../{folder}/a.toml", "link.toml"])
def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path, spelling: str) -> None:
    """A cycle is an error that shows its way, however the recipe names itself."""
    (tmp_path / "link.toml").symlink_to("a.toml")
    base = spelling.format(folder=tmp_path.name)
    a = write(tmp_path, f"extends = '{base}'", "a.toml")
    assert refusal(a) == f"{a}: extends: {a.parent / base}: extends: the recipe extends itself"


def test_a_longer_cycle_is_refused(tmp_path: Path) -> None:
    """Two recipes that extend each other are refused, naming both."""
    a = write(tmp_path, "extends = 'b.toml'", "a.toml")
    b = write(tmp_path, "extends = 'a.toml'", "b.toml")
    assert refusal(a) == f"{b}: extends: {a}: extends: the recipe extends itself"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("extends = 'pirat'", "extends: pirat: there is no such recipe; did you mean pirate? (or give a .toml file)"),
        ("extends = 'nope.toml'", f"extends: nope.toml: there is no such recipe; there are {SHIPPED} (or give a .toml file)"),
        ("extends = ''", f'extends: "": there is no such recipe; there are {SHIPPED} (or give a .toml file)'),
        ("extends = 3", "extends: 3 is not a text"),
        ("extends = ['pirate']", 'extends: ["pirate"] is not a text'),
        ("extend = 'pirate'", "extend: unknown key; did you mean extends?"),
    ],
)
def test_a_bad_extends_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """What ``extends`` names must be a recipe; the error says which file asked for it."""
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}: {complaint}"


def test_a_broken_base_is_reported_with_the_recipe_that_extends_it(tmp_path: Path) -> None:
    """The problems of a recipe and of the one below it come together, each with its own file."""
    ground = write(tmp_path, "model = 3\n[train]\nepoch = 1", "ground.toml")
    mine = write(tmp_path, "extends = 'ground.toml'\n[model]\nsource = 'x'\n[adapter]\nrank = 0")
    assert refusal(mine) == (
        f"{ground}: model: 3 is not a table of keys and values\n"
        f"{ground}: train.epoch: unknown key; did you mean epochs?\n"
        f"{mine}: adapter.rank: 0 is below the minimum 1"
    )


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """Wrong types, limits, unknown keys and bad overrides are told together, ordered by path."""
    path = write(tmp_path, "mdoel = 1\n[train]\nsteps = -1\nepochs = 'two'\nepocs = 2\n[style]\nmarkers = ['a', 'a', 3]")
    assert refusal(path, "adapter.rank=none", "adapter.rnk=4") == (
        f"{path}: mdoel: unknown key; did you mean model?\n"
        f'{path}: style.markers: ["a", "a", 3] lists something twice\n'
        f"{path}: style.markers[2]: 3 is not a text\n"
        f"{path}: train.epocs: unknown key; did you mean epochs?\n"
        f'{path}: train.epochs: "two" is not a whole number\n'
        f"{path}: train.steps: -1 is below the minimum 0\n"
        '-o adapter.rank=none: adapter.rank: "none" is not a whole number\n'
        "-o adapter.rnk=4: unknown key; did you mean adapter.rank?"
    )


def test_problems_in_a_list_are_ordered_by_number(tmp_path: Path) -> None:
    """Element 2 comes before element 10."""
    path = write(tmp_path, f"[adapter]\nkeys = {json.dumps([0 if n in (2, 10) else str(n) for n in range(12)])}")
    assert [line.split(": ")[1] for line in refusal(path).splitlines()] == [
        "adapter.keys",
        "adapter.keys[2]",
        "adapter.keys[10]",
    ]


SCHEMA: dict[str, Any] = recipe_schema()["properties"]
KEYS = [(section, key, rule) for section, table in SCHEMA.items() for key, rule in table["properties"].items()]
WRONG = {"string": "3", "integer": "2.0", "number": "'a'", "boolean": "1", "array": "'a'"}
NAMES = {
    "string": "3 is not a text",
    "integer": "2.0 is not a whole number",
    "number": '"a" is not a number',
    "boolean": "1 is not true or false",
    "array": '"a" is not a list',
}


@pytest.mark.parametrize(("section", "key", "rule"), KEYS, ids=[f"{section}.{key}" for section, key, _ in KEYS])
def test_every_setting_refuses_a_wrong_type(tmp_path: Path, section: str, key: str, rule: dict[str, Any]) -> None:
    """No setting takes a value of another type, 2.0 for a whole number and 1 for true included."""
    kind = rule.get("type", "enum")
    path = write(tmp_path, f"[{section}]\n{key} = {WRONG.get(kind, '3')}")
    complaint = NAMES[kind] if kind in NAMES else f"3 is not one of {', '.join(rule['enum'])}"
    assert refusal(path) == f"{path}: {section}.{key}: {complaint}"


NUMBERS = [(section, key) for section, key, rule in KEYS if rule.get("type") == "number"]


@pytest.mark.parametrize(("section", "key"), NUMBERS, ids=[f"{section}.{key}" for section, key in NUMBERS])
@pytest.mark.parametrize(
    ("written", "shown"), [("nan", "NaN"), ("inf", "Infinity"), ("-inf", "-Infinity"), ("1e999", "Infinity")]
)
def test_every_number_refuses_what_is_not_finite(tmp_path: Path, section: str, key: str, written: str, shown: str) -> None:
    """TOML can write nan and inf, which pass any comparison with a limit: they are refused everywhere, also with -o."""
    path = write(tmp_path, f"[{section}]\n{key} = {written}")
    assert refusal(path) == f"{path}: {section}.{key}: {shown} is not a finite number"
    override = f"{section}.{key}={written}"
    assert refusal(write(tmp_path, ""), override) == f"-o {override}: {section}.{key}: {shown} is not a finite number"


def test_an_integer_beyond_any_float_is_refused(tmp_path: Path) -> None:
    """Four hundred digits are an integer to TOML, and no learning rate."""
    path = write(tmp_path, f"[optimizer]\nlearning_rate = {'9' * 400}")
    assert refusal(path) == f"{path}: optimizer.learning_rate: {'9' * 57}... is not a finite number"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[optimizer]\nlearning_rate = 0", "optimizer.learning_rate: 0 is not above 0"),
        ("[optimizer]\nlearning_rate = -1e-4", "optimizer.learning_rate: -0.0001 is not above 0"),
        ("[optimizer]\nbeta2 = 1", "optimizer.beta2: 1 is not below 1"),
        ("[adapter]\nrank = 0", "adapter.rank: 0 is below the minimum 1"),
        ("[adapter]\nnum_layers = -2", "adapter.num_layers: -2 is below the minimum -1"),
        ("[adapter]\nkind = 'Lora'", 'adapter.kind: "Lora" is not one of lora, dora; did you mean lora?'),
        ("[schedule]\nfinal_ratio = 1.5", "schedule.final_ratio: 1.5 is above the maximum 1"),
        ("[launch]\nbackend = 'mpj'", 'launch.backend: "mpj" is not one of mpi, ring, jaccl; did you mean mpi?'),
        ("[data]\npath = ''", 'data.path: "" is empty'),
        ("[data]\nmax_tokens = 7", "data.max_tokens: 7 is below the minimum 8"),
        ("[train]\nseed = 4294967296", "train.seed: 4294967296 is above the maximum 4294967295"),
        ('[model]\nsource = "a\\u0000b"', 'model.source: "a\\u0000b" holds a control character'),
        ('[data]\npath = "a\\n"', 'data.path: "a\\n" holds a control character'),
        ("[[train]]\nepochs = 1", 'train: [{"epochs": 1}] is not a table of keys and values'),
        ("train = 1979-05-27", 'train: "1979-05-27" is not a table of keys and values'),
        ("'a b' = 1", '"a b": unknown key'),
        ('"\\u001b[2J\\n" = 1', '"\\u001b[2J\\n": unknown key'),
        ("[train.epochs]\nx = 1", 'train.epochs: {"x": 1} is not a whole number'),
    ],
)
def test_a_value_outside_its_rule_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """The error names file, path, value and rule, on one line and without anything that a terminal would obey."""
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}: {complaint}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"[train]\nepochs 3", ": not valid TOML: Expected '=' after a key in a key/value pair (at line 2, column 8)"),
        (b"[train]\n[train]", ": not valid TOML: Cannot declare ('train',) twice (at line 2, column 7)"),
        (b"a = 1\n# \xe9", ":2: is not UTF-8 text; save the file as UTF-8"),
        (b"a = " + b"[" * 4000, ": is nested too deeply"),
        (b"[train]\n\x00", ": not valid TOML: Invalid statement (at line 2, column 1)"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: bytes, complaint: str) -> None:
    """What cannot be read as TOML is named with its line where there is one."""
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}{complaint}"


def test_thousands_of_digits_are_refused(tmp_path: Path) -> None:
    """An integer that Python will not convert is bad input, not a traceback."""
    path = write(tmp_path, f"[train]\nseed = {'9' * 5000}")
    assert refusal(path).startswith(f"{path}: not valid TOML: Exceeds the limit (4300 digits) for integer string conversion")


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf[train]\nseed = 3\n", b"[train]\r\nseed = 3\r\n"], ids=["BOM", "CRLF"])
def test_windows_habits_are_fine(tmp_path: Path, text: bytes) -> None:
    """A byte order mark and CRLF line ends change nothing."""
    assert load_config(write(tmp_path, text)).train.seed == 3


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ("pirat", "pirat: there is no such recipe; did you mean pirate? (or give a .toml file)"),
        ("", f'"": there is no such recipe; there are {SHIPPED} (or give a .toml file)'),
        ("../pirate", "../pirate: there is no such recipe; did you mean pirate? (or give a .toml file)"),
        ("~nobody-at-all/x", f"~nobody-at-all/x: there is no such recipe; there are {SHIPPED} (or give a .toml file)"),
        ("a\nb", f"a\\nb: there is no such recipe; there are {SHIPPED} (or give a .toml file)"),
        ("x" * 300, f"{'x' * 300}: there is no such recipe; there are {SHIPPED} (or give a .toml file)"),
        (".", f".: there is no such recipe; there are {SHIPPED} (or give a .toml file)"),
    ],
)
def test_a_recipe_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, complaint: str
) -> None:
    """The error names those that exist, or the one that was probably meant."""
    monkeypatch.chdir(tmp_path)
    assert refusal(recipe) == complaint


def test_a_shipped_name_wins_over_a_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pirate`` is ours wherever the command runs; ``./pirate`` is the file here."""
    write(tmp_path, "[train]\nseed = 9", "pirate")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("pirate") == RECIPES / "pirate.toml"
    assert load_config("./pirate").train.seed == 9


def get(config: RunConfig, path: str) -> Any:
    section, key = path.split(".")
    return getattr(getattr(config, section), key)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.learning_rate=2e-4", 2e-4),
        ("optimizer.learning_rate=1", 1.0),
        ("train.epochs=3", 3),
        (" train.epochs = 3 ", 3),
        ("train.epochs=1_000", 1000),
        ("train.epochs=2 # twice", 2),
        ("model.trust_remote_code=true", True),
        ("adapter.kind=dora", "dora"),
        ("adapter.kind='dora'", "dora"),
        ("data.path=../my data/pirates", "../my data/pirates"),
        ('data.path="../my data/pirates"', "../my data/pirates"),
        ("data.path=a=b", "a=b"),
        ("model.revision=1234567", "1234567"),
        ("model.revision=12345e7", "12345e7"),
        ("model.revision=true", "true"),
        ("style.name=1979-05-27", "1979-05-27"),
        ("style.name=[x]", "[x]"),
        ("style.name=", ""),
        ("style.name=''", ""),
        ("style.name=päiväkirja 🏴‍☠️", "päiväkirja 🏴‍☠️"),
        ('style.markers=["ye", "arr"]', ("ye", "arr")),
        ("adapter.keys=[]", ()),
    ],
)
def test_an_override_is_read_as_toml_or_as_it_stands(empty: Path, override: str, value: object) -> None:
    """A value needs no quotes where it is a text, and may have them; a setting that is a text takes 1234567 as one."""
    extra = ["style.min_markers=1"]
    got = get(load_config(empty, [override, *extra]), override.partition("=")[0].strip())
    assert got == value
    assert type(got) is type(value)


def test_the_last_override_wins(empty: Path) -> None:
    """An override is laid over the recipe and over those before it."""
    assert load_config(empty, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.epochs", "-o train.epochs: write it as section.key=value, such as optimizer.learning_rate=2e-4"),
        ("epochs=3", "-o epochs=3: write it as section.key=value, such as optimizer.learning_rate=2e-4"),
        ("=", "-o =: write it as section.key=value, such as optimizer.learning_rate=2e-4"),
        ("", "-o : write it as section.key=value, such as optimizer.learning_rate=2e-4"),
        ("train.epoch=3", "-o train.epoch=3: unknown key; did you mean train.epochs?"),
        ("Train.Epochs=3", "-o Train.Epochs=3: unknown key; did you mean train.epochs?"),
        ("train.learning_rate=1", "-o train.learning_rate=1: unknown key; did you mean optimizer.learning_rate?"),
        ("extends.x=1", "-o extends.x=1: unknown key"),
        ("train.epochs.x=1", "-o train.epochs.x=1: unknown key; did you mean train.epochs?"),
        ("train.epochs=", '-o train.epochs=: train.epochs: "" is not a whole number'),
        ("train.epochs=0", "-o train.epochs=0: train.epochs: 0 is below the minimum 1"),
        ("train.epochs=1\nseed = 2", '-o train.epochs=1\\nseed = 2: train.epochs: "1\\nseed = 2" is not a whole number'),
        ("style.name=\udcff", "-o style.name=\\udcff: is not UTF-8 text"),
        ("model.trust_remote_code=yes", '-o model.trust_remote_code=yes: model.trust_remote_code: "yes" is not true or false'),
        ("style.markers=[1]", "-o style.markers=[1]: style.markers[0]: 1 is not a text"),
    ],
)
def test_a_bad_override_is_refused(empty: Path, override: str, complaint: str) -> None:
    """The error shows the override as it was given, with the remedy."""
    assert refusal(empty, override) == complaint


@pytest.mark.parametrize("value", ["[" * 4000, "9" * 5000], ids=["nested", "digits"])
def test_an_override_that_toml_cannot_hold_is_refused(empty: Path, value: str) -> None:
    """What the TOML reader gives up on is taken as text, which the setting refuses."""
    assert refusal(empty, f"train.epochs={value}").endswith(f'train.epochs: "{value[:56]}... is not a whole number')


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[adapter]\nnum_layers = 0", "adapter.num_layers: 0 adapts no layer; use a positive number, or -1 for all layers"),
        ("[train]\nsteps = 3\n[schedule]\nwarmup_steps = 3", "schedule.warmup_steps: 3 leaves nothing of train.steps = 3"),
        ("[style]\nmarkers = ['ye']", "style.min_markers: 3 is more than the 1 style.markers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """What no single rule can see is found too."""
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}: {complaint}"


def test_a_configuration_cannot_be_changed() -> None:
    """The configuration, its sections and its lists are frozen."""
    config = load_config("pirate")
    for owner, name in [(config, "model"), *((getattr(config, f.name), "x") for f in dataclasses.fields(config))]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(owner, name, None)
    hash(config)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_a_rendered_configuration_loads_as_the_same(tmp_path: Path, recipe: str) -> None:
    """config.toml of a run is a recipe with every key, equal to what the run used."""
    config = load_config(recipe)
    assert load_config(write(tmp_path, render_toml(config))) == config
    assert parse_config(json.loads(json.dumps(config.as_dict()))) == config


def any_value(kind: Any) -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_categories=["Cs"]))
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: text,
        int: st.integers(-(2**63), 2**63 - 1),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        tuple[str, ...]: st.lists(text, max_size=3).map(tuple),
    }
    return plain[kind] if kind in plain else st.sampled_from(typing.get_args(kind))


def any_section(section: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(section)
    return st.builds(section, **{name: any_value(kind) for name, kind in hints.items()})


any_config = st.builds(RunConfig, **{name: any_section(cls) for name, cls in typing.get_type_hints(RunConfig).items()})


@patient
@given(any_config)
def test_any_configuration_survives_toml(config: RunConfig) -> None:
    """Whatever texts and numbers a configuration holds, TOML gives back the same, control characters included."""
    assert parse_config(tomllib.loads(render_toml(config))) == config


@patient
@given(st.text(max_size=40))
def test_any_override_is_taken_or_refused_in_one_line(text: str) -> None:
    """No text behind -o ends in anything but a configuration or an `InputError` of one line for a terminal."""
    for override in (text, f"train.epochs={text}", f"style.name={text}", f"adapter.keys={text}"):
        with contextlib.suppress(InputError):
            load_config("pirate", [override])
            continue
        assert refusal("pirate", override).isprintable()


def test_an_override_without_effect_is_refused() -> None:
    """`train.epochs` beside a recipe's `train.steps` would be ignored: it is told how to mean it."""
    with pytest.raises(InputError) as told:
        load_config("pirate", ["train.epochs=3"])
    assert str(told.value) == "-o train.epochs=3: has no effect while train.steps = 100; add -o train.steps=0"
    config = load_config("pirate", ["train.epochs=3", "train.steps=0"])
    assert (config.train.epochs, config.train.steps) == (3, 0)
