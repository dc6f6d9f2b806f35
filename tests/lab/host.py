"""One host of the laboratory: how to run something on it, and what can be done to it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import root
from tests.lab.cgroups import Groups
from tests.lab.network import Switch
from tests.lab.system import LabError, end, find_tool, marked, namespace, run, within

# What even a host's root may not do, because it would be done to the machine that all share.
CAPABILITIES = "-sys_time,-sys_module,-sys_boot,-sys_rawio,-mknod,-syslog,-mac_admin,-mac_override"
CLOCK_SOURCE = Path(__file__).with_name("clock.c")


@dataclass(frozen=True, kw_only=True)
class LabHost:
    """A host as the laboratory knows it, whether it runs or not."""

    name: str
    user: str
    address: str
    fast_address: str
    core: int
    marker: str
    groups: Groups
    disk: root.Disk

    @property
    def upper(self) -> Path:
        """Return the overlay's upper folder: the host's own files."""
        return self.disk.upper

    @property
    def root(self) -> Path:
        """Return the host's whole file system, readable and writable from this machine."""
        return self.disk.root

    @property
    def pid(self) -> int:
        """Return the host's process 1 as numbered here. Raises LabError when the host is down."""
        inits = [pid for pid in marked(self.marker) if namespace(pid, "pid") != namespace("self", "pid")]
        if not inits:
            raise LabError(f"{self.name} is down")
        return inits[0]

    @property
    def is_up(self) -> bool:
        """Tell whether the host runs (or is stopped, but not killed)."""
        return any(namespace(pid, "pid") != namespace("self", "pid") for pid in marked(self.marker))

    def start(self, switch: Switch, fast: bool) -> None:
        """Start the host and lay its cables. Raises LabError with its last words when it does not come up."""
        self.groups.make(self.core)
        log = self.disk.folder / "init.log"
        mine = ["--mount", "--uts", "--ipc", "--pid", "--net", "--fork", "--kill-child"]
        init = ["bash", str(Path(__file__).with_name("init.sh")), self.marker, str(self.root), self.name]
        argv = [*self._join_groups(), "setsid", "--fork", "unshare", *mine, *init, f"{self.address}/24", CAPABILITIES]
        with (
            log.open("w") as stderr,
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd="/", text=True) as started,
        ):
            assert started.stdin
            assert started.stdout
            pid = int(started.stdout.readline() or 0)
            if pid:
                switch.connect(self.name, pid, fast)
                started.stdin.write("\n")
                started.stdin.flush()
            if not started.stdout.readline():
                raise LabError(f"{self.name} did not start: {log.read_text().strip()}")

    def run(
        self,
        argv: Sequence[str],
        user: str | None = None,
        check: bool = True,
        *,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float | None = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, as root or as this user, in the user's home, with a fresh environment.

        Raises LabError when the host is down, CalledProcessError when the command fails and ``check`` is set.
        """
        entered = self.enter(argv, user=user, env=env)
        return subprocess.run(entered, input=stdin, check=check, capture_output=True, text=True, timeout=timeout)

    def enter(self, argv: Sequence[str], user: str | None = None, env: Mapping[str, str] | None = None) -> list[str]:
        """Return the command line that runs ``argv`` inside this host. Raises LabError when it is down or stopped."""
        if self.groups.is_frozen():
            raise LabError(f"{self.name} is stopped: nothing runs on it")
        spaces = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-p", "-n", "--"]
        who = ["--reuid", user or "root", "--regid", user or "root", "--init-groups", "--reset-env"]
        where = ["env", *(f"{key}={value}" for key, value in (env or {}).items()), "sh", "-c", 'cd && exec "$@"', "sh"]
        return [*self._join_groups(), *spaces, "setpriv", "--bounding-set", CAPABILITIES, *who, *where, *argv]

    def stop(self) -> None:
        """Stop every process of the host, as a computer that hangs: its links stay up, nothing answers."""
        if self.pid and not self.groups.freeze(stopped=True):
            self._signal_all(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a stopped host go on."""
        if not self.groups.freeze(stopped=False):
            self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """End the host at once, as by pulling its plug. Its disk keeps what was written."""
        if self.groups.is_frozen():
            self.groups.freeze(stopped=False)
        spaces = {inode for pid in marked(self.marker) if (inode := namespace(pid, "net"))}
        end([*marked(self.marker), *within("net", spaces)])

    def fill_disk(self, leave_mib: int = 0) -> None:
        """Leave so little space on the host's disk. Raises LabError where the disk is this machine's own."""
        if not self.disk.is_limited:
            raise LabError("no loop device could be had, so the hosts have no disks of their own to fill")
        self.free_disk()
        root.fill(self.disk.folder / "disk", leave_mib)

    def free_disk(self) -> None:
        """Free what `fill_disk` took."""
        (self.disk.folder / "disk" / "filled").unlink(missing_ok=True)

    def slow(self, factor: float) -> None:
        """Give the host this part of its core's time: 0.5 slows it by half, 1 gives all back."""
        self.groups.limit(None if factor >= 1 else factor)

    def shift_clock(self, seconds: float) -> None:
        """Let programs that the host starts from now on read a clock ahead by so many seconds; 0 puts it right.

        Linux has one wall clock for all namespaces, so a library laid under every dynamically linked program
        (``/etc/ld.so.preload``) adds the difference. What the kernel itself stamps (files) keeps the true time.
        """
        library, preload = self.root / "usr/local/lib/flotilla-clock.so", self.root / "etc/ld.so.preload"
        for path in (preload, library):
            path.unlink(missing_ok=True)
        if not seconds:
            return
        compiler = find_tool("cc") or find_tool("gcc")
        if compiler is None:
            raise LabError("shifting a clock needs a C compiler (apt-get install gcc libc6-dev)")
        built = self.disk.folder / "clock.so"
        run([compiler, "-O1", "-shared", "-fPIC", f"-DSHIFT_S={seconds!r}", "-o", str(built), str(CLOCK_SOURCE), "-ldl"])
        shutil.copy(built, library)
        preload.write_text("/usr/local/lib/flotilla-clock.so\n")

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in within("pid", {inode for inode in [namespace(self.pid, "pid")] if inode}):
            os.kill(pid, number)

    def _join_groups(self) -> list[str]:
        """Return the beginning of a command line that puts the rest into the host's groups."""
        joins = "".join(f"echo 0 >{shlex.quote(str(folder / 'cgroup.procs'))}; " for folder in self.groups.folders)
        return ["sh", "-c", f'{joins}exec "$@"', "sh"]
