"""Broken inventories and hosts that are not as expected: a precise message, nothing half done, no secret in any output."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ansible.playbooks import PROGRAM, ROOT, arguments, describe_host, play
from tests.lab.laboratory import LabHost, Laboratory


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    """Two bare hosts that no test of this file may change."""
    if lacking := Laboratory.missing():
        pytest.skip(f"a laboratory needs {', '.join(lacking)}")
    with Laboratory.up(2, name=f"hostile-{os.getpid()}") as lab:
        yield lab


@pytest.fixture(autouse=True)
def untouched(lab: Laboratory) -> Iterator[None]:
    """Whatever a test does, both hosts' files, addresses and ssh configuration are afterwards as they were before."""
    before = {host.name: describe_host(host) for host in lab.hosts}
    yield
    after = {host.name: describe_host(host) for host in lab.hosts}
    for name, files in after.items():
        assert {key for key in files.keys() | before[name].keys() if files.get(key) != before[name].get(key)} == set()


def hang_up(lab: Laboratory) -> None:
    """End the connections that ssh keeps for the next command, which would not be asked for a key or a password again."""
    for socket in (lab.folder / "cp").iterdir():
        subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "host"], capture_output=True, check=False)


def refused(lab: Laboratory, *options: str, inventory: Path | None = None, password: Path | None = None) -> str:
    """Return what site.yml says when it refuses, which it must; in it no password may be."""
    hang_up(lab)
    command = arguments(lab, "site.yml", "-vvv", *options)
    command[2] = str(inventory or lab.inventory)
    if password:
        command[command.index("--connection-password-file") + 1] = str(password)
    done = lab.control(command, check=False, cwd=ROOT / "ansible", timeout=300)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert lab.password not in said
    return said


def list_changed(said: str) -> list[str]:
    """Return the nodes on which a task changed something, of Ansible's recap."""
    return [name for name in ("alpha", "beta") if re.search(rf"^{name} .* changed=[1-9]", said, re.MULTILINE)]


