"""Delivering to nodes: stand-ins are folders of this machine, and an `ssh` that runs what it is given right here."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any

import pytest

from trainer.cluster import cargo, several
from trainer.cluster.call import BOOT, ask, make_bundle
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.nodes import Fleet, Node
from trainer.cluster.openmpi import OpenMPI
from trainer.cluster.sessions import name_session, remove_sessions
from trainer.cluster.store import Artifact, deliver, find_code, find_data, find_missing, path_of
from trainer.errors import ClusterError
from trainer.fingerprint import hash_files
from trainer.paths import PROJECT_ROOT

HERE = Host(name="head", slots=1, management="localhost", is_local=True)
# Stands for ssh and the node behind it: every address has a store of its own, though the request names the head's.
FAKE_SSH = f"""#!{sys.executable}
import json, os, subprocess, sys
*_, address, command, length = sys.argv
bundle = json.loads(sys.stdin.buffer.read(int(length)))
bundle["request"]["store"] = os.path.join(os.environ["FAKE_ROOTS"], address, "store")
data = json.dumps(bundle).encode()
node = subprocess.Popen([sys.executable, "-I", "-c", {BOOT!r}, str(len(data))], stdin=subprocess.PIPE)
node.communicate(data + sys.stdin.buffer.read())
sys.exit(node.returncode)
"""


def make_root(root: Path) -> Path:
    (root / "env" / "bin").mkdir(parents=True)
    (root / "env" / "bin" / "python").symlink_to(sys.executable)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a node's root on this machine, with a Python."""
    return make_root(tmp_path / "root")


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    """Return a data set to deliver."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").write_text(f"{split}\n" * 1000)
    (folder / "README.md").write_text("not for nodes")
    return find_data(folder, hash_files(folder, [f"{split}.jsonl" for split in ("train", "valid", "test")]))


def fleet_of(root: Path, *others: Host) -> Fleet:
    cluster = Cluster(hosts=(HERE, *others), root=PurePosixPath(root))
    mpi = OpenMPI(mpirun=Path("/m"), libmpi=Path("/l"), version="5")
    nodes = {
        host.name: Node(
            host=host,
            system="Linux",
            mpi=mpi,
            host_name=host.name,
            is_root=False,
            reached_at="",
            interfaces=(),
            link_problems=(),
        )
        for host in cluster.hosts
    }
    return Fleet(cluster=cluster, nodes=nodes)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_artifact_arrives_whole_and_once(root: Path, data: Artifact) -> None:
    """Exactly the files that count, byte for byte, under a name made of their content; a second time nothing is sent."""
    told: list[tuple[str, int, int]] = []
    fleet = fleet_of(root)
    assert deliver(fleet, [data], lambda *progress: told.append(progress)) == {"head": [data]}
    target = path_of(data, fleet.cluster.root)
    assert names(target) == ["test.jsonl", "train.jsonl", "valid.jsonl"]
    assert hash_files(target, data.files) == data.digest
    assert target.name == f"data-{data.digest[:16]}"
    assert told[-1][0] == "sending data to head"
    told.clear()
    assert deliver(fleet, [data], lambda *progress: told.append(progress)) == {"head": []}
    assert not told


def test_the_code_is_the_package(root: Path) -> None:
    """What arrives can be run by a Python that knows nothing of this project, and is the same as here."""
    code = find_code()
    fleet = fleet_of(root)
    deliver(fleet, [code], lambda *_: None)
    target = path_of(code, fleet.cluster.root)
    assert all(name.startswith("trainer/") for name in names(target))
    program = "import trainer.cluster.lead, trainer.config; print(trainer.__file__)"
    env = {"PYTHONPATH": str(target), "PATH": os.environ["PATH"]}
    shown = subprocess.run([sys.executable, "-P", "-c", program], env=env, capture_output=True, text=True, check=True, cwd="/")
    assert shown.stdout.strip() == f"{target}/trainer/__init__.py"
    assert "trainer/schemas/recipe.json" in code.files
    assert not any("__pycache__" in name for name in code.files)


def receive(root: Path, artifact: Artifact, stream: bytes, **changes: Any) -> dict[str, Any]:
    request = {"store": str(root / "store"), "artifacts": [{**artifact.describe(), **changes}]}
    return cargo.receive(request, io.BytesIO(stream))


def packed(artifact: Artifact) -> bytes:
    target = io.BytesIO()
    cargo.pack([{**artifact.describe(), "folder": str(artifact.folder)}], target)
    return target.getvalue()


def test_a_damaged_artifact_is_refused(root: Path, data: Artifact) -> None:
    """One changed byte, or an end that comes too early: nothing gets into the store, nothing is left lying about."""
    stream = packed(data)
    damaged = stream.replace(b"train\n", b"trian\n", 1)
    with pytest.raises(cargo.RefusedError, match=rf"^{data.name} arrived damaged \([0-9a-f]{{12}}\); send it again$"):
        receive(root, data, damaged)
    for length in (0, 100, len(stream) // 2, len(stream) // 2 + 100):
        with pytest.raises((tarfile.TarError, cargo.RefusedError)):
            receive(root, data, stream[:length])
    assert list((root / "store").iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_written(root: Path, data: Artifact) -> None:
    """More than the disk holds is refused with what there is and what is needed."""
    with pytest.raises(cargo.RefusedError, match=r"has \d+ MiB free where \d+ MiB are needed$"):
        receive(root, data, packed(data), size=2**60)
    assert list((root / "store").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "data-x/../../outside"])
def test_an_archive_cannot_leave_its_folder(root: Path, data: Artifact, name: str) -> None:
    """Neither a path upwards nor an absolute one is followed."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(cargo.RefusedError, match="leads elsewhere"):
        receive(root, data, target.getvalue())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_an_archive_holds_plain_files_only(root: Path, data: Artifact, kind: bytes) -> None:
    """No link, device or pipe is made."""
    target = io.BytesIO()
    entry = tarfile.TarInfo("data-x")
    entry.type, entry.linkname = kind, "/etc"
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(entry)
    with pytest.raises(cargo.RefusedError, match="is no file"):
        receive(root, data, target.getvalue())


