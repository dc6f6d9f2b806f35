"""Running the playbooks: the command that is made, what is refused before it, and the exit code after it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.cluster import provision
from trainer.cluster.inventory import load_inventory
from trainer.cluster.provision import Playbook, run_playbook
from trainer.errors import ClusterError, InputError
from trainer.paths import PROJECT_ROOT

PAIR = """
all:
  children:
    cluster:
      hosts:
        mini: {ansible_host: 192.0.2.11, address: 10.99.0.1}
        studio: {ansible_host: 192.0.2.12, address: 10.99.0.2}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "my pair.yml"
    path.write_text(PAIR)
    return path


def test_command(inventory: Path) -> None:
    """The command is this environment's ansible-playbook with the inventory's absolute path, a word for each option."""
    program = str(Path(sys.prefix) / "bin" / "ansible-playbook")
    plain = Playbook(name="site.yml", inventory=str(inventory))
    assert plain.command() == [program, "-i", str(inventory), "site.yml"]
    full = Playbook(
        name="site.yml",
        inventory=str(inventory),
        check=True,
        ask_pass=True,
        ask_become_pass=True,
        tags="power",
        extra="--limit 'a b' -v",
    )
    options = ["--check", "--diff", "--ask-pass", "--ask-become-pass", "--tags", "power", "--limit", "a b", "-v"]
    assert full.command() == [program, "-i", str(inventory), "site.yml", *options]


def test_bad_inventory_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inventory that the launcher would refuse is refused before any host is touched."""
    ran: list[Any] = []
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: ran.append(a))
    bad = tmp_path / "bad.yml"
    bad.write_text(PAIR.replace("mini:", '"mini; rm -rf x":'))
    with pytest.raises(InputError) as raised:
        run_playbook(Playbook(name="site.yml", inventory=str(bad)))
    assert str(raised.value).startswith(f"{bad}: $.all.children.cluster.hosts")
    assert ran == []


def test_bad_extra(inventory: Path) -> None:
    """Quotes that do not close are named, not passed on."""
    with pytest.raises(InputError, match=r"^--extra --limit 'mini: No closing quotation$"):
        Playbook(name="site.yml", inventory=str(inventory), extra="--limit 'mini").command()


@pytest.mark.parametrize(
    ("code", "ours"),
    [(0, 0), (1, 3), (2, 3), (4, 3), (99, 130), (-signal.SIGINT, 130), (250, 70)],
)
def test_exit_codes(inventory: Path, monkeypatch: pytest.MonkeyPatch, code: int, ours: int) -> None:
    """A host that failed or is unreachable is 3, an interruption 130, Ansible's own crash 70."""
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code))
    assert run_playbook(Playbook(name="site.yml", inventory=str(inventory))) == ours


def test_without_ansible(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without ansible-playbook is an error for people."""
    monkeypatch.setattr(provision.sys, "prefix", "/nonexistent")
    with pytest.raises(ClusterError, match=r"^/nonexistent/bin/ansible-playbook: cannot be started: .*; run ./inv again$"):
        run_playbook(Playbook(name="site.yml", inventory=str(inventory)))


@pytest.mark.parametrize("example", sorted((PROJECT_ROOT / "inventory").glob("*.yml")), ids=lambda path: path.name)
def test_examples(example: Path) -> None:
    """Every inventory that we ship is one that the launcher takes."""
    assert load_inventory(example).hosts
