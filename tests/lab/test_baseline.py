"""`./inv baseline` and `./inv rehearse` on the hosts of a laboratory: real links, real collectives, a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.laboratory import LabHost
from tests.lab.shipyard import Shipyard, wait_until_empty
from trainer.measure.store import save_baseline
from trainer.paths import PROJECT_ROOT

MEGABIT = 1e6 / 8


@dataclass(frozen=True)
class Measured:
    """How a baseline ended: exit code, what it said, where baselines are kept."""

    code: int
    said: str
    folder: Path

    @property
    def baseline(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "latest" / "baseline.json").read_text("utf-8"))
        return found


def measure(yard: Shipyard, num_hosts: int, **settings: Any) -> Measured:
    """Take a quick baseline of the first hosts."""
    folder = yard.runs()
    done = yard.lab.control(
        yard.command(num_hosts, "--quick", task="baseline", **settings),
        env={"FLOTILLA_BASELINES": str(folder)},
        check=False,
        cwd=PROJECT_ROOT,
    )
    return Measured(done.returncode, done.stdout + done.stderr, folder)


@pytest.fixture(scope="module")
def pair(yard: Shipyard) -> Measured:
    return measure(yard, 2)


def test_every_link_is_measured_as_it_is(yard: Shipyard, pair: Measured) -> None:
    """The slow link has its 100 Mbit/s both ways, the fast one far more, each carried by its own interface."""
    assert pair.code == 0, pair.said
    links = {link["is_fast"]: link for link in pair.baseline["links"]}
    names = [host.name for host in yard.lab.hosts[:2]]
    assert links[True]["carried_by"] == dict.fromkeys(names, "tb0")
    assert links[False]["carried_by"] == dict.fromkeys(names, "wifi0")
    for way in ("up_bytes_per_s", "down_bytes_per_s"):
        assert 70 * MEGABIT < links[False][way]["median"] < 105 * MEGABIT
        assert links[True][way]["median"] > 5 * links[False][way]["median"]


def test_both_backends_are_measured_on_both_networks(pair: Measured) -> None:
    """The run's own payload and a sweep of sizes; larger vectors take longer on the slow link."""
    baseline = pair.baseline
    fast, slow = (next(link["network"] for link in baseline["links"] if link["is_fast"] == kind) for kind in (True, False))
    ways = {(each["network"], each["backend"]) for each in baseline["all_reduce"]}
    assert ways == {(network, backend) for network in (fast, slow) for backend in ("mpi", "ring")}
    payload = baseline["job"]["payload_bytes"]
    assert all(payload in [size["bytes"] for size in each["sweep"]] for each in baseline["all_reduce"])
    times = [size["seconds"]["median"] for each in baseline["all_reduce"] if each["network"] == slow for size in each["sweep"]]
    assert times[1] > times[0]
    assert times[3] > times[2]


def test_hosts_are_measured_under_their_names(yard: Shipyard, pair: Measured) -> None:
    """Inference, training and memory of each; the page of figures says how to go on."""
    hosts = pair.baseline["hosts"]
    assert list(hosts) == [host.name for host in yard.lab.hosts[:2]]
    for host in hosts.values():
        assert host["inference"]["generation_tokens_per_s"]["median"] > 0
        assert len(host["training"]["micro_batches"]) >= 3
        assert 10 < host["training"]["peak_memory_mib"] < 2000
    assert pair.baseline["verdict"]["headline"] in " ".join(pair.said.split())


def test_nothing_of_it_is_left_on_the_hosts(yard: Shipyard, pair: Measured) -> None:
    """No process, no folder of a run."""
    assert pair.code == 0
    assert wait_until_empty(yard.lab.hosts) == []
    assert [list((host.root / "opt/flotilla/runs").glob("baseline-*")) for host in yard.lab.hosts[:2]] == [[], []]


def test_a_run_is_foretold_by_it(yard: Shipyard, pair: Measured) -> None:
    """Before the first step the prediction is said; the summary has it beside what was measured."""
    runs = yard.runs()
    env = {"FLOTILLA_RUNS": str(runs), "FLOTILLA_BASELINES": str(pair.folder)}
    done = yard.lab.control(yard.command(2), env=env, check=False, cwd=PROJECT_ROOT)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.index("the baseline predicts") < said.index("step 10/10")
    compared = json.loads((runs / "latest" / "summary.json").read_text("utf-8"))["baseline"]
    assert compared["host_alone"] in [host.name for host in yard.lab.hosts[:2]]
    assert compared["measured_speedup"] > 0
    assert "predicted" in said[said.index("speed-up") :]


