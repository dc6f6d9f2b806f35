"""The laboratory: computers that exist only on this Linux machine, with which everything is tried that needs several.

Each host has its own file system, processes, users, sshd and network. It shares the kernel and the clock.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import system
from tests.lab.cgroups import Groups
from tests.lab.host import LabHost
from tests.lab.inventory import write_inventory
from tests.lab.network import Link, Switch, free_number, start_switch
from tests.lab.root import Disk, Identity, furnish
from tests.lab.system import LabError

__all__ = ["LabError", "LabHost", "Laboratory"]

STATE = Path("/var/tmp/flotilla-lab")
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
USERS = ("ann", "bert", "cleo", "dirk", "emma", "fred", "gina", "hugo")
DISK_GIB = 32

Hook = Callable[[Path, LabHost], None]


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """A laboratory that is up, or what a crash left of one."""

    name: str
    number: int
    num_hosts: int
    fast: bool

    @staticmethod
    def missing() -> list[str]:
        """Return what a laboratory needs and this machine lacks; empty where one can be brought up."""
        return system.missing()

    @classmethod
    def up(
        cls,
        num_hosts: int = 2,
        name: str = "lab",
        *,
        fast: bool = True,
        mac: Hook | None = None,
        prepare: Callable[[LabHost], None] | None = None,
    ) -> Laboratory:
        """Bring up bare hosts, connected and reachable by password.

        ``mac`` may change a host's upper folder before the host starts, ``prepare`` the host once it runs;
        ``fast`` plugs the fast cables in. Raises LabError with what is missing, or when the name is taken;
        whatever goes wrong, nothing is left.
        """
        if lacking := system.missing():
            raise LabError(f"a laboratory needs: {', '.join(lacking)}")
        lab = cls._reserve(num_hosts, name, fast)
        try:
            switch = start_switch(lab.number, f"{lab._marker}switch:")
            switch.wire_up()
            password = lab.password
            for index, host in enumerate(lab.hosts):
                lab._furnish(index, host, password, mac)
                host.start(switch, fast)
                if prepare:
                    prepare(host)
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def attach(cls, name: str = "lab") -> Laboratory:
        """Return a laboratory that is up. Raises LabError where there is none of this name."""
        try:
            return cls(**json.loads((STATE / name / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            raise LabError(
                f"there is no laboratory named {name}; those there are: {', '.join(cls.names()) or 'none'}"
            ) from None

    @staticmethod
    def names() -> list[str]:
        """Return the names of all laboratories, those included of which a crash left something."""
        return sorted(entry.name for entry in STATE.iterdir()) if STATE.is_dir() else []

    @property
    def folder(self) -> Path:
        """Return where the laboratory keeps its state and its hosts' disks."""
        return STATE / self.name

    @property
    def inventory(self) -> Path:
        """Return the Ansible inventory of the hosts as they are: addressed on the slow link only."""
        return self.folder / "inventory.yml"

    @property
    def password_file(self) -> Path:
        """Return the file with the users' password, as ``--connection-password-file`` takes it."""
        return self.folder / "password"

    @property
    def password(self) -> str:
        """Return the password of every host's user, for ssh and for sudo."""
        return self.password_file.read_text().strip()

    @property
    def hosts(self) -> list[LabHost]:
        """Return the hosts, in the order of the inventory."""
        return [self._host(index) for index in range(self.num_hosts)]

    @property
    def switch(self) -> Switch:
        """Return the switch. Raises LabError when it is gone."""
        pids = system.marked(f"{self._marker}switch:")
        if not pids:
            raise LabError(f"the laboratory {self.name} lost its switch; take it down and up again")
        return Switch(number=self.number, pid=pids[0])

    def host(self, name: str) -> LabHost:
        """Return a host by its name. Raises LabError where there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"{name} is no host of laboratory {self.name}; there are {', '.join(h.name for h in self.hosts)}")

    def start(self, host: LabHost) -> None:
        """Start a killed host again, with what its disk holds."""
        if host.is_up:
            raise LabError(f"{host.name} is up")
        host.start(self.switch, self.fast)

    def cut(self, host: LabHost | str, link: Link) -> None:
        """Pull a host's cable out of the switch: the host sees the carrier go."""
        self.switch.plug(host if isinstance(host, str) else host.name, link, connected=False)

    def mend(self, host: LabHost | str, link: Link) -> None:
        """Put a host's cable in again."""
        self.switch.plug(host if isinstance(host, str) else host.name, link, connected=True)

    def control(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float | None = 600,
        capture: bool = True,
        cwd: Path | str | None = None,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the control machine (this one) with a ``~/.ssh`` of the laboratory's, all else real.

        ``env`` is laid over this process's environment. Raises CalledProcessError when ``check`` is set.
        """
        return subprocess.run(
            self.control_argv(argv),
            env={**self.control_env, **(env or {})},
            check=check,
            timeout=timeout,
            capture_output=capture,
            cwd=cwd,
            text=True,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),  # type: ignore[call-overload]
        )

    @property
    def control_env(self) -> dict[str, str]:
        """Return the environment of commands on the control machine: no ssh agent, connections shared in here only."""
        ours = {key: value for key, value in os.environ.items() if key != "SSH_AUTH_SOCK"}
        return {**ours, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp")}

    def control_argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs ``argv`` with the laboratory's ``~/.ssh``."""
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", str(self.folder / "control-ssh"), str(_ssh_folder()), *argv]

    def down(self) -> None:
        """Take the laboratory down; nothing of it is left. See `take_down`."""
        take_down(self.name)

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def _marker(self) -> str:
        return f"flotilla-lab:{self.name}:"

    @classmethod
    def _reserve(cls, num_hosts: int, name: str, fast: bool) -> Laboratory:
        """Take the name and a network number, and write the state that `take_down` needs, before anything is started."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,23}", name):
            raise LabError(f"{name!r} is no name for a laboratory (up to 24 lower-case letters, digits and hyphens)")
        if not 1 <= num_hosts <= len(NAMES):
            raise LabError(f"a laboratory has 1 to {len(NAMES)} hosts, not {num_hosts}")
        with _lock():
            if name in cls.names():
                raise LabError(f"there is a laboratory named {name}; ./inv lab.down --name {name} ends it")
            taken = {cls.attach(other).number for other in cls.names() if (STATE / other / "state.json").exists()}
            lab = cls(name=name, number=free_number(taken), num_hosts=num_hosts, fast=fast)
            lab._write_state()
        return lab

    def _write_state(self) -> None:
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o700)
        (self.folder / "state.json").write_text(json.dumps(self.__dict__))
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(secrets.token_urlsafe(12) + "\n")
        for name in ("control-ssh", "cp"):
            (self.folder / name).mkdir(mode=0o700)
        _ssh_folder().mkdir(mode=0o700, exist_ok=True)  # to bind over; removed with the last laboratory if empty
        write_inventory(self.inventory, self.number, self.hosts)

    def _host(self, index: int) -> LabHost:
        name = NAMES[index]
        cores = sorted(os.sched_getaffinity(0))
        return LabHost(
            name=name,
            user=USERS[index],
            address=f"10.77.{self.number}.{11 + index}",
            fast_address=f"10.99.{self.number}.{11 + index}",
            core=cores[index % len(cores)],
            marker=f"{self._marker}{name}:",
            groups=Groups.of(f"flotilla-lab-{self.name}/{name}"),
            disk=Disk(folder=self.folder / name),
        )

    def _furnish(self, index: int, host: LabHost, password: str, mac: Hook | None) -> None:
        peers = "".join(f"{peer.address} {peer.name}.local {peer.name}\n" for peer in self.hosts if peer.name != host.name)
        hosts = f"127.0.0.1 localhost\n127.0.1.1 {host.name}.local {host.name}\n{peers}"
        identity = Identity(name=host.name, user=host.user, uid=1501 + index, password=password, hosts=hosts)
        host.disk.make(DISK_GIB)
        furnish(host.disk, identity)
        if mac:
            host.disk.unmount()  # an overlay must not be mounted while its layers are changed
            mac(host.upper, host)
            host.disk.mount()


def take_down(name: str) -> None:
    """End a laboratory, whole or what a crash left of it: processes, cables, mounts, groups, folders.

    Only processes are killed that have the laboratory's mark and namespaces of their own, or are in those
    namespaces. Raises LabError where there is no laboratory of this name.
    """
    folder = STATE / name
    if name not in Laboratory.names():
        Laboratory.attach(name)  # says which there are
    groups = _all_groups(name)
    for group in groups:
        if group.is_frozen():
            group.freeze(stopped=False)
    _end_processes(name)
    system.unmount_under(folder)
    for group in groups:
        group.remove()
    _remove_folders(folder)


def _end_processes(name: str) -> None:
    pids = system.marked(f"flotilla-lab:{name}:")
    spaces = {inode for pid in pids if (inode := system.namespace(pid, "net"))}
    controls = system.with_mount_of(STATE / name / "control-ssh")
    system.end(sorted({*pids, *system.within("net", spaces), *controls} - {os.getpid()}))


def _all_groups(name: str) -> list[Groups]:
    """Return the groups of every host that has any, then the laboratory's own."""
    whole = Groups.of(f"flotilla-lab-{name}")
    names = {entry.name for folder in whole.folders for entry in folder.iterdir() if entry.is_dir()}
    return [*(Groups.of(f"flotilla-lab-{name}/{host}") for host in sorted(names)), whole]


def _remove_folders(folder: Path) -> None:
    with _lock():
        shutil.rmtree(folder)
        if not Laboratory.names():
            STATE.rmdir()
            ssh = _ssh_folder()
            if ssh.is_dir() and not any(ssh.iterdir()):
                ssh.rmdir()


def _ssh_folder() -> Path:
    """Return the folder that OpenSSH reads: in the home of the user database, whatever HOME says."""
    import pwd

    return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"


@contextmanager
def _lock() -> Iterator[None]:
    """Let one process at a time make or remove laboratories; the lock is on a folder that stays, so leaves no file."""
    descriptor = os.open(STATE.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def describe(name: str) -> list[dict[str, Any]]:
    """Return a row for every host of a laboratory: its name, user, addresses, core and state."""
    lab = Laboratory.attach(name)
    return [_row(lab, host) for host in lab.hosts]


def _row(lab: Laboratory, host: LabHost) -> dict[str, Any]:
    state = "stopped" if host.groups.is_frozen() else "up" if host.is_up else "down"
    links: tuple[Link, ...] = ("slow", "fast")
    cut = [link for link in links if state != "down" and not lab.switch.is_plugged(host.name, link)]
    return {
        "host": host.name,
        "user": host.user,
        "address": host.address,
        "fast address": host.fast_address,
        "core": host.core,
        "state": state + "".join(f", {link} link cut" for link in cut),
    }
