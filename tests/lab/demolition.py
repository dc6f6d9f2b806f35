"""The end of a laboratory: whole, half built, or what a crash left of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.lab import places, system
from tests.lab.cgroups import Groups
from tests.lab.network import unplug_control
from tests.lab.places import STATE
from tests.lab.system import LabError


def take_down(name: str) -> None:
    """End a laboratory, whole or what a crash left of it: processes, cables, mounts, groups, folders.

    Only processes are killed that have the laboratory's mark and namespaces of their own, or are in those
    namespaces. Raises LabError where there is no laboratory of this name.
    """
    if name not in places.names():
        raise LabError(f"there is no laboratory named {name}; those there are: {', '.join(places.names()) or 'none'}")
    for group in _groups(name):
        if group.is_frozen():
            group.freeze(stopped=False)
    _unplug(name)
    _end_processes(name)
    system.unmount_under(STATE / name)
    for group in _groups(name):
        group.remove()
    _remove_folders(STATE / name)


def traces(name: str) -> list[str]:
    """Return all that there is of a laboratory on this machine, a line each; empty when it is down."""
    folder = STATE / name
    loops = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True)
    return [
        *(f"process {pid}" for pid in _processes(name)),
        *(f"mount {point}" for point in system.mounts_under(folder)),
        *(f"loop device {line}" for line in loops.stdout.splitlines() if f"{folder}/" in line),
        *(f"group {path}" for groups in _groups(name) for path in groups.folders),
        *(f"folder {path}" for path in [folder] if path.exists()),
    ]


def _processes(name: str) -> list[int]:
    """Return the laboratory's processes: the marked ones, those in their networks, and commands of its control machine."""
    pids = system.marked(f"flotilla-lab:{name}:")
    spaces = {inode for pid in pids if (inode := system.namespace(pid, "net"))}
    controls = system.with_mount_of(Path(STATE.name, name, "control-ssh"))
    return sorted({*pids, *system.within("net", spaces), *controls} - {os.getpid()})


def _unplug(name: str) -> None:
    """Take this machine off the laboratory's network; what crashed before it wrote its state never was on one."""
    with contextlib.suppress(OSError, ValueError, LookupError):
        unplug_control(json.loads((STATE / name / "state.json").read_text())["number"])


def _end_processes(name: str) -> None:
    """Kill them all, and those that they started meanwhile."""
    for _ in range(10):
        if not (pids := _processes(name)):
            return
        system.end(pids)
    raise LabError(f"new processes of laboratory {name} keep coming: {_processes(name)}")


def _groups(name: str) -> list[Groups]:
    """Return the groups of every host that has any, then the laboratory's own."""
    whole = Groups.of(f"flotilla-lab-{name}")
    hosts = {entry.name for folder in whole.folders for entry in folder.iterdir() if entry.is_dir()}
    return [*(Groups.of(f"flotilla-lab-{name}/{host}") for host in sorted(hosts)), whole]


def _remove_folders(folder: Path) -> None:
    with places.lock():
        shutil.rmtree(folder)
        if not places.names():
            STATE.rmdir()
            places.remove_ssh_folder()
