"""What the laboratory needs of Linux: commands, processes by namespace, mounts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

TOOLS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "script": "bsdutils",
    "mkfs.ext4": "e2fsprogs",
    "ip": "iproute2",
    "tc": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "sudo": "sudo",
    "useradd": "passwd",
}


class LabError(Exception):
    """The laboratory cannot do what was asked; the message says why and what to do."""


def find_tool(name: str) -> str | None:
    """Return the path of a command, also of one that only root has on its path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing() -> list[str]:
    """Return what a laboratory needs and this machine lacks; empty where one can be brought up."""
    if not Path("/proc/self/ns/net").exists():
        return ["Linux"]
    lacking = [f"{tool} (apt-get install {package})" for tool, package in TOOLS.items() if find_tool(tool) is None]
    if os.geteuid() != 0:
        return ["root", *lacking]
    if not lacking and subprocess.run(["unshare", "-mnpuif", "true"], capture_output=True, check=False).returncode:
        lacking.append("permission to make namespaces (a container must be privileged)")
    if not lacking and "\toverlay" not in Path("/proc/filesystems").read_text():
        lacking.append("overlayfs (modprobe overlay)")
    return lacking


def run(argv: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a command of this machine and return its stdout; raise LabError with what it said when it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {said}")
    return done.stdout


def namespace(pid: int | str, kind: str) -> int | None:
    """Return the inode of a process's namespace, or None where there is no such living process."""
    if pid != "self" and not is_alive(int(pid)):
        return None
    try:
        return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino
    except OSError:
        return None


def processes() -> list[int]:
    """Return the ids of all processes that this one can see."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def marked(marker: str) -> list[int]:
    """Return the processes with an argument that begins so and a network of their own: none that merely mention it."""
    ours = namespace("self", "net")
    found = [pid for pid in processes() if any(argument.startswith(marker) for argument in _arguments(pid))]
    return [pid for pid in found if namespace(pid, "net") not in (None, ours)]


def within(kind: str, inodes: set[int]) -> list[int]:
    """Return the processes in any of these namespaces."""
    return [pid for pid in processes() if namespace(pid, kind) in inodes]


def with_mount_of(source: Path) -> list[int]:
    """Return the processes in a mount namespace of their own with a folder bound whose path ends in ``source``.

    The end only: the kernel tells the path within the folder's file system, which may be mounted anywhere.
    """
    ours, suffix = namespace("self", "mnt"), f"/{source}"
    others = [pid for pid in processes() if namespace(pid, "mnt") not in (None, ours)]
    return [pid for pid in others if any(line.split()[3].endswith(suffix) for line in _lines(pid, "mountinfo"))]


def end(pids: list[int], patience_s: float = 5.0) -> None:
    """Kill processes and wait until they are gone. Raises LabError when they stay."""
    fds = [fd for pid in pids if (fd := _pidfd(pid)) is not None]
    try:
        for fd in fds:
            _signal(fd)
        deadline = time.monotonic() + patience_s
        while any(is_alive(pid) for pid in pids):
            if time.monotonic() > deadline:
                raise LabError(f"still there after SIGKILL: {[pid for pid in pids if is_alive(pid)]}")
            time.sleep(0.01)
    finally:
        for fd in fds:
            os.close(fd)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def mounts_under(folder: Path) -> list[str]:
    """Return the mount points in a folder, the latest first."""
    points = [line.split()[4] for line in _lines("self", "mountinfo")]
    return [point for point in reversed(points) if Path(point).is_relative_to(folder)]


def unmount_under(folder: Path) -> None:
    """Take away every mount in a folder, also one that is in use."""
    for point in mounts_under(folder):
        if subprocess.run(["umount", point], capture_output=True, check=False).returncode:
            run(["umount", "--lazy", point])


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _lines(pid: int | str, name: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return []


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _signal(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
