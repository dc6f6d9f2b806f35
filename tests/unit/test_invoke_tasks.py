"""tasks.py: it names, explains and passes on; what is done is done in trainer.control."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invoke import Collection, Context, Exit, MockContext, Program, Result, Task

from trainer import control
from trainer.cluster.provision import Playbook
from trainer.control import Request
from trainer.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]


def load_tasks() -> Collection:
    """The tasks of this project's tasks.py, fresh: invoke takes a task's help away when it parses arguments."""
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Collection.from_module(module)


NAMES = sorted(load_tasks().task_names)


def run(*arguments: str) -> int:
    """The exit code of ``invoke`` with these arguments."""
    program = Program(namespace=load_tasks())
    with pytest.raises(SystemExit) as ended:
        program.run(["invoke", *arguments])
    return int(ended.value.code or 0)


Call = tuple[tuple[Any, ...], dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Call]]:
    """Replace a function of trainer.control by one that notes its calls and returns ``code``."""

    def replace(name: str, code: int = 0) -> list[Call]:
        noted: list[Call] = []

        def note(*arguments: Any, **options: Any) -> int:
            noted.append((arguments, options))
            return code

        monkeypatch.setattr(control, name, note)
        return noted

    return replace


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    """``invoke --list`` names every task with its first line of help."""
    assert {"train", "chat", "fuse", "test", "bench", "lint"} <= set(NAMES)
    assert run("--list") == 0
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines()[2:] if line.strip())
    assert sorted(shown) == NAMES
    tasks = load_tasks()
    firsts = {name: (tasks[name].__doc__ or "").splitlines()[0] for name in NAMES}
    assert {name: text.split("...")[0] for name, text in shown.items()} == firsts


@pytest.mark.parametrize("name", NAMES)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every task has a line that says what it does, every parameter has help, and ``--help`` shows both."""
    task: Task[Any] = load_tasks()[name]
    assert (task.__doc__ or "").splitlines()[0].endswith(".")
    arguments = task.get_arguments()
    assert [argument.name for argument in arguments if not (argument.help or "").strip()] == []
    assert run("--help", name) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join((task.__doc__ or "").split()) in shown
    options = [argument.name.replace("_", "-") for argument in arguments]
    assert [option for option in options if f"--{option}" not in shown] == []


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("lab.", "data."))])
def test_no_logic(name: str) -> None:
    """A task hands over to one function of trainer.control, or runs shell commands: no loop, no exception caught."""
    [function] = [
        node for node in ast.parse((ROOT / "tasks.py").read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.replace("_", "-") == name
    ]  # fmt: skip
    nodes = list(ast.walk(function))
    forbidden = (ast.For, ast.While, ast.Try, ast.FunctionDef, ast.ClassDef, ast.Global)
    assert [type(node) for node in nodes if isinstance(node, forbidden)] == [ast.FunctionDef]
    imported = [
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "trainer.control"
        for alias in node.names
        if alias.name not in ("Request", "Playbook", "at_boundary")
    ]
    shells = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "context.run"]
    assert len(imported) + len(shells) == 1
    assert len(function.body) <= 5


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("data.")])
def test_no_logic_of_data(name: str) -> None:
    """A task of the workshop hands over to one function of trainer.workshop.commands: no loop, no exception caught."""
    [function] = [
        node for node in ast.parse((ROOT / "trainer/data_tasks.py").read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and f"data.{node.name}" == name
    ]  # fmt: skip
    nodes = list(ast.walk(function))
    forbidden = (ast.For, ast.While, ast.Try, ast.FunctionDef, ast.ClassDef, ast.Global)
    assert [type(node) for node in nodes if isinstance(node, forbidden)] == [ast.FunctionDef]
    called = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    assert len([each for each in called if each.startswith("commands.") and each[9].islower()]) == 1
    assert len(function.body) <= 6


def test_train_by_default(calls: Callable[..., list[Call]]) -> None:
    """``invoke train`` trains the default recipe on the default inventory."""
    trained = calls("train")
    assert run("train") == 0
    assert trained == [((Request(inventory="inventory/hosts.yml", recipe="pirate", overrides=(), name=""), False), {})]


def test_train_defaults_are_written_once(calls: Callable[..., list[Call]]) -> None:
    """The task's defaults are those of the request that it makes."""
    trained = calls("train")
    run("train")
    assert trained[0][0][0] == Request()


def test_train_passes_its_options_on(calls: Callable[..., list[Call]]) -> None:
    """All options of train arrive, short or long, overrides in their order and as they are."""
    trained = calls("train")
    short = ["-i", "pair.yml", "-r", "my.toml", "-o", "train.steps=3", "-o", "style.name='a b'", "-n", "mine", "-d"]
    long = ["--inventory=pair.yml", "--recipe=my.toml", "--override=train.steps=3", "--override=style.name='a b'"]
    long += ["--name=mine", "--dry-run"]
    wanted = Request(inventory="pair.yml", recipe="my.toml", overrides=("train.steps=3", "style.name='a b'"), name="mine")
    assert [run("train", *short), run("train", *long)] == [0, 0]
    assert trained == [((wanted, True), {})] * 2


def test_train_may_take_the_slow_link(calls: Callable[..., list[Call]]) -> None:
    """Only if that is asked for."""
    trained = calls("train")
    assert run("train", "--allow-slow-link") == 0
    assert trained == [((Request(allow_slow_link=True), False), {})]


def test_chat_passes_its_options_on(calls: Callable[..., list[Call]]) -> None:
    """All options of chat arrive; without any it is a conversation with the latest run."""
    chatted = calls("chat")
    options = ["--prompt=Tea?", "--prompt=Exam?", "--base", "--model=/m", "--system=Be brief.", "--max-tokens=7"]
    assert [run("chat"), run("chat", "--run=runs/x", "--temperature=0.5", *options)] == [0, 0]
    none = {"base": False, "model": "", "prompts": [], "system": "", "max_tokens": 512, "temperature": "0"}
    full = {"base": True, "model": "/m", "prompts": ["Tea?", "Exam?"], "system": "Be brief.", "max_tokens": 7}
    assert chatted == [(("",), none), (("runs/x",), {**full, "temperature": "0.5"})]


def test_fuse_passes_its_options_on(calls: Callable[..., list[Call]]) -> None:
    """Both options of fuse arrive."""
    fused = calls("fuse")
    assert [run("fuse"), run("fuse", "--run=runs/x", "--out=/models/mine")] == [0, 0]
    assert fused == [(("", ""), {}), (("runs/x", "/models/mine"), {})]


def test_report_passes_its_options_on(calls: Callable[..., list[Call]]) -> None:
    """Both options of report arrive; without any it is the latest run."""
    reported = calls("report")
    assert [run("report"), run("report", "--run", "one"), run("report", "--baseline", "-r", "b")] == [0, 0, 0]
    assert reported == [(("", False), {}), (("one", False), {}), (("b", True), {})]


def test_report_of_what_looks_like_a_task(calls: Callable[..., list[Call]]) -> None:
    """`invoke report baseline`, which Invoke takes for two tasks, measures nothing."""
    reported, measured = calls("report"), calls("baseline")
    assert run("report", "baseline") == 0
    assert (len(reported), measured) == (1, [])


def test_baseline_passes_its_options_on(calls: Callable[..., list[Call]]) -> None:
    """Two stored baselines to compare arrive in their order."""
    measured = calls("baseline")
    assert run("baseline", "--quick", "--compare", "a", "--other", "b", "-n", "mine") == 0
    assert measured == [((Request(name="mine"),), {"is_quick": True, "compared": ("a", "b")})]


@pytest.mark.parametrize("name", ["provision", "verify", "teardown"])
def test_playbooks(calls: Callable[..., list[Call]], name: str) -> None:
    """Each of the three runs its own playbook, on the default inventory or the one given, with the options given."""
    played = calls("play")
    playbook = {"provision": "site.yml"}.get(name, f"{name}.yml")
    assert [run(name), run(name, "-i", "pair.yml", "--extra=--limit mini")] == [0, 0]
    plain = Playbook(name=playbook, inventory="inventory/hosts.yml")
    assert played == [((plain,), {}), ((Playbook(name=playbook, inventory="pair.yml", extra="--limit mini"),), {})]


def test_provision_passes_its_options_on(calls: Callable[..., list[Call]]) -> None:
    """All options of provision arrive."""
    played = calls("play")
    assert run("provision", "--check", "--ask-pass", "--ask-become-pass", "--tags=power") == 0
    wanted = {"check": True, "ask_pass": True, "ask_become_pass": True, "tags": "power"}
    assert played == [((Playbook(name="site.yml", inventory="inventory/hosts.yml", **wanted),), {})]


def test_doctor_passes_its_options_on(calls: Callable[..., list[Call]]) -> None:
    """Both options of doctor arrive."""
    examined = calls("doctor")
    assert [run("doctor"), run("doctor", "-i", "pair.yml", "--json")] == [0, 0]
    assert examined == [(("inventory/hosts.yml",), {"as_json": False}), (("pair.yml",), {"as_json": True})]


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 70, 75, 130])
@pytest.mark.parametrize("task", ["train", "chat", "fuse"])
def test_exit_codes(calls: Callable[..., list[Call]], task: str, code: int) -> None:
    """What trainer.control returns is what the process ends with."""
    calls(task, code)
    assert run(task) == code


