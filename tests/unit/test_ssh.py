"""The control machine's ssh: exact commands, quoting, and what a failure tells."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainer.cluster.inventory import Host
from trainer.cluster.ssh import describe_failure, on_all, run, ssh_command
from trainer.errors import ClusterError

MINI = Host(name="mini", slots=1, management="mini.local", is_local=False, user="bob", port=2222)
PLAIN = Host(name="studio", slots=1, management="10.0.0.2", is_local=False, fast="10.99.0.2")
HERE = Host(name="here", slots=1, management="localhost", is_local=True)
NASTY = ["a b", "it's", '"', "$(id)", "; rm -rf ~", "ü", "", "-o", "*"]


def options(command: list[str]) -> dict[str, str]:
    return dict(word.partition("=")[::2] for flag, word in itertools.pairwise(command) if flag == "-o")


def test_the_command() -> None:
    """Never a question, a key and known hosts of our own, the user's known hosts too; the management address, not the fast."""
    command = ssh_command(PLAIN, ["true"])
    assert command[0] == "ssh"
    assert command[-2:] == ["10.0.0.2", "true"]
    assert options(command) == {
        "BatchMode": "yes",
        "ConnectTimeout": "5",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
        "IdentityFile": "~/.ssh/flotilla/id_ed25519",
        "UserKnownHostsFile": "~/.ssh/flotilla/known_hosts ~/.ssh/known_hosts",
    }
    assert not any("StrictHostKeyChecking" in word for word in command)


def test_user_and_port() -> None:
    """They are the inventory's, if it has them."""
    command = ssh_command(MINI, ["true"])
    assert command[-6:] == ["-l", "bob", "-p", "2222", "mini.local", "true"]
    assert "-l" not in ssh_command(PLAIN, ["true"])


def test_words_stay_words() -> None:
    """The shell over there makes of the one argument the very words that were given."""
    text = ssh_command(MINI, [sys.executable, "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *NASTY])[-1]
    assert shlex.split(text)[3:] == NASTY
    shown = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == NASTY


def test_this_machine_needs_no_ssh() -> None:
    """A local host runs the command itself, and what is not there is told as a shell would."""
    assert ssh_command(HERE, ["true"]) == ["true"]
    assert run(HERE, ["cat"], b"hello").stdout == b"hello"
    assert run(HERE, ["/no/such/program"]).returncode == 127


@pytest.mark.parametrize(
    ("said", "sign"),
    [
        ("bob@mini.local: Permission denied (publickey,password).", "./inv provision -i INVENTORY --ask-pass"),
        ("Host key verification failed.", "its host key is not known yet: ./inv provision -i INVENTORY"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n…\nHost key verification failed.",
            "ssh-keygen -R '[mini.local]:2222' -f ~/.ssh/flotilla/known_hosts",
        ),
        ("ssh: Could not resolve hostname mini.local: Name or service not known", "correct ansible_host in the inventory"),
        ("ssh: connect to host mini.local port 2222: Connection timed out", "is Remote Login on?"),
        ("", "(nothing)"),
    ],
)
def test_failures_name_host_words_and_remedy(said: str, sign: str) -> None:
    """The host's name, the last of what ssh said, what to do."""
    text = describe_failure(MINI, said)
    assert text.startswith("mini: cannot be reached by ssh (")
    assert (said.splitlines() or ["nothing"])[-1] in text
    assert sign in text


def fake_ssh(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "ssh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_host_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh's own exit code is an error; any other belongs to what was run."""
    fake_ssh(tmp_path, "echo 'ssh: connect to host x port 22: No route to host' >&2; exit 255", monkeypatch)
    with pytest.raises(
        ClusterError, match=r"^mini: cannot be reached by ssh \(ssh: connect to host x port 22: No route to host\)"
    ):
        run(MINI, ["true"])
    fake_ssh(tmp_path, "exit 7", monkeypatch)
    assert run(MINI, ["true"]).returncode == 7


def test_a_host_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that lets us in and then says nothing is an error of its own."""
    fake_ssh(tmp_path, "exec sleep 60", monkeypatch)
    with pytest.raises(ClusterError, match=r"^mini: has not answered for 0 s$"):
        run(MINI, ["true"], timeout_s=0.2)


def test_all_hosts_at_once() -> None:
    """The hosts are asked at the same time; all problems are told together, in the inventory's order."""
    meeting = threading.Barrier(3)
    hosts = [MINI, PLAIN, HERE]

    def meet(host: Host) -> str:
        meeting.wait(10)
        return host.name

    assert on_all(hosts, meet) == {"mini": "mini", "studio": "studio", "here": "here"}

    def fail(host: Host) -> None:
        if host is not PLAIN:
            raise ClusterError(f"{host.name}: no")

    with pytest.raises(ClusterError, match=r"^mini: no\nhere: no$"):
        on_all(hosts, fail)
