"""./inv, the real script in a checkout of its own: a lock of one package, a fake `invoke` that tells how it was called.

No network: pip finds the package in a folder. A named pipe stops an installation where a test wants it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "inv"
TOOLS = ("cat", "cmp", "cp", "dirname", "readlink", "sh")

SETTING_UP = "inv: setting up .venv (1 packages, once; a minute or two)\n"
WAITING = "inv: another ./inv is setting up; waiting…\n"
NEEDS = "Flotilla needs Python 3.11 to 3.13 on arm64 macOS or 64-bit Linux"
REMEDY = "brew install python@3.12, or set FLOTILLA_PYTHON"

FAKE_INVOKE = """\
import json, os, sys
import trainer
told = {"version": VERSION, "arguments": sys.argv[1:], "cwd": os.getcwd(), "python": sys.executable}
print(json.dumps(told | {"stdin": sys.stdin.read(), "trainer": trainer.__file__}))
"""

# A real `-m venv` takes four seconds, most of them for pip; this one copies what a real one made.
QUICK_VENV = """\
import os, sys
if sys.orig_argv[1:4] == ["-I", "-m", "venv"]:
    os.execvp("cp", ["cp", "-R", TEMPLATE, sys.orig_argv[4]])
"""

pytestmark = pytest.mark.timeout(120)  # a script that never reaches the pipe would be waited for without end


@dataclass
class Checkout:
    """A copy of the script with a lock, and a PATH that holds the tools it needs and no more."""

    root: Path
    bin: Path
    wheels: Path
    settings: dict[str, str] = field(default_factory=dict)

    def lock(self, version: str, sha256: str | None = None) -> None:
        """Pin the fake invoke to a version, and write the wheel that has it."""
        wheel = self.wheels / f"invoke-{version}-py3-none-any.whl"
        write_wheel(wheel, version)
        sha256 = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
        (self.root / "requirements.lock").write_text(f"invoke=={version} \\\n    --hash=sha256:{sha256}\n")

    def command(self, name: str, text: str) -> None:
        """Put a shell script on the PATH."""
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str, script: Path | str | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start the script with pipes, in an environment that holds nothing of the caller's."""
        environment = {"HOME": str(self.root), "PATH": str(self.bin), "PIP_CONFIG_FILE": os.devnull}
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)} | self.settings
        options |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([str(script or self.root / "inv"), *arguments], env=environment, encoding="utf-8", **options)

    def call(self, *arguments: str, stdin: str = "", **options: Any) -> tuple[int, str, str]:
        """Run the script; return exit status, stdout, stderr."""
        process = self.start(*arguments, **options)
        stdout, stderr = process.communicate(stdin)
        return process.returncode, stdout, stderr

    def tell(self, *arguments: str, **options: Any) -> tuple[dict[str, Any], str]:
        """Run the script, which must succeed; return what the fake invoke was given, and stderr."""
        status, stdout, stderr = self.call(*arguments, **options)
        assert status == 0, stderr
        return json.loads(stdout), stderr

    def environments(self) -> set[str]:
        return {path.name for path in self.root.glob(".venvs/*") if path.is_dir()}

    def current(self) -> str:
        return (self.root / ".venv").readlink().name


class Gate:
    """A `uv` that stops the first installation until it is released; then it fails, so that pip has its turn."""

    def __init__(self, checkout: Checkout) -> None:
        self.started, self.release, self.calls = (checkout.bin / name for name in ("started", "release", "calls"))
        os.mkfifo(self.started)
        os.mkfifo(self.release)
        stop = "[ ! -p started ] || { echo $PPID >started; read -r go <release; }"
        checkout.command("uv", f'cd "{checkout.bin}"\necho "$@" >>calls\n{stop}\nexit 1')

    def wait(self) -> int:
        """Wait until an installation has begun; return the process that builds. Later installations do not stop."""
        builder = int(self.started.read_text())
        self.started.unlink()
        return builder

    def open(self) -> None:
        self.release.write_text("go\n")

    def commands(self) -> list[str]:
        return self.calls.read_text().splitlines()


