"""Running the playbooks on the laboratory's hosts, and what they say they did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.laboratory import LabHost, Laboratory

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.prefix) / "bin" / "ansible-playbook"
TIMEOUT_S = 600
# of the kernel, of one moment, or written by whoever logs in
PASSING = ("proc", "sys", "dev", "run", "tmp", "var/log", "var/lib/sudo", "var/tmp")


def arguments(lab: Laboratory, playbook: str, *options: str) -> list[str]:
    """The command line that plays a playbook on all hosts, with the passwords that a person would type."""
    passwords = ["--connection-password-file", str(lab.password_file), "--become-password-file", str(lab.password_file)]
    return [str(PROGRAM), "-i", str(lab.inventory), *passwords, playbook, *options]


def play(lab: Laboratory, playbook: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Play a playbook to its end."""
    command = arguments(lab, playbook, *options)
    done = lab.control(command, check=False, timeout=TIMEOUT_S, cwd=ROOT / "ansible")
    assert not check or done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done


def play_json(lab: Laboratory, playbook: str, *options: str) -> dict[str, Any]:
    """Play a playbook to its end and return what it did: the answer of the ``json`` callback."""
    command = arguments(lab, playbook, *options)
    environment = {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    done = lab.control(command, env=environment, check=False, timeout=TIMEOUT_S, cwd=ROOT / "ansible")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return answer


def changes(answer: dict[str, Any]) -> set[tuple[str, str]]:
    """The host and the name of every task that changed something."""
    return {
        (host, task["task"]["name"])
        for played in answer["plays"]
        for task in played["tasks"]
        for host, result in task["hosts"].items()
        if result.get("changed")
    }


def describe_host(host: LabHost) -> dict[str, str]:
    """All files of a host with type, mode, owner, size and checksum of what is small, its addresses, its ssh configuration."""
    prune = " -o ".join(f"-path ./{path}" for path in PASSING)
    script = f"cd / && find . -xdev \\( {prune} \\) -prune -o -printf '%p|%y %m %u %g %l\\n'"
    lines = host.run(["sh", "-c", script]).stdout.splitlines()
    sums = host.run(["sh", "-c", "find /home /etc -type f -exec sha256sum {} +"]).stdout.splitlines()
    files = dict(line.split("|", 1) for line in lines)
    files |= {f"content of {line[66:]}": line[:64] for line in sums}
    files["addresses"] = host.run(["ip", "-brief", "address"]).stdout
    return files
