"""Control groups of a host: one core, a share of it, and the power to stop everything at once (cgroup v1 or v2)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.system import LabError

PERIOD_US = 100_000


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups named ``path`` under every controller that this machine lends; any of them may be absent."""

    path: str
    cpu: Path | None = None
    cpuset: Path | None = None
    freezer: Path | None = None

    @classmethod
    def of(cls, path: str) -> Groups:
        """Return the groups of this path as the machine's mounts have them, made or not."""
        found = _hierarchies()
        return cls(path=path, **{kind: found[kind] / path for kind in ("cpu", "cpuset", "freezer") if kind in found})

    @property
    def folders(self) -> list[Path]:
        """Return the distinct groups that exist."""
        return sorted({folder for folder in (self.cpu, self.cpuset, self.freezer) if folder and folder.is_dir()})

    def make(self, core: int) -> None:
        """Make the groups and pin them to a core; a group that this machine does not lend stays absent."""
        for folder in {folder for folder in (self.cpu, self.cpuset, self.freezer) if folder}:
            _make(folder)
        for folder in (self.cpuset.parent, self.cpuset) if self.cpuset and self.cpuset.is_dir() else ():
            mems = folder / "cpuset.mems"
            if not mems.read_text().strip():
                _write(mems, (folder.parent / "cpuset.mems").read_text() or "0")
            cores = str(core) if folder == self.cpuset else (folder.parent / "cpuset.cpus").read_text()
            _write(folder / "cpuset.cpus", cores)

    def remove(self) -> None:
        """Remove the groups, which must be without processes or about to be."""
        for folder in self.folders:
            remove(folder)

    def freeze(self, stopped: bool) -> bool:
        """Stop or continue all processes of the group; False where the machine lends no freezer."""
        if self.freezer is None or not self.freezer.is_dir():
            return False
        version_1 = self.freezer / "freezer.state"
        if version_1.exists():
            _write(version_1, "FROZEN" if stopped else "THAWED")
            _await(lambda: version_1.read_text().strip() == ("FROZEN" if stopped else "THAWED"))
        else:
            _write(self.freezer / "cgroup.freeze", str(int(stopped)))
            _await(lambda: f"frozen {int(stopped)}" in (self.freezer / "cgroup.events").read_text())  # type: ignore[operator]
        return True

    def is_frozen(self) -> bool:
        """Tell whether the host is stopped."""
        if self.freezer is None or not self.freezer.is_dir():
            return False
        version_1 = self.freezer / "freezer.state"
        if version_1.exists():
            return version_1.read_text().strip() != "THAWED"
        return "frozen 1" in (self.freezer / "cgroup.events").read_text()

    def limit(self, cores: float | None) -> None:
        """Grant at most this many cores' time; None: all. Raises LabError where the machine lends no such limit."""
        if self.cpu is None or not self.cpu.is_dir():
            raise LabError("no cgroup with a cpu controller can be made here, so a host cannot be slowed")
        quota = None if cores is None else max(1000, int(cores * PERIOD_US))
        if (self.cpu / "cpu.max").exists():
            _write(self.cpu / "cpu.max", f"{quota or 'max'} {PERIOD_US}")
        else:
            _write(self.cpu / "cpu.cfs_period_us", str(PERIOD_US))
            _write(self.cpu / "cpu.cfs_quota_us", str(quota or -1))


def remove(folder: Path) -> None:
    """Remove a group and those in it; the kernel needs a moment after the last process."""
    for inner in [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []:
        remove(inner)
    for _ in range(200):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
    if folder.exists():
        raise LabError(f"{folder} cannot be removed: processes are left in it: {(folder / 'cgroup.procs').read_text().split()}")


def _hierarchies() -> dict[str, Path]:
    """Return where each controller is mounted: its own hierarchy (v1), or the unified one (v2)."""
    found: dict[str, Path] = {}
    unified: Path | None = None
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup":
            found |= {name: Path(point) for name in options.split(",") if name in ("cpu", "cpuset", "freezer")}
        elif kind == "cgroup2":
            unified = Path(point)
    if unified:
        lent = (unified / "cgroup.controllers").read_text().split()
        found = {name: unified for name in ("cpu", "cpuset") if name in lent} | {"freezer": unified} | found
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    for parent in (folder.parent.parent, folder.parent):
        control = parent / "cgroup.subtree_control"
        for controller in ("cpu", "cpuset") if control.exists() else ():
            try:
                control.write_text(f"+{controller}")
            except OSError:
                continue  # not lent to us: the limit's absence is told when it is asked for


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        raise LabError(f"{path}: {value!r} refused: {error.strerror}") from error


def _await(reached: object, patience_s: float = 5.0) -> None:
    assert callable(reached)
    deadline = time.monotonic() + patience_s
    while not reached():
        if time.monotonic() > deadline:
            raise LabError("the host's processes could not be stopped or continued in time")
        time.sleep(0.005)