def write_wheel(path: Path, version: str) -> None:
    info = f"invoke-{version}.dist-info"
    files = {
        "invoke/__init__.py": "",
        "invoke/__main__.py": f"VERSION = {version!r}\n{FAKE_INVOKE}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: invoke\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)


def run_python(executable: Path | str) -> str:
    return f'exec "{executable}" "$@"'


def pretend(edit: str) -> str:
    """A python3 that takes itself for another: `edit` runs before what follows -c."""
    return f"for last do :; done\nexec '{sys.executable}' -c 'import platform, sys; {edit}; exec(sys.argv[1])' \"$last\""


def new_checkout(folder: Path, python: str) -> Checkout:
    checkout = Checkout(root=folder / "it's a fleet", bin=folder / "bin", wheels=folder / "wheels")
    for path in (checkout.root / "trainer", checkout.bin, checkout.wheels):
        path.mkdir(parents=True)
    for tool in TOOLS:
        (checkout.bin / tool).symlink_to(str(shutil.which(tool)))
    shutil.copy(SCRIPT, checkout.root)
    (checkout.root / "trainer/__init__.py").touch()
    checkout.command("python3", python)
    checkout.lock("1.0")
    return checkout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A python3 whose `-m venv` is quick."""
    template, quick = (tmp_path_factory.mktemp("python") / name for name in ("template", "quick"))
    subprocess.run([sys.executable, "-I", "-m", "venv", template], check=True)
    subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", quick], check=True)
    [site] = quick.glob("lib/python3*/site-packages")
    (site / "sitecustomize.py").write_text(f"TEMPLATE = {str(template)!r}\n{QUICK_VENV}")
    return run_python(quick / "bin/python")


@pytest.fixture
def checkout(tmp_path: Path, python: str) -> Checkout:
    """A fresh clone, in a folder with spaces and a quote in its name."""
    return new_checkout(tmp_path, python)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, python: str) -> Checkout:
    """A checkout that was used before, on a machine whose python3 is gone since: a build would fail."""
    checkout = new_checkout(tmp_path_factory.mktemp("used"), python)
    checkout.tell()
    (checkout.bin / "python3").unlink()
    return checkout


def test_first_use(tmp_path: Path) -> None:
    """The first call in a fresh clone makes the environment, then runs the task, which can read stdin."""
    checkout = new_checkout(tmp_path, run_python(sys.executable))
    told, stderr = checkout.tell("train", stdin="ahoy")
    assert stderr == SETTING_UP
    assert told == {
        "version": "1.0",
        "arguments": ["--search-root", str(checkout.root), "train"],
        "cwd": str(Path.cwd()),
        "python": str(checkout.root / ".venvs" / checkout.current() / "bin/python"),
        "stdin": "ahoy",
        "trainer": str(checkout.root / "trainer/__init__.py"),
    }


def test_second_use(used: Checkout) -> None:
    """A call with a complete environment runs the task at once, and looks for no Python to build with."""
    told, stderr = used.tell()
    assert (told["version"], stderr) == ("1.0", "")


def test_arguments_verbatim(used: Checkout) -> None:
    """Arguments reach invoke as they are: quotes, spaces, patterns, none at all."""
    arguments = ["say", 'it\'s "two  words"', "*", "$HOME `id`", "a\\nb", "", "--", "-x"]
    assert used.tell(*arguments)[0]["arguments"] == ["--search-root", str(used.root), *arguments]
    assert used.tell()[0]["arguments"] == ["--search-root", str(used.root)]


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["report", "my run"], ["report", "--run", "my run"]),
        (["report", "baseline", "-x"], ["report", "--run", "baseline", "-x"]),
        (["report"], ["report"]),
        (["report", "--run", "x"], ["report", "--run", "x"]),
        (["baseline", "--compare", "a b", "*", "-q"], ["baseline", "--compare", "a b", "--other", "*", "-q"]),
        (["baseline", "--compare", "a"], ["baseline", "--compare", "a"]),
        (["baseline", "--compare", "a", "--other", "b"], ["baseline", "--compare", "a", "--other", "b"]),
    ],
)
def test_words_that_may_be_left_out(used: Checkout, given: list[str], passed: list[str]) -> None:
    """Invoke knows none, so that `report baseline` would be two tasks to it: their options are written out."""
    assert used.tell(*given)[0]["arguments"] == ["--search-root", str(used.root), *passed]


@pytest.mark.parametrize("way", ["absolute", "relative", "link", "link to a link"])
def test_called_from_elsewhere(used: Checkout, tmp_path: Path, way: str) -> None:
    """Called by any name from another folder it finds its checkout, stays in that folder and imports nothing of it."""
    (tmp_path / "json.py").write_text("raise SystemExit('json.py of the folder the user stands in')")
    (tmp_path / "fleet").symlink_to(os.path.relpath(used.root / "inv", tmp_path))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper/fleet").symlink_to("../fleet")
    scripts = {
        "absolute": used.root / "inv",
        "relative": os.path.relpath(used.root / "inv", tmp_path),
        "link": "./fleet",
        "link to a link": "deeper/fleet",
    }
    told, _ = used.tell(script=scripts[way], cwd=tmp_path)
    assert (told["cwd"], told["arguments"]) == (str(tmp_path), ["--search-root", str(used.root)])


def test_changed_lock(checkout: Checkout) -> None:
    """A changed lock makes another environment; a program that runs in the one before still has what it began with."""
    first = checkout.tell()[0]
    checkout.lock("2.0")
    second, stderr = checkout.tell()
    assert (second["version"], stderr) == ("2.0", SETTING_UP)
    again = subprocess.run([first["python"], "-m", "invoke"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert json.loads(again.stdout)["version"] == "1.0"


def test_environments_kept(checkout: Checkout) -> None:
    """The present environment and the one before are kept, older ones removed; going back one needs no build."""
    checkout.tell()
    before = checkout.current()
    (checkout.root / ".venvs/older").mkdir()
    checkout.lock("2.0")
    checkout.tell()
    assert checkout.environments() == {before, checkout.current()}
    checkout.lock("1.0")
    told, stderr = checkout.tell()
    assert (told["version"], stderr, checkout.current()) == ("1.0", "", before)


def test_moved_checkout(checkout: Checkout) -> None:
    """A checkout that was moved sets itself up anew: the old environment's paths lead nowhere."""
    checkout.tell()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    told, stderr = checkout.tell()
    assert (told["trainer"], stderr) == (str(checkout.root / "trainer/__init__.py"), SETTING_UP)


@pytest.mark.parametrize("lost", [".venv", ".venv/bin/python"])
def test_start_over(checkout: Checkout, lost: str) -> None:
    """Without .venv, or when the Python it was made from is gone, the environment is made anew."""
    checkout.tell()
    (checkout.root / lost).unlink()
    assert checkout.tell()[1] == SETTING_UP


def test_killed_while_building(checkout: Checkout) -> None:
    """A build killed in the middle leaves no .venv; the next call removes what it left and builds."""
    gate = Gate(checkout)
    process = checkout.start(start_new_session=True)
    gate.wait()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not os.path.lexists(checkout.root / ".venv")
    [half] = checkout.environments()
    (checkout.root / ".venvs" / half / "half").touch()
    assert checkout.tell()[1] == SETTING_UP
    assert checkout.environments() == {checkout.current()}
    assert not (checkout.root / ".venv/half").exists()


def test_orphaned_installer(checkout: Checkout) -> None:
    """When ./inv is killed and its installer lives on, the next call waits for that one's end before it builds."""
    gate = Gate(checkout)
    first = checkout.start()
    os.kill(gate.wait(), signal.SIGKILL)
    assert first.wait() != 0
    second = checkout.start()
    assert second.stderr is not None
    assert second.stderr.readline() == WAITING
    gate.open()
    second.communicate()
    first.communicate()
    assert second.returncode == 0


def test_interrupted(checkout: Checkout) -> None:
    """Ctrl-C ends the build with one sentence and leaves nothing half-done."""
    gate = Gate(checkout)
    process = checkout.start(
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    gate.wait()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate()
    assert stderr == f"{SETTING_UP}inv: interrupted; the next call starts over\n"
    assert process.returncode in (130, -signal.SIGINT)
    assert checkout.environments() == set()


def test_two_at_once(checkout: Checkout) -> None:
    """Of two first calls at the same time one builds, the other says that it waits; both run their task."""
    gate = Gate(checkout)
    first = checkout.start("one")
    gate.wait()
    second = checkout.start("two")
    assert second.stderr is not None
    assert second.stderr.readline() == WAITING
    gate.open()
    answers = [json.loads(process.communicate()[0])["arguments"][-1] for process in (first, second)]
    assert answers == ["one", "two"]
    assert len(gate.commands()) == 1


def test_uv_first(checkout: Checkout) -> None:
    """uv is asked to install exactly the lock, hashes required; where it cannot, pip does."""
    gate = Gate(checkout)
    gate.started.unlink()
    assert checkout.tell()[0]["version"] == "1.0"
    python = checkout.root / ".venvs" / checkout.current() / "bin/python"
    locked = "--no-deps --require-hashes --only-binary :all: -r requirements.lock"
    assert gate.commands() == [f"pip install --python {python} {locked}"]


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        ("sys.version_info = (3, 9, 6)", "is 3.9.6"),
        ("sys.version_info = (3, 14, 0)", "is 3.14.0"),
        (
            'sys.version_info = (3, 11, 2); sys.modules["ensurepip"] = None',
            "has no venv (sudo apt install python3.11-venv)",
        ),
        ('platform.machine = lambda: "i386"', f"is built for {sys.platform} i386"),
    ],
)
def test_unsuitable_python(checkout: Checkout, edit: str, fault: str) -> None:
    """With no Python that will do, one sentence says which was found, what is wrong with it and how to get one."""
    checkout.command("python3", pretend(edit))
    assert checkout.call() == (2, "", f"inv: python3 {fault}; {NEEDS}: {REMEDY}\n")


