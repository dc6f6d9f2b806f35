"""A host's file system: this machine's, with the private places emptied and an identity of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lab.system import LabError, run

EMPTY = ("work", "root", "home", "tmp", "opt", "var/tmp")
SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var")

SSHD_CONFIG = """\
Include /etc/ssh/sshd_config.d/*.conf
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication yes
KbdInteractiveAuthentication no
PermitRootLogin no
UsePAM yes
UseDNS no
PrintMotd no
AcceptEnv LANG LC_*
Subsystem sftp /usr/lib/openssh/sftp-server
"""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The folders of one host in the laboratory's state: its disk (an image of limited size) and its root."""

    folder: Path

    @property
    def upper(self) -> Path:
        """Return where the host's own files are: what differs from this machine's."""
        return self.folder / "disk" / "upper"

    @property
    def root(self) -> Path:
        """Return the host's whole file system as seen from this machine."""
        return self.folder / "root"

    @property
    def is_limited(self) -> bool:
        """Tell whether the disk is one of its own, which can be filled without filling this machine's."""
        return (self.folder / "disk.img").exists()

    def make(self, size_gib: int) -> None:
        """Make and mount an empty disk. Where no loop device can be had it is a folder, without a limit."""
        disk = self.folder / "disk"
        disk.mkdir(parents=True)
        image = self.folder / "disk.img"
        image.touch()
        os.truncate(image, size_gib << 30)  # sparse: takes only what is written
        run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", str(image)])
        try:
            run(["mount", "-o", "loop,discard,noatime", str(image), str(disk)])
        except LabError:
            image.unlink()
        for name in ("upper", "work"):
            (disk / name).mkdir(exist_ok=True)
        self.root.mkdir()

    def mount(self) -> None:
        """Lay the host's own files over this machine's."""
        layers = f"lowerdir=/,upperdir={self.upper},workdir={self.folder / 'disk' / 'work'}"
        run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self.root)])

    def unmount(self) -> None:
        """Take the overlay away, so that the upper folder may be changed by hand."""
        run(["umount", str(self.root)])


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a host is: what differs from its neighbour's."""

    name: str
    user: str
    uid: int
    password: str
    hosts: str  # the text of /etc/hosts


def furnish(disk: Disk, identity: Identity) -> None:
    """Mount a fresh disk as a bare host: private places empty, one user with a password who may sudo with it."""
    for name in _emptied():
        folder = disk.upper / name
        folder.mkdir(parents=True)
        os.setxattr(folder, "trusted.overlay.opaque", b"y")
        folder.chmod({"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700}.get(name, 0o755))
    disk.mount()
    etc = disk.root / "etc"
    (etc / "hostname").write_text(f"{identity.name}\n")
    (etc / "hosts").write_text(identity.hosts)
    _replace(etc / "machine-id", f"{secrets.token_hex(16)}\n", 0o444)
    _replace(etc / "resolv.conf", "# this host has no name server\n", 0o644)
    _replace(etc / "sudoers.d" / identity.user, f"{identity.user} ALL=(ALL:ALL) ALL\n", 0o440)
    _add_user(disk.root, identity)
    _give_host_key(etc / "ssh", identity.name)


def _emptied() -> list[str]:
    """Return the folders that a host does not share: the private ones, and the one that this checkout is in."""
    checkout = Path(__file__).resolve().parts[1]
    return [*EMPTY, *({checkout} - set(EMPTY) - set(SYSTEM))]


def _add_user(root: Path, identity: Identity) -> None:
    run(["chroot", str(root), "useradd", "-m", "-u", str(identity.uid), "-s", "/bin/bash", identity.user])
    run(["chroot", str(root), "chpasswd"], stdin=f"{identity.user}:{identity.password}\n")
    (root / "home" / identity.user).chmod(0o700)


def _give_host_key(folder: Path, name: str) -> None:
    for shared in [*folder.glob("ssh_host_*"), *(folder / "sshd_config.d").glob("*.conf")]:
        shared.unlink()
    (folder / "sshd_config.d").mkdir(exist_ok=True)
    key = folder / "ssh_host_ed25519_key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{name}", "-f", str(key)])
    (folder / "sshd_config").write_text(SSHD_CONFIG)


def _replace(path: Path, text: str, mode: int) -> None:
    """Write a file that may be a symbolic link (to another machine's file) below."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def fill(folder: Path, leave_mib: int) -> None:
    """Leave so little space on the disk that holds a folder."""
    space = os.statvfs(folder)
    size = space.f_bavail * space.f_frsize - (leave_mib << 20)
    if size > 0:
        argv = ["fallocate", "-l", str(size), str(folder / "filled")]
        subprocess.run(argv, check=leave_mib > 0, capture_output=True)  # to the brim it fails, with all space taken
