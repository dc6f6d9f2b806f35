"""The playbooks' module that asks a host several things in one go, as Ansible runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.paths import PROJECT_ROOT

LIBRARY = PROJECT_ROOT / "ansible/roles/flotilla/library"
ENDS_WITH_3 = ["/bin/sh", "-c", "echo said; echo complained >&2; exit 3"]


def ask(tmp_path: Path, *options: str, **arguments: Any) -> dict[str, Any]:
    """Return what the module answers on this machine, and whether Ansible takes it for a failure."""
    ansible = Path(sys.prefix) / "bin/ansible"
    words = [
        "-i",
        "localhost,",
        "-c",
        "local",
        "localhost",
        "-M",
        str(LIBRARY),
        "-m",
        "ask",
        "-a",
        json.dumps(arguments),
        *options,
    ]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
    environment |= {"ANSIBLE_PYTHON_INTERPRETER": sys.executable, "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp")}
    done = subprocess.run([str(ansible), *words], env=environment, capture_output=True, text=True, cwd=tmp_path)
    answer: dict[str, Any] = json.loads(done.stdout.partition("=> ")[2])
    return {**answer, "failed": done.returncode != 0}


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["real", "check"])
def test_answers_come_in_order(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Each command's own output without newlines at its end, spaces and all; nothing is changed, so a check asks as well."""
    told = ask(tmp_path, *options, commands=[["printf", "a\\n b \\n\\n"], ["echo", "$HOME; *"], ["true"], ["echo", 7]])
    assert told["answers"] == ["a\n b ", f"{tmp_path}; *", "", "7"]
    assert (told["failed"], told["changed"]) == (False, False)


def test_all_that_fails_is_told(tmp_path: Path) -> None:
    """The rest is asked all the same; the message names every command that failed, and what it complained of."""
    told = ask(tmp_path, commands=[ENDS_WITH_3, ["/no/such", "x"], ["echo", "well"]])
    assert told["failed"]
    first, second = told["msg"].splitlines()
    assert first.endswith("ended with 3: complained")
    assert second == "/no/such: No such file or directory"
    assert told["answers"] == ["said", "", "well"]


def test_what_may_fail_is_an_answer(tmp_path: Path) -> None:
    """A program that is missing says nothing; one that fails, what it said."""
    told = ask(tmp_path, commands=[["/no/such"], ENDS_WITH_3], may_fail=["/no/such", "/bin/sh"])
    assert told["answers"] == ["", "said"]
    assert not told["failed"]
