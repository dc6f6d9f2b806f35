"""The laboratory itself: its hosts are computers of their own, its levers act, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.lab.demolition import traces
from tests.lab.laboratory import LabError, LabHost, Laboratory, describe, take_down
from tests.lab.places import ssh_folder
from tests.lab.system import marked, namespace, within
from trainer.paths import PROJECT_ROOT

LACKING = Laboratory.missing()
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"the laboratory needs: {', '.join(LACKING)}")

NAME = f"self{os.getpid()}"
RECEIVE = """
import socket, sys, time
with socket.create_server((sys.argv[1], 7070)) as server:
    print("ready", flush=True)
    peer, _ = server.accept()
    begin, size = time.monotonic(), 0
    while chunk := peer.recv(1 << 20):
        size += len(chunk)
    print(size * 8 / (time.monotonic() - begin) / 1e6)
"""
SEND = """
import socket, sys
chunk = bytes(1 << 20)
with socket.create_connection((sys.argv[1], 7070)) as server:
    for _ in range(int(sys.argv[2])):
        server.sendall(chunk)
"""
REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
    print("reached")
except OSError as error:
    print(error.strerror or error)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    """Yield three bare hosts whose fast links have addresses."""
    with Laboratory.up(3, NAME) as made:
        for host in made.hosts:
            host.run(["ip", "address", "add", f"{host.fast_address}/24", "dev", "tb0"])
            host.run(["ip", "link", "set", "tb0", "up"])
        yield made


def python(host: LabHost, script: str, *args: object) -> str:
    return host.run(["/usr/bin/python3", "-c", script, *map(str, args)]).stdout.strip()


def reach(host: LabHost, address: str, port: int = 22, patience_s: float = 1) -> str:
    """Return "reached", or why a host cannot connect to this address."""
    return python(host, REACH, address, port, patience_s)


def by_password(lab: Laboratory, host: LabHost, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command on a host as a person who knows the password does, by ssh from the control machine."""
    asker = lab.folder / "askpass"
    asker.write_text(f"#!/bin/sh\ncat {lab.password_file}\n")
    asker.chmod(0o700)
    options = [
        f"-o{option}" for option in ("StrictHostKeyChecking=accept-new", "ConnectTimeout=3", "NumberOfPasswordPrompts=1")
    ]
    env = {"SSH_ASKPASS": str(asker), "SSH_ASKPASS_REQUIRE": "force"}
    done = lab.control(["ssh", *options, f"{host.user}@{host.address}", command], env=env, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def measure_rate(sender: LabHost, receiver: LabHost, address: str, mebibytes: int) -> float:
    """Return at what rate a host sends to another, in Mbit/s."""
    pipe = subprocess.PIPE
    with subprocess.Popen(receiver.enter(["/usr/bin/python3", "-c", RECEIVE, address]), stdout=pipe, text=True) as receiving:
        assert receiving.stdout is not None
        assert receiving.stdout.readline() == "ready\n"
        python(sender, SEND, address, mebibytes)
        return float(receiving.stdout.readline())


def collect(hosts: Sequence[LabHost], *argv: str) -> set[str]:
    return {host.run(argv).stdout for host in hosts}


def test_identity(lab: Laboratory) -> None:
    """Each host has its own name, user, addresses, machine id, host key and clock ticks for one core."""
    assert [(host.name, host.user) for host in lab.hosts] == [("alpha", "ann"), ("beta", "bert"), ("gamma", "cleo")]
    assert collect(lab.hosts, "hostname") == {"alpha\n", "beta\n", "gamma\n"}
    assert len(collect(lab.hosts, "cat", "/etc/machine-id")) == 3
    assert len(collect(lab.hosts, "cat", "/etc/ssh/ssh_host_ed25519_key.pub")) == 3
    assert collect(lab.hosts, "sh", "-c", "ls /etc/ssh/ssh_host_*") == {
        "/etc/ssh/ssh_host_ed25519_key\n/etc/ssh/ssh_host_ed25519_key.pub\n"
    }
    assert collect(lab.hosts, "nproc") == {"1\n"}
    for kind in ("mnt", "uts", "ipc", "pid", "net"):
        assert len({namespace("self", kind), *(namespace(host.pid, kind) for host in lab.hosts)}) == 4


def test_bare(lab: Laboratory) -> None:
    """A host has nothing of this machine's private folders, and what it writes is its own."""
    host, neighbour, _ = lab.hosts
    assert host.run(["ls", "-A", "/root", "/opt", "/tmp", "/var/tmp"]).stdout.split() == [
        "/opt:", "/root:", "/tmp:", "/var/tmp:",
    ]  # fmt: skip
    assert host.run(["ls", "/home"]).stdout == "ann\n"
    assert host.run(["ls", str(PROJECT_ROOT)], check=False).returncode != 0
    host.run(["sh", "-c", "echo mine >/etc/mine"])
    assert (host.upper / "etc/mine").read_text() == (host.root / "etc/mine").read_text() == "mine\n"
    assert not (neighbour.root / "etc/mine").exists()
    assert not Path("/etc/mine").exists()


def test_password(lab: Laboratory) -> None:
    """A host's user logs in by password and may use sudo with it; this machine's own ~/.ssh is not touched."""
    before = sorted(ssh_folder().iterdir())
    for host in lab.hosts:
        done = by_password(
            lab, host, f"id -un; hostname; echo {lab.password} | sudo -S -p '' id -un; sudo -k; sudo -n true", check=False
        )
        assert done.stdout.split() == [host.user, host.name, "root"]
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "sudo: a password is required")
    assert sorted(ssh_folder().iterdir()) == before
    assert (lab.folder / "control-ssh" / "known_hosts").exists()
    assert lab.password_file.stat().st_mode & 0o077 == 0