def test_no_python(checkout: Checkout) -> None:
    """With no Python at all, or a wrong FLOTILLA_PYTHON, the sentence says so."""
    (checkout.bin / "python3").unlink()
    assert checkout.call() == (2, "", f"inv: there is no python3 that runs; {NEEDS}: {REMEDY}\n")
    checkout.settings["FLOTILLA_PYTHON"] = "/no/python"
    assert checkout.call() == (2, "", f"inv: there is no /no/python that runs; {NEEDS}: {REMEDY}\n")


@pytest.mark.parametrize("name", ["python3.12", "my python"])
def test_other_python(checkout: Checkout, name: str) -> None:
    """Where python3 is too old, a newer one on the PATH is taken, or the one that FLOTILLA_PYTHON names."""
    (checkout.bin / "python3").rename(checkout.bin / name)
    checkout.command("python3", pretend("sys.version_info = (3, 9, 6)"))
    checkout.settings = {} if name == "python3.12" else {"FLOTILLA_PYTHON": str(checkout.bin / name)}
    assert checkout.tell()[1] == SETTING_UP


def test_no_network(checkout: Checkout) -> None:
    """When the packages cannot be had, one sentence says so and points at the log; nothing half-done is left."""
    checkout.settings["PIP_FIND_LINKS"] = str(checkout.bin)
    sentence = "inv: could not download the packages (no network? older than macOS 14 or glibc 2.35?)"
    assert checkout.call() == (2, "", f"{SETTING_UP}{sentence}; the log is in .venvs/build.log\n")
    assert "No matching distribution found for invoke==1.0" in (checkout.root / ".venvs/build.log").read_text()
    assert not os.path.lexists(checkout.root / ".venv")
    assert checkout.environments() == set()


def test_wrong_hash(checkout: Checkout) -> None:
    """A package whose hash is not the lock's is not installed, and the sentence says that this is why."""
    checkout.lock("1.0", sha256="0" * 64)
    sentence = "inv: a downloaded package does not match its hash in requirements.lock"
    assert checkout.call() == (2, "", f"{SETTING_UP}{sentence}; the log is in .venvs/build.log\n")
    assert checkout.environments() == set()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_foreign_venv(checkout: Checkout, kind: str) -> None:
    """A .venv that ./inv did not make is left as it is, and one sentence says what to do."""
    theirs = checkout.root / (".venv" if kind == "folder" else "theirs")
    theirs.mkdir()
    (theirs / "pyvenv.cfg").touch()
    if kind == "link":
        (checkout.root / ".venv").symlink_to("theirs")
    sentence = "inv: .venv was not made by ./inv, so it is left alone: move it away and call ./inv again\n"
    assert checkout.call() == (2, "", sentence)
    assert [path.name for path in (checkout.root / ".venv").iterdir()] == ["pyvenv.cfg"]
