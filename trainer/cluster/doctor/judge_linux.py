"""Judges of what only a Linux host can lack. All pure."""

from __future__ import annotations

import re

from trainer.cluster.doctor.view import Fault, View

MIN_PYTHON = (3, 11)
_INSTALL = {
    "apt-get": "sudo apt-get install -y python3 python3-venv",
    "dnf": "sudo dnf install -y python3",
    "zypper": "sudo zypper install -y python3",
    "pacman": "sudo pacman -S --noconfirm python",
}


def judge_python(view: View) -> Fault | None:
    """Find a system without a Python from which environments can be made."""
    output = view.output("system_python")
    match = re.fullmatch(r"(\d+)\.(\d+)", output.text.strip())
    if output.exit_code == 0 and match and (int(match[1]), int(match[2])) >= MIN_PYTHON:
        return None
    detail = f"Python {match[0]} is older than 3.11" if match else "no /usr/bin/python3 with venv"
    manager = view.answers.outputs.get("manager")
    name = manager.text.strip().rpartition("/")[2] if manager else ""
    return Fault(shown_by=("system_python",), detail=detail, values={"install": _INSTALL.get(name, _INSTALL["apt-get"])})