def test_shared_machine(lab: Laboratory) -> None:
    """Not even a host's root sets the machine's clock, its kernel's settings or reads its disks; it sets its network's."""
    host = lab.hosts[0]
    for forbidden in ("date -s @0", "sysctl -w kernel.panic=1", "mknod /tmp/disk b 254 0", "echo x >/sys/kernel/profiling"):
        assert host.run(["sh", "-c", forbidden], check=False).returncode, forbidden
    host.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
    assert time.time() > 1_700_000_000


def test_links(lab: Laboratory) -> None:
    """Hosts reach each other over both links: about 100 Mbit/s over the slow one, many times that over the fast one."""
    sender, receiver, _ = lab.hosts
    slow = measure_rate(sender, receiver, receiver.address, 8)
    back = measure_rate(receiver, sender, sender.address, 8)
    fast = measure_rate(sender, receiver, receiver.fast_address, 128)
    assert max(slow, back) < 115
    assert min(slow, back) > 30
    assert fast > 5 * slow


def test_nothing_outside(lab: Laboratory) -> None:
    """A host reaches the control machine and its neighbours, and nothing else: it has no route, no names."""
    host = lab.hosts[0]
    assert reach(host, lab.hosts[1].address) == "reached"
    for address in ("192.0.2.1", "1.1.1.1", "10.78.0.1"):
        assert reach(host, address) == "Network is unreachable"
    assert reach(host, "example.org") not in ("reached", "Network is unreachable")
    assert host.run(["ip", "route", "show", "default"]).stdout == ""


def test_cut(lab: Laboratory) -> None:
    """A cut link loses its carrier and carries nothing; the other link stays; mended, it carries again."""
    host, peer, _ = lab.hosts
    lab.cut(host, "fast")
    assert (host.run(["cat", "/sys/class/net/tb0/carrier"]).stdout, reach(host, peer.address)) == ("0\n", "reached")
    assert reach(host, peer.fast_address, patience_s=0.3) != "reached"
    assert [row["state"] for row in describe(lab.name)] == ["up, fast link cut", "up", "up"]
    lab.mend(host, "fast")
    assert reach(host, peer.fast_address, patience_s=5) == "reached"
    with pytest.raises(LabError, match=r"^'middle' is no link; there are slow and fast$"):
        lab.cut(host, "middle")  # type: ignore[arg-type]


def test_stop(lab: Laboratory) -> None:
    """A stopped host answers nothing until it continues; its neighbours do not stop."""
    host, peer, _ = lab.hosts
    host.stop()
    try:
        with pytest.raises(LabError, match=r"^alpha is stopped: nothing runs on it$"):
            host.run(["true"])
        assert by_password(lab, host, "true", check=False).returncode == 255
        assert peer.run(["hostname"]).stdout == "beta\n"
        assert [row["state"] for row in describe(lab.name)] == ["stopped", "up", "up"]
    finally:
        host.cont()
    assert by_password(lab, host, "hostname").stdout == "alpha\n"


