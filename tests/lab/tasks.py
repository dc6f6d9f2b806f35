"""The laboratory's commands: ``./inv lab.up``, ``lab.status``, ``lab.shell``, ``lab.down``."""

from __future__ import annotations

import subprocess

from invoke import Collection, Context, Exit, task

_NAME_HELP = "which laboratory, where there are several"


@task(help={"hosts": "how many hosts, 1 to 8", "name": _NAME_HELP})
def up(_: Context, hosts: int = 2, name: str = "lab") -> None:
    """Make bare hosts with a network of their own."""
    from tests.lab.laboratory import LabError, Laboratory

    try:
        lab = Laboratory.up(hosts, name)
    except LabError as error:
        raise Exit(str(error), 2) from error
    passwords = f"--connection-password-file {lab.password_file} --become-password-file {lab.password_file}"
    print(f"{hosts} bare hosts are up; their inventory is {lab.inventory}")
    print(f"provision them: ./inv provision -i {lab.inventory} --extra '{passwords}'")
    print(f"train on them: ./inv train -i {lab.inventory}")


@task(help={"name": _NAME_HELP})
def down(_: Context, name: str = "lab") -> None:
    """End the hosts; nothing of them is left."""
    from tests.lab.laboratory import LabError, take_down

    try:
        take_down(name)
    except LabError as error:
        raise Exit(str(error), 2) from error


@task(help={"name": "which laboratory; default: all"})
def status(_: Context, name: str = "") -> None:
    """List the hosts with their addresses and states."""
    from rich.console import Console
    from rich.table import Table

    from tests.lab.laboratory import LabError, Laboratory, describe

    try:
        rows = [{"laboratory": lab, **row} for lab in ([name] if name else Laboratory.names()) for row in describe(lab)]
    except LabError as error:
        raise Exit(str(error), 2) from error
    table = Table(*(rows[0] if rows else ["no laboratory is up"]))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


@task(positional=["host"], help={"host": "name of a host, such as alpha", "name": _NAME_HELP})
def shell(_: Context, host: str, name: str = "lab") -> None:
    """Open a shell on a host, as its user."""
    from tests.lab.laboratory import LabError, Laboratory

    try:
        chosen = Laboratory.attach(name).host(host)
        command = chosen.enter(["bash", "--login"], user=chosen.user)
    except LabError as error:
        raise Exit(str(error), 2) from error
    raise Exit(code=subprocess.run(command, check=False).returncode)


namespace = Collection(up, down, status, shell)
