"""docs/failures.md, made from the table of checks: ``python -m trainer.cluster.doctor.reference`` writes it."""

from __future__ import annotations

from pathlib import PurePosixPath

from trainer.cluster.doctor.checks import CHECKS
from trainer.cluster.doctor.view import DARWIN, Check
from trainer.paths import PROJECT_ROOT

PAGE_FILE = PROJECT_ROOT / "docs" / "failures.md"

_INTRODUCTION = """\
# What may be wrong, and what mends it

`./inv doctor -i INVENTORY` looks for all of these on all hosts at the same time, in less than 20 seconds, and changes
nothing. It ends with 0, or with 3 if it found a problem; notes are worth knowing, but no problem. For each finding it
prints what was run and what that said, and the command that mends it with this host's names in it: below, words in
capitals stand for them, and "on HOST" for `ssh -t … USER@HOST '…'` as the doctor prints it.
What could not be looked at is told as unknown, with the reason; it is no problem and no all-clear.

How a failure of a Mac is recognised was written from recorded outputs of real Macs, and is tested against simulated ones.

This page is made from `trainer/cluster/doctor/checks*.py` by `python -m trainer.cluster.doctor.reference`.
"""
_WORDS = {
    "inventory": "INVENTORY",
    "host": "HOST",
    "management": "ADDRESS",
    "known_as": "ADDRESS",
    "root": "ROOT",
    "user": "USER",
    "login": "USER",
    "pids": "PIDS",
    "pull": "CABLE",
    "path": "PATH",
    "old": "FORMULAE",
    "tags": "all",
    "mend": "rm -f ROOT/env/complete (or brew reinstall open-mpi prrte)",
    "upgrade": "brew upgrade open-mpi prrte pmix (or rm -f ROOT/env/complete)",
    "relink": "brew unlink mpich; brew link --overwrite open-mpi",
    "undo": "sudo ip route del ROUTE dev INTERFACE (a Mac: sudo route -n delete ADDRESS)",
    "allow": "sudo ufw allow from NETWORK (or what the host's firewall has for it)",
    "install": "sudo apt-get install -y python3 python3-venv (or what the system has for it)",
    "set_clock": "sudo timedatectl set-ntp true (a Mac: sudo sntp -sS time.apple.com)",
}


def render_page() -> str:
    """Return the Markdown page: a table of all failures, then a section for each."""
    head = "| # | failure | where | |\n|---|---|---|---|\n"
    rows = [f"| {check.number or ''} | [{check.title}](#{check.id}) | {_where(check)} | {check.severity} |" for check in CHECKS]
    numbers = "The numbers are those of the twenty failures that a new user of Macs most probably meets.\n"
    return "\n".join([_INTRODUCTION, numbers, head + "\n".join(rows) + "\n", *map(_section, CHECKS)])


def _section(check: Check) -> str:
    remedy = check.remedy
    told = [remedy.control.format(**_WORDS)] if remedy.control else []
    told += [f"on HOST: {remedy.command.format(**_WORDS)}"] if remedy.command else []
    if playbook := remedy.playbook.format(**_WORDS):
        tags = "" if playbook == "all" else f" --tags {playbook}"
        told.append(f"./inv provision -i INVENTORY{tags}{' --ask-pass' if remedy.ask_pass else ''} --ask-become-pass")
    lines = [f'<a id="{check.id}"></a>', f"## {check.title}", "", check.why, "", f"- **Looks at**: {check.looks}"]
    lines += [f"- **By hand**: {remedy.by_hand.format(**_WORDS)}"] if remedy.by_hand else []
    lines += ["- **Command**:", "", "```sh", *told, "```"] if told else []
    return "\n".join(lines) + "\n"


def _where(check: Check) -> str:
    return "both" if len(check.platforms) > 1 else "macOS" if check.platforms == (DARWIN,) else "Linux"


if __name__ == "__main__":
    PAGE_FILE.write_text(render_page(), "utf-8")
    print(PurePosixPath(*PAGE_FILE.parts[-2:]))
