"""A lock is held by a living process, however it ends; status and stop go by it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import jobs
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.lock import Lock, find_holder
from trainer.errors import ClusterError
from trainer.jobs import Claim, find_jobs, lock_file, show_status, stop_jobs
from trainer.paths import PROJECT_ROOT

HERE = Host(name="here", slots=1, management="localhost", is_local=True)
MINI = Host(name="mini", slots=1, management="10.0.0.2", is_local=False)
MAXI = Host(name="maxi", slots=1, management="10.0.0.3", is_local=False)

HOLDING = """
import sys, time
from pathlib import Path
from trainer.cluster.inventory import Cluster, Host
from trainer.jobs import Claim
hosts = (Host(name="mini", slots=1, management="10.0.0.2", is_local=False),)
try:
    with Claim(Cluster(hosts=hosts), Path(sys.argv[1])) as claim:
        claim.name(Path(sys.argv[1]) / "20260101-000000-mine")
        print("held", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    pass
"""


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield another process that has a run on the host mini."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_taken_host_is_refused_and_named(holding: subprocess.Popen[str], tmp_path: Path) -> None:
    """Another run on a cluster that shares one host: exit 3, the host, the run and its process; other hosts are free."""
    with pytest.raises(ClusterError) as refused, Claim(Cluster(hosts=(MAXI, MINI)), tmp_path):
        pass
    assert str(refused.value).startswith(
        f"mini is busy: the run 20260101-000000-mine has it (process {holding.pid} on {os.uname().nodename}, for 0 s); "
    )
    for hosts in ((MAXI,), (HERE,)):
        with Claim(Cluster(hosts=hosts), tmp_path):
            assert find_holder(lock_file(hosts[0], tmp_path)) is not None
        assert find_holder(lock_file(hosts[0], tmp_path)) is None


def test_a_killed_holder_holds_nothing(holding: subprocess.Popen[str], tmp_path: Path) -> None:
    """After SIGKILL the file is still there and says who it was, but the lock is free."""
    holding.kill()
    holding.wait()
    assert json.loads(lock_file(MINI, tmp_path).read_text())["pid"] == holding.pid
    assert find_jobs(tmp_path) == []
    with Claim(Cluster(hosts=(MINI,)), tmp_path):
        assert [job["pid"] for job in find_jobs(tmp_path)] == [os.getpid()]


def test_status_names_what_is_going_on(holding: subprocess.Popen[str], tmp_path: Path) -> None:
    """The run's folder and its process."""
    run, process, *_ = show_status(tmp_path, None)
    assert run == f"run {tmp_path / '20260101-000000-mine'}"
    assert process == f"  process {holding.pid} on {os.uname().nodename}, for 0 s"


def test_stop_ends_the_run_by_a_signal_and_waits(holding: subprocess.Popen[str], tmp_path: Path) -> None:
    """SIGTERM to the process that holds the lock; another run's name stops nothing."""
    said: list[str] = []
    assert stop_jobs(tmp_path, "another", None, at_once=False, say=said.append) == 0
    assert holding.poll() is None
    assert stop_jobs(tmp_path, "20260101-000000-mine", None, at_once=False, say=said.append) == 1
    assert holding.wait(10) == -signal.SIGTERM
    assert said == ["20260101-000000-mine: has stopped; ./inv train --resume goes on with it"]


def test_stop_by_name_leaves_other_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the hosts of an inventory only the run that was named is ended, without a name any, whoever leads it."""
    swept = []

    def ask(_host: Host, _root: object, request: dict[str, str]) -> dict[str, object]:
        if request["verb"] == "holder":
            return {"holder": {"run": "/opt/flotilla/runs/20260101-000000-theirs"}}
        swept.append(request["plan"])
        return {"ended": 2}

    monkeypatch.setattr(jobs, "ask", ask)
    cluster, said = Cluster(hosts=(MINI,)), []  # type: ignore[var-annotated]
    assert stop_jobs(tmp_path, "20260101-000000-mine", cluster, at_once=False, say=said.append) == 0
    assert (swept, said) == ([], [])
    for name in ("20260101-000000-theirs", ""):
        assert stop_jobs(tmp_path, name, cluster, at_once=False, say=said.append) == 1
    assert swept == ["/opt/flotilla/runs/20260101-000000-theirs/plan.json"] * 2


def test_a_lock_is_asked_for_without_being_taken_away(tmp_path: Path) -> None:
    """Asking who holds a lock disturbs neither the holder nor the next."""
    path = tmp_path / "lock"
    assert find_holder(path) is None
    with Lock(path) as lock:
        assert lock.take({"run": "a" * 100})
        lock.tell({"run": "b"})
        assert [find_holder(path) for _ in range(3)] == [{"run": "b"}] * 3
        assert not Lock(path).take({"run": "c"}, patience_s=0)
    assert Lock(path).take({"run": "d"})


def test_a_lock_that_is_removed_goes_to_who_waits(tmp_path: Path) -> None:
    """Whoever waits for the file that its holder removes gets the lock on a file that others find."""
    path = tmp_path / "locks" / "here"
    first, second = Lock(path), Lock(path)
    assert first.take({"who": "first"})
    assert not second.take({"who": "second"}, patience_s=0.1)
    waiting = threading.Thread(target=lambda: second.take({"who": "second"}, patience_s=30.0))
    waiting.start()
    first.remove()
    waiting.join()
    assert find_holder(path) == {"who": "second"}
    assert not Lock(path).take({"who": "third"}, patience_s=0.1)
    second.remove()
    assert not path.exists()


def test_a_claim_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not even the folder of runs, if it was not there."""
    with Claim(Cluster(hosts=(HERE,)), tmp_path / "runs"):
        assert (tmp_path / "runs").is_dir()
    assert not (tmp_path / "runs").exists()