def test_kill(lab: Laboratory) -> None:
    """A killed host is gone from the network with all its processes; started again, it has what its disk held."""
    host, peer = lab.hosts[2], lab.hosts[1]
    host.run(["sh", "-c", "echo kept >/home/cleo/note; echo gone >/run/note"])
    space = namespace(host.pid, "pid")
    assert space is not None
    host.kill()
    assert not within("pid", {space})
    assert (host.is_up, reach(peer, host.address, patience_s=0.3) == "reached") == (False, False)
    with pytest.raises(LabError, match=r"^gamma is down$"):
        host.run(["true"])
    lab.start(host)
    assert host.run(["cat", "/home/cleo/note", "/run/note"], check=False).stdout == "kept\n"
    assert by_password(lab, host, "hostname").stdout == "gamma\n"


def test_disk(lab: Laboratory) -> None:
    """A filled disk takes no more, without filling the neighbours' or this machine's; freed, it does."""
    host, neighbour, _ = lab.hosts
    if not host.disk.is_limited:
        pytest.skip("no loop device can be had here, so hosts have no disks of their own")
    write = ["dd", "if=/dev/zero", "of=/home/big", "bs=1M", "count=64"]
    free = os.statvfs("/var/tmp").f_bavail
    host.fill_disk(leave_mib=8)
    assert "No space left on device" in host.run(write, check=False).stderr
    assert os.statvfs("/var/tmp").f_bavail * 2 > free
    neighbour.run(write)
    host.fill_disk()
    assert host.run(["sh", "-c", "echo x >/home/small"], check=False).returncode
    host.free_disk()
    host.run(write)


def test_clock(lab: Laboratory) -> None:
    """A shifted clock is what the host's new programs see, by ssh too; its neighbours and this machine see the true one."""
    host, neighbour, _ = lab.hosts
    try:
        host.shift_clock(3600.5)
    except LabError as error:
        pytest.skip(str(error))
    seen = [
        float(host.run(["date", "+%s.%N"]).stdout),
        float(python(host, "import time; print(time.time())")),
        float(by_password(lab, host, "date +%s.%N").stdout),
    ]
    assert all(3590 < clock - time.time() < 3601 for clock in seen)
    assert abs(float(neighbour.run(["date", "+%s.%N"]).stdout) - time.time()) < 5
    host.shift_clock(-60)
    assert -66 < float(host.run(["date", "+%s.%N"]).stdout) - time.time() < -59
    host.shift_clock(0)
    assert abs(float(host.run(["date", "+%s.%N"]).stdout) - time.time()) < 5


def test_slow(lab: Laboratory) -> None:
    """A slowed host gets that part of a core's time at most; given back, all of it."""
    host = lab.hosts[0]
    spin = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    try:
        host.slow(0.25)
    except LabError as error:
        pytest.skip(str(error))
    slowed = float(python(host, spin))
    host.slow(1)
    assert slowed < 0.4


def test_taken(lab: Laboratory) -> None:
    """A laboratory that is up is attached to by name, and none of the same name is made beside it."""
    assert Laboratory.attach(lab.name) == lab
    with pytest.raises(LabError, match=rf"^there is a laboratory named {lab.name}; ./inv lab.down --name {lab.name} ends it$"):
        Laboratory.up(1, lab.name)
    assert len(describe(lab.name)) == 3
    with pytest.raises(LabError, match=r"^there is no laboratory named nowhere; those there are: .*self"):
        take_down("nowhere")


@pytest.mark.parametrize("wrong", ["", "../x", "a b", "A", "x" * 25])
def test_name(wrong: str) -> None:
    """A name that could not be a folder's or a group's is refused."""
    with pytest.raises(LabError, match="is no name for a laboratory"):
        Laboratory.up(1, wrong)