def test_two_at_a_time(root: Path, data: Artifact) -> None:
    """Whoever comes second with the same content finds it there, and that is fine."""
    assert receive(root, data, packed(data)) == receive(root, data, packed(data)) == {"received": [data.name]}
    assert [path.name for path in (root / "store").iterdir()] == [data.name]


def test_a_receiver_that_is_killed_is_swept_up(root: Path, data: Artifact) -> None:
    """What a dead receiver left goes with the next one; what a living one is at is left alone."""
    store = root / "store"
    for number in (2**22, os.getpid()):
        (store / f".incoming-{number}" / "half").mkdir(parents=True)
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (store / f".incoming-{alive.pid}").mkdir()
    shutil.rmtree(store / f".incoming-{os.getpid()}")
    receive(root, data, packed(data))
    assert sorted(path.name for path in store.iterdir()) == [f".incoming-{alive.pid}", data.name]
    alive.communicate(b"\n")


def test_a_receiver_that_is_told_to_end_leaves_nothing(root: Path, data: Artifact) -> None:
    """SIGTERM amid a transfer: the half that had come is removed."""
    bundle = make_bundle({"verb": "receive", "store": str(root / "store"), "artifacts": [data.describe()]})
    command = [sys.executable, "-I", "-c", BOOT, str(len(bundle))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(bundle + packed(data)[:10240])
        process.stdin.flush()
        while not list((root / "store").glob(".incoming-*/*/*")):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    assert list((root / "store").iterdir()) == []


def put_ssh(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def test_the_head_passes_it_on(root: Path, data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get what they lack from the head's store, at their fast addresses, each checked where it arrives."""
    put_ssh(tmp_path, FAKE_SSH, monkeypatch)
    monkeypatch.setenv("FAKE_ROOTS", str(tmp_path / "nodes"))
    code = find_code()
    others = [Host(name=name, slots=1, management=name, is_local=False, fast=f"10.99.0.{n}") for n, name in enumerate("bcd", 2)]
    lacking = {"head": [data, code], "b": [data], "c": [], "d": [code, data]}
    monkeypatch.setattr("trainer.cluster.store.find_missing", lambda *_: lacking)
    told: list[tuple[str, int, int]] = []
    assert deliver(fleet_of(root, *others), [data, code], lambda *progress: told.append(progress)) == lacking
    stores = {path.parent.name: sorted(each.name for each in path.iterdir()) for path in tmp_path.glob("nodes/*/store")}
    assert stores == {"10.99.0.2": [data.name], "10.99.0.4": [code.name, data.name]}
    assert hash_files(tmp_path / "nodes/10.99.0.2/store" / data.name, data.files) == data.digest
    assert told[0][0] == "sending data and code to head"
    assert told[-1][0] == "passing data and code on to b, d"


def test_who_could_not_take_it_is_named(root: Path, data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that the head cannot reach: its name, what was said, who tried; the head has its own by then."""
    put_ssh(tmp_path, "#!/bin/sh\necho 'ssh: connect to host 10.99.0.9 port 22: No route to host' >&2; exit 255\n", monkeypatch)
    lost = Host(name="mini", slots=1, management="mini.local", is_local=False, fast="10.99.0.9")
    monkeypatch.setattr("trainer.cluster.store.find_missing", lambda *_: {"head": [data], "mini": [data]})
    with pytest.raises(ClusterError) as caught:
        deliver(fleet_of(root, lost), [data], lambda *_: None)
    assert str(caught.value) == "mini: ssh: connect to host 10.99.0.9 port 22: No route to host (sent by head)"
    assert path_of(data, PurePosixPath(root)).is_dir()


def test_a_node_without_python_is_not_provisioned(tmp_path: Path, data: Artifact) -> None:
    """The host's name, and that provisioning is what it lacks."""
    cluster = Cluster(hosts=(HERE,), root=PurePosixPath(tmp_path / "bare"))
    with pytest.raises(ClusterError, match=r"^head: is not provisioned \("):
        find_missing(cluster, [data])


def test_a_node_that_cannot_write(root: Path, data: Artifact) -> None:
    """The host and the path are named."""
    (root / "store").write_text("in the way")
    with pytest.raises(ClusterError, match=rf"^head: {root}/store: "):
        deliver(fleet_of(root), [data], lambda *_: None)


def test_the_modules_sent_along_need_only_python(tmp_path: Path) -> None:
    """The system's own Python, isolated, answers a request with nothing of ours installed."""
    bundle = make_bundle({"verb": "missing", "store": str(tmp_path), "names": ["data-1"]})
    program = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    done = subprocess.run([program, "-I", "-c", BOOT, str(len(bundle))], input=bundle, capture_output=True, cwd="/")
    assert json.loads(done.stdout) == {"missing": ["data-1"]}, done.stderr


def test_a_sweep_ends_exactly_one_run(root: Path, tmp_path: Path) -> None:
    """Processes that name the run's plan end, even if they do not want to, and its sessions go; another run's stay."""
    stubborn = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); input()"
    plans = [tmp_path / "run" / "plan.json", tmp_path / "run-2" / "plan.json"]
    started = [
        subprocess.Popen([sys.executable, "-c", stubborn, "--plan", str(plan)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for plan in plans
    ]
    sessions = [name_session(plan, 3) for plan in plans]
    for process, session in zip(started, sessions, strict=True):
        assert process.stdout is not None
        process.stdout.readline()
        (session / "ompi.7").mkdir(parents=True)
    answer = ask(HERE, PurePosixPath(root), {"verb": "sweep", "plan": str(plans[0]), "remove": ""})
    assert answer == {"ended": 1}
    assert started[0].wait(10) == -signal.SIGKILL
    assert started[1].poll() is None
    assert [session.exists() for session in sessions] == [False, True]
    remove_sessions(plans[1])
    started[1].communicate(b"\n")
    for process in started:
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def test_results_come_from_a_host_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was full or away has folders without an adapter: the next one is asked, the one that has all wins."""
    theirs = {
        "head": {"checkpoints/last/config.json": "{}", "logs/rank-0.log": "x"},
        "near": {"adapter/adapters.safetensors": "weights", "adapter/adapter_config.json": '{"model": "/opt/model"}'},
        "far": {f"{folder}/adapters.safetensors": f"all {folder}" for folder in ("adapter", "checkpoints/last")},
    }

    def stream_from(host: Host, _root: object, _request: object, take: Callable[[IO[bytes]], None]) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w|") as archive:
            for name, text in theirs[host.name].items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
        packed.seek(0)
        take(packed)

    monkeypatch.setattr(several, "stream_from", stream_from)
    here = tmp_path / "run"
    (here / "checkpoints" / "last").mkdir(parents=True)
    (here / "checkpoints" / "last" / "adapters.safetensors").write_text("of an earlier attempt")
    kept = SimpleNamespace(run_dir=here, model_path=Path("/here/model"))
    launch = SimpleNamespace(kept=kept, plan=SimpleNamespace(run_dir=Path("/opt/run")), files={})
    near, far = (Host(name=name, slots=1, management=name, is_local=False) for name in ("near", "far"))
    several.bring_back(Cluster(hosts=(HERE, near)), launch, pytest.fail)  # type: ignore[arg-type]
    assert (here / "adapter" / "adapters.safetensors").read_text() == "weights"
    assert json.loads((here / "adapter" / "adapter_config.json").read_text()) == {"model": "/here/model"}
    assert (here / "checkpoints" / "last" / "adapters.safetensors").read_text() == "of an earlier attempt"
    several.bring_back(Cluster(hosts=(HERE, near, far)), launch, pytest.fail)  # type: ignore[arg-type]
    assert (here / "adapter" / "adapters.safetensors").read_text() == "all adapter"
    assert (here / "checkpoints" / "last" / "adapters.safetensors").read_text() == "all checkpoints/last"
    told: list[str] = []
    watcher = SimpleNamespace(on_event=lambda event: told.append(event["text"]))
    del theirs["far"], theirs["near"]  # whoever asks them now fails
    gone = {"near": "near: no answer", "far": "far: no answer"}
    several.bring_back(Cluster(hosts=(HERE, near, far)), launch, watcher, gone)  # type: ignore[arg-type]
    assert told == [f"{name}: not asked for the results: {error}" for name, error in gone.items()]


def test_the_command_line_on_one_machine(tmp_path: Path) -> None:
    """On this machine alone there is nothing to deliver; the role that calls this reads that nothing changed."""
    command = [sys.executable, "-P", "-m", "trainer.cluster.deliver", "--inventory", "inventory/hosts.yml"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=env)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"changed": False, "hosts": {"this-machine": {}}})


def test_the_command_line_tells_what_is_wrong(tmp_path: Path) -> None:
    """A broken inventory ends with its own exit code and message, and no JSON."""
    command = [sys.executable, "-P", "-m", "trainer.cluster.deliver", "--inventory", str(tmp_path / "no.yml")]
    env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path}/no.yml: cannot be read: No such file or directory\n"
