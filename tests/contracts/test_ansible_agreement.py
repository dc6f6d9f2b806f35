"""Ansible and the launcher read the same inventory in the same way: hosts, order, slots, addresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.cluster.inventory import load_inventory
from trainer.paths import PROJECT_ROOT

HEAD = "all:\n  children:\n    cluster:\n      hosts:\n"

GENERATED = {
    "order": HEAD
    + "        zeta:\n        alpha: {slots: 2}\n        mid:\n        Alpha2:\n        mini-10:\n        mini-9:\n",
    "all levels": (
        "all:\n"
        "  vars: {slots: 3, ansible_user: everyone, ansible_port: 2201, ansible_connection: ssh}\n"
        "  children:\n"
        "    cluster:\n"
        "      vars: {slots: 2, ansible_user: group, x: [1, {y: 2}]}\n"
        "      hosts:\n"
        "        z: {slots: 1, address: 10.0.0.9, ansible_host: z.local}\n"
        "        y: {ansible_host: y.local}\n"
        "        x: {ansible_user: own, ansible_port: 22}\n"
        "        w:\n"
        "        v: {ansible_connection: local}\n"
    ),
    "group before hosts": (
        "all:\n  children:\n    cluster:\n"
        "      hosts: {b: {slots: 4}, a: , c: {address: 'fe80::1'}}\n"
        "      vars: {slots: 5}\n  vars: {slots: 6}\n"
    ),
    "spellings of YAML": (
        "---\n# a comment\n"
        "all: {children: {cluster: {vars: {slots: 0x2}, hosts: {'mini.local': {slots: 010}, \"b\": null, ? c : }}}}\n...\n"
    ),
    "other people's variables": HEAD
    + "        a: {ansible_python_interpreter: '{{ x }}', ansible_become: yes, note: 2024-01-01}\n",
    "BOM and CRLF": ("\ufeff" + HEAD + "        b: {slots: 2}\n        a:\n").replace("\n", "\r\n"),
}


@pytest.fixture
def ask_ansible(tmp_path: Path) -> Any:
    """Return a function from an inventory to what ansible-inventory makes of it, without any configuration of the user's."""

    (tmp_path / "ansible.cfg").touch()
    own = {
        "ANSIBLE_HOME": str(tmp_path / "home"),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
        "LC_ALL": "C.UTF-8",
    }
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}, **own}
    program = Path(sys.executable).with_name("ansible-inventory")

    def ask(path: Path) -> dict[str, Any]:
        command = [str(program), "-i", str(path), "--list"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        listed: dict[str, Any] = json.loads(done.stdout)
        return listed

    return ask


def agree(path: Path, listed: dict[str, Any]) -> None:
    """Assert that the launcher sees what Ansible lists."""
    variables = listed["_meta"]["hostvars"]
    seen = load_inventory(path).hosts
    assert [host.name for host in seen] == listed["cluster"]["hosts"]
    for host in seen:
        own = variables.get(host.name, {})
        is_local = own.get("ansible_connection") == "local"
        assert host.is_local == is_local
        assert host.slots == own.get("slots", 1)
        assert (host.user, host.port) == (own.get("ansible_user"), own.get("ansible_port"))
        assert host.address == own.get("address", own.get("ansible_host", "localhost" if is_local else host.name))


@pytest.mark.parametrize("path", sorted((PROJECT_ROOT / "inventory").glob("*.yml")), ids=lambda path: path.stem)
def test_a_shipped_inventory_is_read_alike(path: Path, ask_ansible: Any) -> None:
    """Every example in inventory/ means the same to both."""
    agree(path, ask_ansible(path))


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_inventory_is_read_alike(name: str, tmp_path: Path, ask_ansible: Any) -> None:
    """Order, precedence of variables and YAML's odd spellings mean the same to both."""
    path = tmp_path / "hosts.yml"
    path.write_bytes(GENERATED[name].encode())
    agree(path, ask_ansible(path))


def test_rank_order_is_not_alphabetical(tmp_path: Path, ask_ansible: Any) -> None:
    """The first host of the file has rank 0 for both, though another name sorts before it."""
    path = tmp_path / "hosts.yml"
    path.write_text(GENERATED["order"])
    names = ["zeta", "alpha", "mid", "Alpha2", "mini-10", "mini-9"]
    assert [host.name for host in load_inventory(path).hosts] == ask_ansible(path)["cluster"]["hosts"] == names != sorted(names)