def test_neighbours(lab: Laboratory) -> None:
    """Laboratories side by side do not reach each other, and one goes down without the other."""
    with Laboratory.up(1, f"{NAME}-b") as other:
        assert other.number != lab.number
        assert reach(other.hosts[0], lab.hosts[0].address) == "Network is unreachable"
    assert traces(other.name) == []
    assert reach(lab.hosts[0], lab.hosts[1].address) == "reached"


def test_mac(tmp_path: Path) -> None:
    """The hook sees each host's upper folder before the host starts, and what it puts there the host has."""

    def leave_note(upper: Path, host: LabHost) -> None:
        assert not host.is_up
        (upper / "usr/local/bin").mkdir(parents=True)
        (upper / "usr/local/bin/brew").write_text(f"#!/bin/sh\necho {host.name}\n")
        (upper / "usr/local/bin/brew").chmod(0o755)

    with Laboratory.up(1, f"{NAME}-m", fast=False, mac=leave_note) as made:
        (host,) = made.hosts
        assert host.run(["brew"], user=host.user).stdout == "alpha\n"
        host.run(["ip", "link", "set", "tb0", "up"])
        assert host.run(["cat", "/sys/class/net/tb0/carrier"]).stdout == "0\n"  # not plugged in


def test_up_lets_go_of_the_terminal() -> None:
    """What stays behind holds neither output of the command that brought it up: a pipe behind that ends with it."""
    build = f"from tests.lab.laboratory import Laboratory; Laboratory.up(1, {NAME + '-t'!r})"
    try:
        done = subprocess.run([sys.executable, "-c", build], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        take_down(f"{NAME}-t")


def test_down() -> None:
    """Down takes everything along: a stopped host, a full disk, commands that still run on a host or on control."""
    lab = Laboratory.up(2, f"{NAME}-d")
    host, peer = lab.hosts
    host.fill_disk(leave_mib=4)
    spaces = {kind: {namespace(each.pid, kind) for each in lab.hosts} for kind in ("mnt", "uts", "ipc", "pid", "net")}
    left = [subprocess.Popen(peer.enter(["sleep", "300"])), subprocess.Popen(lab.control_argv(["sleep", "300"]))]
    while not within("pid", {namespace(peer.pid, "pid") or 0}) or left[1].poll() is not None:
        time.sleep(0.01)
    time.sleep(0.2)
    host.stop()
    uplink = socket.if_nametoindex(lab.switch.uplink)  # its name and number may be another laboratory's a moment after
    assert len(traces(lab.name)) > 10
    lab.down()
    assert [process.wait(5) for process in left] == [-signal.SIGKILL, -signal.SIGKILL]
    assert traces(lab.name) == []
    assert uplink not in dict(socket.if_nameindex())
    assert all(within(kind, {inode for inode in inodes if inode}) == [] for kind, inodes in spaces.items())
    assert not lab.folder.exists()


@pytest.mark.parametrize("everything", [False, True])
def test_crash(everything: bool) -> None:
    """A laboratory killed while it was brought up, or with all its processes, is taken down like a whole one."""
    name = f"{NAME}-c"
    script = f"""\
        import time
        from tests.lab.laboratory import Laboratory
        def wait(host):
            if host.name == "beta":
                print("built", flush=True)
                time.sleep(300)
        Laboratory.up(3, "{name}", prepare=wait)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as building:
        assert building.stdout is not None
        assert building.stdout.readline() == "built\n"
        building.kill()
    for pid in marked(f"flotilla-lab:{name}:") if everything else []:
        os.kill(pid, signal.SIGKILL)
    assert traces(name)
    take_down(name)
    assert traces(name) == []


def test_failure_to_start() -> None:
    """A laboratory that cannot be finished says why and is gone."""

    def refuse(_: LabHost) -> None:
        raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match=r"^not today$"):
        Laboratory.up(1, f"{NAME}-f", prepare=refuse)
    assert traces(f"{NAME}-f") == []


def test_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root or tools nothing is begun, and the message names what is missing and how to get it."""
    monkeypatch.setattr("tests.lab.system.find_tool", lambda name: None if name in ("tc", "sshd") else f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    lacking = r"root, tc \(apt-get install iproute2\), sshd \(apt-get install openssh-server\)"
    with pytest.raises(LabError, match=rf"^a laboratory needs: {lacking}$"):
        Laboratory.up(1, f"{NAME}-n")
