"""What can happen to a run: each fault as something done to a laboratory's hosts or to the control side, and its undoing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.lab.laboratory import LabHost, Laboratory

RUNS = "opt/flotilla/runs"


@dataclass
class Scene:
    """Where a fault strikes. ``control`` is the process that a person started; ``undo`` is called when it is over."""

    lab: Laboratory
    hosts: Sequence[LabHost]
    run: str
    control: subprocess.Popen[str]
    chance: random.Random
    undo: list[Callable[[], None]] = field(default_factory=list)

    def kept(self, host: LabHost) -> Path:
        """Return the checkpoints of a host."""
        return host.root / RUNS / self.run / "checkpoints"


@dataclass(frozen=True)
class Fault:
    """``strike`` does it. After ``heals_after_s`` it is undone; None leaves it until the run has ended."""

    name: str
    strike: Callable[[Scene], str]
    heals_after_s: float | None = None


def kill_rank(scene: Scene) -> str:
    """Kill a rank on any host."""
    host = scene.chance.choice(scene.hosts)
    host.run(["pkill", "-KILL", "-f", "^[^ ]*python[^ ]* -P -m trainer train"], check=False)  # mpirun has the words as well
    return host.name


def kill_host(scene: Scene) -> str:
    """Pull a host's plug; it is switched on again later."""
    host = scene.chance.choice(scene.hosts)
    host.kill()
    scene.undo.append(lambda: scene.lab.start(host))
    return host.name


def stop_host(scene: Scene) -> str:
    """Freeze a host: its links stay up, nothing answers."""
    host = scene.chance.choice(scene.hosts)
    host.stop()
    scene.undo.append(host.cont)
    return host.name


def cut_link(scene: Scene) -> str:
    """Pull a host's fast cable: of three at a switch, any one's; between two, the one that leads from one to the other."""
    chosen = list(scene.hosts) if len(scene.hosts) == 2 else [scene.chance.choice(scene.hosts)]
    for host in chosen:
        scene.lab.cut(host, "fast")
    scene.undo += [partial(scene.lab.mend, host, "fast") for host in chosen]
    return " and ".join(host.name for host in chosen)


def fill_disk(scene: Scene) -> str:
    """Leave nothing free on a host's disk."""
    host = scene.chance.choice(scene.hosts)
    host.fill_disk(0)
    scene.undo.append(host.free_disk)
    return host.name


def interrupt(scene: Scene) -> str:
    """Ctrl-C."""
    os.kill(control_python(scene), signal.SIGINT)
    return "control"


def terminate_mpirun(scene: Scene) -> str:
    """SIGTERM to mpirun on the head."""
    scene.hosts[0].run(["pkill", "-TERM", "-f", "^[^ ]*(mpirun|prterun) "], check=False)
    return scene.hosts[0].name


def kill_supervisor(scene: Scene) -> str:
    """SIGKILL to the process that supervises; its ssh is left alive."""
    os.kill(control_python(scene), signal.SIGKILL)
    return "control"


def reboot_control(scene: Scene) -> str:
    """Everything on the control side is gone at once, ssh included."""
    for pid in descendants(scene.control.pid):
        os.kill(pid, signal.SIGKILL)
    return "control"


def corrupt_checkpoint(scene: Scene) -> str:
    """Turn a bit over in the newest checkpoint of some hosts, and kill a rank."""
    for host in scene.chance.sample(list(scene.hosts), scene.chance.randint(1, len(scene.hosts))):
        newest = max(scene.kept(host).glob("step-*"), default=None)
        if newest:
            path = scene.chance.choice(sorted(newest.iterdir()))
            content = bytearray(path.read_bytes())
            content[scene.chance.randrange(len(content))] ^= 1 << scene.chance.randrange(8)
            path.write_bytes(content)
    return kill_rank(scene)


FAULTS = (
    Fault("a rank is killed", kill_rank),
    Fault("a host loses power", kill_host, 20),
    Fault("a host is frozen", stop_host, 30),
    Fault("the fast cable is out for 2 s", cut_link, 2),
    Fault("the fast cable is out for good", cut_link),
    Fault("a disk is full", fill_disk, 5),
    Fault("Ctrl-C", interrupt),
    Fault("SIGTERM to mpirun", terminate_mpirun),
    Fault("SIGKILL to the supervisor", kill_supervisor),
    Fault("the newest checkpoint is altered, a rank killed", corrupt_checkpoint),
    Fault("the control machine reboots", reboot_control),
)


def control_python(scene: Scene) -> int:
    """Return the process that runs `./inv train`: the wrappers around it replace themselves by it."""
    return scene.control.pid


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, the last ones first."""
    shown = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in shown.splitlines())}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[::-1]


def wait_for(what: Callable[[], object], seconds: float) -> bool:
    """Return whether ``what`` came true in time."""
    give_up_at = time.monotonic() + seconds
    while not what():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.02)
    return True
