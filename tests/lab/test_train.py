"""`./inv train` across the hosts of a laboratory: over ssh and MPI, on the fast link or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.lab.faults.campaign import Campaign
from tests.lab.faults.faults import FAULTS
from tests.lab.laboratory import LabHost
from tests.lab.shipyard import SETTINGS, SOON_S, Shipyard, Trained, finished, processes, wait_until_empty
from trainer.cluster.store import find_code
from trainer.paths import PROJECT_ROOT


@pytest.fixture(scope="module")
def alone(yard: Shipyard) -> Trained:
    """Return the run of one machine, which the others must equal."""
    return yard.train(0)


@pytest.mark.parametrize("num_hosts", [2, 3])
def test_several_hosts_train_as_one_machine(yard: Shipyard, alone: Trained, num_hosts: int) -> None:
    """The same losses to 1e-4, and 99 % of all bytes on the fast link by counters read from outside."""
    hosts = yard.lab.hosts[:num_hosts]
    seen: list[dict[str, int]] = []
    steps = SETTINGS["train.steps"]
    trained = yard.train_and(lambda *_: seen.append(yard.read_counters(hosts)), num_hosts, "connected", f"step {steps}/{steps}")
    assert trained.code == 0, trained.said
    assert trained.curve == pytest.approx(alone.curve, abs=1e-4)
    fast, slow = (seen[1][name] - seen[0][name] for name in ("tb0", "wifi0"))
    assert fast / (fast + slow) >= 0.99, (fast, slow)
    traffic = trained.summary["traffic"]
    assert traffic["share"] >= 0.99
    assert {name: set(counters) for name, counters in traffic["hosts"].items()} == {h.name: {"tb0", "wifi0"} for h in hosts}
    assert re.search(r"traffic +│ (100\.0|99\.\d)% of \d+ MB over 10\.99\.", trained.said)
    assert wait_until_empty(hosts) == []


def test_the_results_come_home(yard: Shipyard) -> None:
    """Adapter and last checkpoint are in the control machine's folder, for its own copy of the model; the hosts agree."""
    trained = yard.train(2)
    assert trained.code == 0, trained.said
    assert trained.folder is not None
    settings = json.loads((trained.folder / "adapter" / "adapter_config.json").read_text())
    assert settings["model"] == str(yard.model)
    ours = (trained.folder / "adapter" / "adapters.safetensors").read_bytes()
    theirs = [
        host.root / f"opt/flotilla/runs/{trained.folder.name}/adapter/adapters.safetensors" for host in yard.lab.hosts[:2]
    ]
    assert [path.read_bytes() == ours for path in theirs] == [True, True]
    assert (trained.folder / "checkpoints" / "last" / "adapters.safetensors").is_file()
    assert "sending" not in trained.said or "model" not in trained.said  # it was there already
    stores = [
        {path.parent.name: path.read_bytes() for path in (host.root / "opt/flotilla/cache/tokens").glob("*/index.json")}
        for host in yard.lab.hosts[:2]
    ]
    assert stores[0]
    assert stores[0] == stores[1]  # each host tokenised for itself, and to the same


def test_the_ring_equals_mpi(yard: Shipyard, alone: Trained) -> None:
    """MLX's ring over the same addresses: the same losses to 1e-5, on the same link."""
    trained = yard.train(2, launch__backend="ring")
    assert trained.code == 0, trained.said
    assert trained.curve == pytest.approx(alone.curve, abs=1e-5)
    assert trained.summary["traffic"]["share"] >= 0.99


def test_without_the_fast_link_nothing_is_trained(yard: Shipyard, cut_off: LabHost) -> None:
    """Exit 3 before anything is sent, with the host, the interface and both ways on; no run's folder is made."""
    trained = yard.train(2)
    assert trained.code == 3
    assert trained.folder is None
    assert "the fast link is not up; nothing was sent or started:" in trained.said
    assert f"  {cut_off.name}: tb0, which has the address {cut_off.fast_address}, is down or has no cable" in trained.said
    assert "--allow-slow-link trains over 10.77." in trained.said
    assert f"  Plug the fast cable of {cut_off.name} in, at both ends" in trained.said
    assert processes(yard.lab.hosts) == []