WRONG = {
    "a space": ("alpha:", '"al pha":', "al pha"),
    "a quote": ("alpha:", '"al\'pha":', "al'pha"),
    "a command": ("alpha:", '"alpha; rm -rf x":', "alpha; rm -rf x"),
    "an option": ("alpha:", '"-oProxyCommand=x":', "-oProxyCommand=x"),
    "another subnet": ("address: 10.99.", "address: 10.98.", "10.98."),
    "an unknown setting": ("slots: 1", "slotz: 1", "slotz"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_inventory_that_the_launcher_would_refuse(lab: Laboratory, tmp_path: Path, wrong: str) -> None:
    """It is refused with file and place before any host is asked anything."""
    old, new, named = WRONG[wrong]
    inventory = tmp_path / "wrong.yml"
    inventory.write_text(lab.inventory.read_text().replace(old, new, 1))
    said = refused(lab, inventory=inventory)
    assert f"{inventory}: " in said
    assert named in said
    assert "Look before anything is changed" not in said


def test_a_host_twice(lab: Laboratory, tmp_path: Path) -> None:
    """Two names for one address are one host twice: refused."""
    alpha, beta = lab.hosts
    inventory = tmp_path / "twice.yml"
    inventory.write_text(lab.inventory.read_text().replace(f"ansible_host: {beta.address}", f"ansible_host: {alpha.address}"))
    said = refused(lab, inventory=inventory)
    assert f"{inventory}: " in said
    assert alpha.address in said
    assert "Look before anything is changed" not in said


def test_wrong_password(lab: Laboratory, tmp_path: Path) -> None:
    """Every host that does not take the password is named, with the user and the reason."""
    password = tmp_path / "password"
    password.write_text("not-the-password\n")
    said = refused(lab, password=password)
    for host in lab.hosts:
        assert f"[{host.name}]: UNREACHABLE!" in said
    assert "Permission denied (publickey,password)" in said
    assert "not-the-password" not in said


def test_one_host_is_off(lab: Laboratory) -> None:
    """The one that is off is named, and the other one is left as it was: half a cluster is none."""
    beta = lab.host("beta")
    lab.cut(beta, "slow")
    try:
        said = refused(lab)
    finally:
        lab.mend(beta, "slow")
    assert "[beta]: UNREACHABLE!" in said
    assert list_changed(said) == []


def exchange_host_key(host: LabHost) -> None:
    script = (
        "rm /etc/ssh/ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; "
        "kill -HUP $(cat /run/sshd.pid)"
    )
    host.run(["sh", "-ec", script])


def test_host_key_changed_since(lab: Laboratory) -> None:
    """A host that answers with another key than before is refused, by name; the doctor says which command accepts it."""
    beta = lab.host("beta")
    probe = [str(PROGRAM.with_name("ansible")), "-i", str(lab.inventory), "--connection-password-file", str(lab.password_file)]
    lab.control([*probe, "cluster", "-m", "ansible.builtin.raw", "-a", "true"], cwd=ROOT / "ansible")  # first contact
    key = "/etc/ssh/ssh_host_ed25519_key"
    kept = [beta.run(["cat", f"{key}{suffix}"]).stdout for suffix in ("", ".pub")]
    script = f"cd /etc/ssh && mkdir /run/kept && cp -a {key} {key}.pub /run/kept/"
    beta.run(["sh", "-ec", script])
    exchange_host_key(beta)
    try:
        said = refused(lab)
    finally:
        beta.run(["sh", "-ec", "cp -a /run/kept/* /etc/ssh/; rm -r /run/kept; kill -HUP $(cat /run/sshd.pid)"])
    assert [beta.run(["cat", f"{key}{suffix}"]).stdout for suffix in ("", ".pub")] == kept
    assert "fatal: [beta]: FAILED!" in said
    assert "Host Key checking is enabled" in said  # with a password; by key it is ssh's own long warning
    assert list_changed(said) == []


def test_user_without_sudo(lab: Laboratory) -> None:
    """Where sudo refuses the user, the host and the user are named, and the other host is left as it was too."""
    alpha = lab.host("alpha")
    alpha.run(["sh", "-ec", f"mv /etc/sudoers.d/{alpha.user} /run/sudoer"])
    try:
        said = refused(lab)
    finally:
        alpha.run(["sh", "-ec", f"mv /run/sudoer /etc/sudoers.d/{alpha.user}"])
    assert f"alpha: {alpha.user} cannot use sudo here" in said
    assert "--ask-become-pass" in said
    assert list_changed(said) == []


def test_wrong_sudo_password(lab: Laboratory, tmp_path: Path) -> None:
    """A become password that sudo does not take is told as that, not printed."""
    password = tmp_path / "become"
    password.write_text("wrong-for-sudo\n")
    hang_up(lab)
    command = arguments(lab, "site.yml", "-vvv")
    command[command.index("--become-password-file") + 1] = str(password)
    done = lab.control(command, check=False, cwd=ROOT / "ansible", timeout=300)
    assert done.returncode != 0
    assert "cannot use sudo here" in done.stdout
    assert "wrong-for-sudo" not in done.stdout + done.stderr


def _secrets(lab: Laboratory) -> list[str]:
    """Return the password, and lines of every private key that there is by now."""
    found = [lab.password]
    for host in lab.hosts:
        keys = ["/etc/ssh/ssh_host_ed25519_key", f"/home/{host.user}/.ssh/flotilla/id_ed25519"]
        found += [line for key in keys for line in host.run(["cat", key]).stdout.splitlines() if len(line) > 40]
    own = lab.folder / "control-ssh" / "flotilla" / "id_ed25519"
    return [*found, *(line for line in own.read_text().splitlines() if len(line) > 40)]


def test_no_secret_is_printed(lab: Laboratory) -> None:
    """A whole mesh of keys is made with ``-vvv``; no password and no line of a private key is in the output."""
    done = play(lab, "site.yml", "-vvv", "--tags", "thunderbolt,ssh_mesh")
    said = done.stdout + done.stderr
    secrets = _secrets(lab)
    assert len(secrets) > 8
    assert [secret for secret in secrets if secret in said] == []
    for host in lab.hosts:
        left = host.run(["sh", "-c", f"grep -rlF '{lab.password}' /home /tmp /opt /var/log /var/tmp 2>/dev/null"], check=False)
        assert left.stdout == ""
    play(lab, "teardown.yml")


def test_nothing_is_left_on_the_control_machine(lab: Laboratory) -> None:
    """No file of the laboratory's ``~/.ssh`` and no process of Ansible's on this machine holds the password."""
    found = subprocess.run(["grep", "-rlF", lab.password, str(lab.folder / "control-ssh")], capture_output=True, text=True)
    assert found.stdout == ""
