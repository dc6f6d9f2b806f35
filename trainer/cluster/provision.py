"""Running the playbooks of ``ansible/`` on the hosts of an inventory: provisioning, verifying, and undoing both."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from trainer.cluster.inventory import load_inventory
from trainer.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, ClusterError, InputError
from trainer.paths import PROJECT_ROOT, find_beside

ANSIBLE_DIR = PROJECT_ROOT / "ansible"
_INTERRUPTED = (99, 130, -2)  # what ansible-playbook answers to Ctrl-C, or what a signal leaves


@dataclass(frozen=True, kw_only=True)
class Playbook:
    """One call of ansible-playbook. ``extra`` is passed on as it is, for all that has no option of ours."""

    name: str
    inventory: str
    check: bool = False
    ask_pass: bool = False
    ask_become_pass: bool = False
    tags: str = ""
    extra: str = ""

    def command(self) -> list[str]:
        """Return the command, to be run in ``ansible/``; raises `InputError` if the inventory cannot be used."""
        inventory = find_beside(self.inventory, PROJECT_ROOT)
        load_inventory(inventory)
        try:
            extra = shlex.split(self.extra)
        except ValueError as error:
            raise InputError(f"--extra {self.extra}: {error}") from error
        return [
            str(Path(sys.prefix) / "bin" / "ansible-playbook"),
            *("-i", str(inventory), self.name),
            *(["--check", "--diff"] if self.check else []),
            *(["--ask-pass"] if self.ask_pass else []),
            *(["--ask-become-pass"] if self.ask_become_pass else []),
            *(["--tags", self.tags] if self.tags else []),
            *extra,
        ]


def run_playbook(playbook: Playbook) -> int:
    """Run ``playbook`` in the user's terminal and return our exit code: 0, 3 if a host failed, 130 if interrupted."""
    command = playbook.command()
    if not ANSIBLE_DIR.is_dir():
        raise InputError(f"{ANSIBLE_DIR}: the playbooks are not here; provision from a checkout of Flotilla")
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE_DIR / "ansible.cfg")}
    try:
        code = subprocess.run(command, cwd=ANSIBLE_DIR, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        raise ClusterError(f"{command[0]}: cannot be started: {error.strerror}; run ./inv again") from error
    if code in _INTERRUPTED:
        return EXIT_INTERRUPTED
    return {0: EXIT_OK, 250: EXIT_BUG}.get(code, ClusterError.exit_code)