def test_the_slow_link_is_taken_when_it_is_allowed(yard: Shipyard, alone: Trained, cut_off: LabHost) -> None:
    """With --allow-slow-link the same run goes over the management network, and says so at the beginning and the end."""
    trained = yard.train(2, "--allow-slow-link")
    assert trained.code == 0, trained.said
    assert "the fast link is not up, so the gradients go over 10.77." in trained.said
    assert trained.summary["traffic"]["network"].startswith("10.77.")
    assert trained.curve == pytest.approx(alone.curve, abs=1e-4)


def test_a_killed_rank_ends_all_hosts(yard: Shipyard) -> None:
    """A rank killed on the last host: exit 75 within seconds, no process left anywhere, what had been saved is there."""
    hosts = yard.lab.hosts
    killed_at = 0.0

    def kill(_: subprocess.Popen[str], __: Path) -> None:
        nonlocal killed_at
        hosts[-1].run(["pkill", "-KILL", "-f", "trainer train"])
        killed_at = time.monotonic()

    trained = yard.disturb(kill, 3)
    assert time.monotonic() - killed_at < SOON_S
    assert trained.code == 75, trained.said
    assert re.search("a rank was killed from outside|the connection to a rank.* broke off", trained.said)
    assert wait_until_empty(hosts) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_the_adapter(yard: Shipyard, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM on the control machine: exit 130, the adapter so far comes home, no process is left."""
    trained = yard.disturb(lambda process, _: process.send_signal(number), 2)
    assert trained.code == 130, trained.said
    assert trained.folder is not None
    assert (trained.folder / "adapter" / "adapters.safetensors").is_file()
    assert wait_until_empty(yard.lab.hosts) == []


def test_a_lost_control_machine_leaves_no_rank(yard: Shipyard) -> None:
    """The control side is killed outright: the ranks stop after the step, keep their adapter on the hosts, and are gone."""
    hosts = yard.lab.hosts[:2]
    folders = []

    def kill(process: subprocess.Popen[str], folder: Path) -> None:
        folders.append(folder)
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGKILL)

    yard.disturb(kill, 2)
    assert wait_until_empty(hosts) == []
    assert [adapter_on(host, folders[0]).is_file() for host in hosts] == [True, True]


def test_an_unreachable_host_is_named(yard: Shipyard) -> None:
    """A host that does not answer: exit 3, its name and what ssh said, within seconds; nothing is started elsewhere."""
    host = yard.lab.hosts[1]
    yard.lab.cut(host, "slow")
    try:
        trained = yard.train(3)
    finally:
        yard.lab.mend(host, "slow")
    assert trained.code == 3
    assert f"{host.name}: cannot be reached by ssh (" in trained.said
    assert trained.folder is None


def test_a_host_without_room_is_refused_with_the_remedy(yard: Shipyard) -> None:
    """The doctor's quick look comes before everything is sent: exit 3, the host, what is wrong, and what mends it."""
    host = yard.lab.hosts[1]
    host.fill_disk(200)
    try:
        trained = yard.train(2)
    finally:
        host.free_disk()
    assert trained.code == 3
    assert trained.folder is None
    assert "nothing was sent or started:" in trained.said
    assert re.search(rf"{host.name}: The disk is full \(\d+ MiB free on /\)\n  Make room on {host.name}", trained.said)


def test_a_damaged_store_is_never_used(yard: Shipyard) -> None:
    """A transfer that breaks off leaves neither a half artifact nor rubbish; the next run sends it again."""
    host = yard.lab.hosts[1]
    store = host.root / "opt/flotilla/store"
    for folder in store.glob("data-*"):
        shutil.rmtree(folder)
    (store / ".incoming-4194304").mkdir()
    trained = yard.train(2, train__steps=1)
    assert trained.code == 0, trained.said
    assert "data" in trained.said
    assert len(list(store.glob("data-*"))) == 1
    assert not list(store.glob(".incoming-*"))


def test_the_control_machine_may_be_the_head(yard: Shipyard, alone: Trained) -> None:
    """Started on the first host itself, as its user: it runs mpirun without ssh, with the same layout and result."""
    here = yard.lab.hosts[0]
    table = yaml.safe_load(yard.inventory(2).read_text())
    table["all"]["children"]["cluster"]["hosts"][here.name]["ansible_connection"] = "local"
    home = here.root / "home" / here.user
    for name, source in (("model", yard.model), ("data", yard.data)):
        shutil.copytree(source, home / name, dirs_exist_ok=True)
    (home / "hosts.yml").write_text(yaml.safe_dump(table, sort_keys=False))
    settings = {**SETTINGS, "model.source": f"/home/{here.user}/model", "data.path": f"/home/{here.user}/data"}
    request = {"inventory": f"/home/{here.user}/hosts.yml", "overrides": [f"{key}={value}" for key, value in settings.items()]}
    program = (
        "import json, sys; from pathlib import Path; from trainer.control import Request, at_boundary, train\n"
        "request = Request(**json.loads(sys.argv[1]))\n"
        "sys.exit(at_boundary(lambda: train(request, False, Path('runs').absolute())))"
    )
    code = f"/opt/flotilla/store/{find_code().name}"
    command = ["/opt/flotilla/env/bin/python", "-P", "-c", program, json.dumps(request)]
    done = here.run(command, user=here.user, env={"PYTHONPATH": code}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = finished(0, done.stderr, home / "runs")
    assert trained.curve == pytest.approx(alone.curve, abs=1e-4)
    assert trained.summary["traffic"]["share"] >= 0.99
    assert trained.folder is not None
    assert (trained.folder / "adapter" / "adapters.safetensors").is_file()


def test_linkcheck(yard: Shipyard) -> None:
    """The check that verify.yml runs: all ranks meet, the sum is right, nearly all bytes on the fast link, nothing is left."""
    program = [sys.executable, "-P", "-m", "trainer.cluster.linkcheck", "--inventory", str(yard.inventory(3))]
    done = yard.lab.control(program, env={"PYTHONPATH": str(PROJECT_ROOT)}, cwd=PROJECT_ROOT, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["world_size"], seen["correct"]) == (3, True)
    assert seen["share_fast"] >= 0.99
    assert {name: set(counters) for name, counters in seen["hosts"].items()} == {
        host.name: {"tb0", "wifi0"} for host in yard.lab.hosts
    }
    assert wait_until_empty(yard.lab.hosts) == []


@pytest.fixture(scope="module")
def campaign(yard: Shipyard) -> Campaign:
    """Return what strikes runs on the provisioned hosts."""
    return Campaign(yard)


@pytest.mark.parametrize(
    "name",
    [
        "a host is frozen",
        "the fast cable is out for good",
        "the newest checkpoint is altered, a rank killed",
        "the control machine reboots",
    ],
)
def test_a_struck_run_comes_to_its_end(campaign: Campaign, name: str) -> None:
    """It ends well by itself or resumed; each sample once; the same bits at the same number of ranks; nothing is left."""
    result = campaign.strike(next(fault for fault in FAULTS if fault.name == name), 2, seed=6)
    assert result.problems == []
    assert result.again_s is not None


def test_a_second_run_is_refused_and_the_first_is_stopped_from_outside(yard: Shipyard) -> None:
    """While one goes on: another ends with 3 and names it, status tells of it, stop ends it cleanly, with a checkpoint."""
    told: list[subprocess.CompletedProcess[str]] = []

    def look(_: subprocess.Popen[str], folder: Path) -> None:
        env = {"FLOTILLA_RUNS": str(folder.parent)}
        invoke = str(Path(sys.prefix) / "bin" / "invoke")
        for command in (yard.command(3), [invoke, "status", "-i", str(yard.inventory(3))], [invoke, "stop"]):
            told.append(yard.lab.control(command, env=env, check=False, cwd=PROJECT_ROOT))

    first = yard.disturb(look, 2)
    second, status, stop = told
    assert first.folder is not None
    assert second.returncode == 3
    assert re.match(rf"alpha is busy: the run {first.folder.name} has it \(process \d+ on .*\./inv stop ends it", second.stderr)
    assert f"run {first.folder}\n" in status.stdout
    assert re.search(r"step \d+ of 100000, \d+ s ago: loss", status.stdout)
    assert re.search(rf"beta: the run {first.folder.name} has it \(process \d+ on beta", status.stdout)
    assert "gamma: free" in status.stdout
    assert stop.stdout == f"{first.folder.name}: has stopped; ./inv train --resume goes on with it\n"
    assert first.code == 130
    steps = first.of("step")[-1]["step"]
    assert first.of("checkpoint")[-1]["step"] == steps
    assert wait_until_empty(yard.lab.hosts) == []


def adapter_on(host: LabHost, folder: Path) -> Path:
    """Return where a host keeps the adapter of the run that has ``folder`` on the control machine."""
    return host.root / "opt/flotilla/runs" / folder.name / "adapter/adapters.safetensors"


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, the last ones first."""
    shown = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, shown.splitlines())}
    found = [pid]
    for parent in found:
        found += [child for child, own in parents.items() if own == parent]
    return found[::-1]