def test_error_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error with a message for people is its message and its exit code, not a traceback."""

    def fail(*_: object) -> int:
        raise ClusterError("mini: no route to host")

    monkeypatch.setattr(control, "train", fail)
    assert run("train") == 3
    assert capsys.readouterr() == ("", "mini: no route to host\n")


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C is exit code 130 and no traceback."""

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "fuse", interrupt)
    assert run("fuse") == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [["train", "--nonsense"], ["nonsense"], ["train", "extra"], ["train", "--recipe"]])
def test_misuse(calls: Callable[..., list[Call]], arguments: list[str]) -> None:
    """An option or task that does not exist, or an option without its value, is an error before anything is done."""
    done = [calls("train"), calls("chat")]
    assert run(*arguments) != 0
    assert done == [[], []]


def run_shell_task(name: str, results: dict[str, Result], **options: str) -> tuple[int, list[str]]:
    """The exit code of a task that runs shell commands, none of them for real, and these commands."""
    ran: list[str] = []

    class Recorder(MockContext):  # type: ignore[misc]
        def run(self, command: str, *arguments: Any, **keywords: Any) -> Any:
            ran.append(command)
            return super().run(command, *arguments, **keywords)

    context: Context = Recorder(run=results, repeat=True)
    try:
        load_tasks()[name](context, **options)
    except Exit as ended:
        return ended.code, ran
    return 0, ran