def test_a_rehearsal_plays_the_real_links(yard: Shipyard, pair: Measured) -> None:
    """Three hosts, foretold from two: the table has both; without such a route in the baseline, a sentence."""
    program = [
        str(Path(sys.prefix) / "bin" / "invoke"),
        "rehearse",
        "-i",
        str(yard.inventory(3)),
        "--hosts",
        "2,3",
        "--steps",
        "4",
    ]
    env = {"FLOTILLA_BASELINES": str(pair.folder)}
    done = yard.lab.control(program, env=env, check=False, cwd=PROJECT_ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("│")[1].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    assert rows == ["2", "3"]
    refused = yard.lab.control([*program, "--backend", "jaccl"], env=env, check=False, cwd=PROJECT_ROOT)
    assert refused.returncode == 2
    assert "has no all-reduce of jaccl over a fast link; measure it first" in refused.stderr


def test_a_host_that_is_lost_meanwhile(yard: Shipyard) -> None:
    """A sentence, no traceback, nothing kept, nothing left behind on the others."""
    folder = yard.runs()
    command = yard.lab.control_argv(yard.command(2, "--quick", task="baseline"))
    env = {**yard.lab.control_env, "FLOTILLA_BASELINES": str(folder)}
    pipe, lost = subprocess.PIPE, yard.lab.hosts[1]
    with subprocess.Popen(command, env=env, cwd=PROJECT_ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "connected and agreed" in line:
                _kill_ranks(lost)
        code = process.wait(60)
    assert code == 75, said
    assert "Traceback" not in said
    assert not folder.exists() or list(folder.iterdir()) == []
    assert wait_until_empty(yard.lab.hosts) == []


def _kill_ranks(host: LabHost) -> None:
    for line in host.run(["ps", "-eo", "pid,args"]).stdout.splitlines():
        if "-m trainer measure" in line:
            host.run(["kill", "-9", line.split()[0]], check=False)


def test_a_link_that_is_down_is_said(yard: Shipyard, cut_off: LabHost) -> None:
    """What is there is measured, and the fast link is named as what is missing."""
    measured = measure(yard, 2)
    assert measured.code == 0, measured.said
    assert [link["is_fast"] for link in measured.baseline["links"] if not link["problem"]] == [False]
    assert any("is down, so it was not measured" in problem for problem in measured.baseline["problems"])


def test_a_slow_link_and_a_large_adapter(yard: Shipyard, cut_off: LabHost) -> None:
    """Worse than alone: the verdict says it, a run hears it before its first step, and so it comes."""
    large = {"adapter__rank": 512}  # 3 MiB a step over 100 Mbit/s, for a few milliseconds of computing
    measured = measure(yard, 2, **large)
    verdict = measured.baseline["verdict"]
    assert verdict["choice"] == "alone", measured.said
    assert "together is slower" in verdict["headline"]
    runs = yard.runs()
    env = {"FLOTILLA_RUNS": str(runs), "FLOTILLA_BASELINES": str(measured.folder)}
    command = yard.command(2, "--allow-slow-link", **large)
    done = yard.lab.control(command, env=env, check=False, cwd=PROJECT_ROOT)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert done.stderr.index("slower than") < done.stderr.index("step 1/10")
    compared = json.loads((runs / "latest" / "summary.json").read_text("utf-8"))["baseline"]
    assert compared["predicted_speedup"] < 1
    assert compared["measured_speedup"] < 1


def test_a_tiny_job_is_not_worth_several_machines(pair: Measured) -> None:
    """Ten steps of a tiny model on a fast link: alone, and the verdict has the reason in its first sentence."""
    verdict = pair.baseline["verdict"]
    assert verdict["choice"] == "alone"
    assert any(reason in verdict["headline"] for reason in ("too little to be worth", "next to nothing", "is slower"))


def test_the_pages_of_run_and_baseline(yard: Shipyard, pair: Measured) -> None:
    """A baseline's page names both hosts and draws both links; the page of a run that it foretold has both speed-ups."""
    page = (pair.folder / "latest" / "report.html").read_text("utf-8")
    assert all(host.name in page for host in yard.lab.hosts[:2])
    assert page.count('class="edge c') == 2
    runs = yard.runs()
    env = {"FLOTILLA_RUNS": str(runs), "FLOTILLA_BASELINES": str(pair.folder)}
    done = yard.lab.control(yard.command(2), env=env, check=False, cwd=PROJECT_ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((runs / "latest" / "summary.json").read_text("utf-8"))
    assert summary["hosts"] == dict.fromkeys([host.name for host in yard.lab.hosts[:2]], 1)
    page = (runs / "latest" / "report.html").read_text("utf-8")
    assert 'data-key="/baseline/measured_speedup"' in page
    assert all(f'data-series="{host.name}"' in page for host in yard.lab.hosts[:2])
    assert f"report {(runs / 'latest').resolve() / 'report.html'}" in done.stderr


def test_an_older_file_is_passed_over(yard: Shipyard, pair: Measured, tmp_path: Path) -> None:
    """A run beside a baseline of another version trains without a forecast; comparing with it is refused in a sentence."""
    save_baseline({**pair.baseline, "version": 0}, tmp_path)
    env = {"FLOTILLA_RUNS": str(yard.runs()), "FLOTILLA_BASELINES": str(tmp_path)}
    done = yard.lab.control(yard.command(2), env=env, check=False, cwd=PROJECT_ROOT)
    assert done.returncode == 0
    assert "the baseline predicts" not in done.stdout + done.stderr
    program = [str(Path(sys.prefix) / "bin" / "invoke"), "baseline", "--compare", "latest"]
    refused = yard.lab.control(program, env=env, check=False, cwd=PROJECT_ROOT)
    assert refused.returncode == 2
    assert "is of version 0, this Flotilla reads 1; measure again with ./inv baseline" in refused.stderr
