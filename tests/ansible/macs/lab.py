"""Simulated Macs as hosts of a laboratory, with the inventory that a person would write for them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.ansible.macs.install import hook
from tests.ansible.macs.models import MacState
from tests.lab.laboratory import LabHost, Laboratory

# What is a Mac's by nature must be said of a Linux host; Homebrew's installer is the stub's.
HEAD = """\
all:
  children:
    cluster:
      vars:
        flotilla_platform: Darwin
        flotilla_root: /Users/Shared/flotilla
        homebrew_installer_url: file:///usr/local/share/flotilla-mac/install.sh
        open_mpi_provider: {provider}
        thunderbolt_mode: {mode}
        thunderbolt_network: 10.99.{number}.0/24
      hosts:
"""


def up(name: str, states: Sequence[MacState], mode: str = "bridge", provider: str = "homebrew") -> Laboratory:
    """Bring up a laboratory of these Macs; in cable mode its inventory names no Thunderbolt addresses, as ring.yml."""
    lab = Laboratory.up(len(states), name=name, mac=hook(states))
    write_inventory(lab, mode, provider)
    return lab


def write_inventory(lab: Laboratory, mode: str, provider: str = "homebrew") -> None:
    """Write the laboratory's inventory for its Macs."""
    hosts = "".join(_describe(host, mode) for host in lab.hosts)
    lab.inventory.write_text(HEAD.format(mode=mode, number=lab.number, provider=provider) + hosts)


def _describe(host: LabHost, mode: str) -> str:
    entry = {"ansible_host": host.address, "ansible_user": host.user, "slots": 1}
    if mode == "bridge":
        entry["address"] = host.fast_address
    return f"        {host.name}: {json.dumps(entry)}\n"