@pytest.mark.parametrize("code", [0, 1, 5])
def test_test(code: int) -> None:
    """``invoke test`` is pytest of this Python, two files at a time, with the options given, and pytest's exit code."""
    pytest_line = f"{sys.executable} -m pytest -n 2 --dist loadfile --no-loadscope-reorder -k 'a or b' -x"
    command = f"cd {ROOT} && {pytest_line}"
    results = {command: Result(exited=code), command.removeprefix(f"cd {ROOT} && "): Result(exited=code)}
    ended, ran = run_shell_task("test", results, args="-k 'a or b' -x")
    assert (ended, ran) == (code, [pytest_line])


@pytest.mark.parametrize("failing", [[], ["mypy"], ["ruff check .", "yamllint --strict ."]])
def test_lint(failing: list[str]) -> None:
    """``invoke lint`` runs all checks, though one fails, and fails with the names of those that do."""
    folder = Path(sys.executable).parent
    commands = ["ruff check .", "ruff format --check .", "mypy", "lint-imports", "yamllint --strict ."]
    commands.append("ansible-lint --offline --strict ansible")
    results = {f"{folder}/{command}": Result(exited=int(command in failing)) for command in commands}
    ended, ran = run_shell_task("lint", results)
    assert (ended, ran) == (int(bool(failing)), [f"{folder}/{command}" for command in commands])


def test_light() -> None:
    """``import tasks`` is quick: neither MLX nor transformers nor rich is imported to list the tasks, and of the trainer
    nothing but the tasks of the workshop.
    """
    code = (
        "import sys, tasks; print(sorted({name if name.startswith('trainer') else name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    heavy = {"mlx", "mlx_lm", "transformers", "tokenizers", "rich", "numpy", "mpi4py", "huggingface_hub"}
    imported = set(ast.literal_eval(done.stdout))
    assert heavy & imported == set()
    assert {name for name in imported if name.startswith("trainer")} == {"trainer", "trainer.data_tasks"}
