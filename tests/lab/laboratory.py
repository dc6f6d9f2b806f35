"""The laboratory: computers that exist only on this Linux machine, with which everything is tried that needs several.

Each host has its own file system, processes, users, sshd and network. It shares the kernel and the clock.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.lab import places, system
from tests.lab.cgroups import Groups
from tests.lab.demolition import take_down
from tests.lab.host import LabHost
from tests.lab.inventory import write_inventory
from tests.lab.network import Link, Switch, free_number, start_switch
from tests.lab.places import STATE
from tests.lab.root import Disk, Identity, furnish
from tests.lab.system import LabError

__all__ = ["LabError", "LabHost", "Laboratory", "describe", "take_down"]

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
        return places.names()

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
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        )

    @property
    def control_env(self) -> dict[str, str]:
        """Return the environment of commands on the control machine: no ssh agent, connections shared in here only."""
        ours = {key: value for key, value in os.environ.items() if key != "SSH_AUTH_SOCK"}
        return {**ours, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp")}

    def control_argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs ``argv`` with the laboratory's ``~/.ssh``."""
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        folders = [str(self.folder / "control-ssh"), str(places.ssh_folder())]
        return ["unshare", "--mount", "sh", "-c", script, "sh", *folders, *argv]

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
        with places.lock():
            if name in cls.names():
                raise LabError(f"there is a laboratory named {name}; ./inv lab.down --name {name} ends it")
            taken = {cls.attach(other).number for other in cls.names() if (STATE / other / "state.json").exists()}
            lab = cls(name=name, number=free_number(taken), num_hosts=num_hosts, fast=fast)
            lab._write_state()
        return lab

    def _write_state(self) -> None:
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o700)
        (self.folder / "state.new").write_text(json.dumps(asdict(self)))
        (self.folder / "state.new").rename(self.folder / "state.json")
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(secrets.token_urlsafe(12) + "\n")
        for name in ("control-ssh", "cp"):
            (self.folder / name).mkdir(mode=0o700)
        places.make_ssh_folder()
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
