"""The laboratory's inventory, as a person would write it for these hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lab.host import LabHost

HEAD = """\
# The laboratory's hosts. Their users' password is in the file `password` beside this one.
all:
  children:
    cluster:
      vars:
        thunderbolt_network: 10.99.{number}.0/24
        thunderbolt_interface: tb0
        ansible_python_interpreter: /usr/bin/python3
      hosts:
"""
HOST = """\
        {name}:
          ansible_host: {address}
          ansible_user: {user}
          address: {fast_address}
          slots: 1
"""


def write_inventory(path: Path, number: int, hosts: Sequence[LabHost]) -> None:
    """Write an Ansible inventory with the group that Flotilla reads."""
    entries = [
        HOST.format(name=host.name, address=host.address, user=host.user, fast_address=host.fast_address) for host in hosts
    ]
    path.write_text(HEAD.format(number=number) + "".join(entries))
