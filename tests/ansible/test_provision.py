"""site.yml, verify.yml and teardown.yml on the laboratory's hosts: over real ssh, with real sudo, from passwords only.

The tests of this file stand on each other, in their order: one laboratory goes from bare to cluster and back.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ansible.playbooks import ROOT, arguments, changes, describe_host, play, play_json
from tests.lab.laboratory import Laboratory

INTERRUPTIONS = 10
TASK = re.compile(r"^TASK \[(.*)\] \*+$")


@pytest.fixture(scope="module")
def before(bare_lab: Laboratory) -> dict[str, dict[str, str]]:
    """The hosts as they were before anything was done to them."""
    return {host.name: describe_host(host) for host in bare_lab.hosts}


@pytest.fixture(scope="module")
def predicted(bare_lab: Laboratory, before: dict[str, dict[str, str]]) -> set[tuple[str, str]]:
    """What ``--check`` says that site.yml would change on the bare hosts, which it leaves as they are."""
    answer = play_json(bare_lab, "site.yml", "--check", "--diff", "--skip-tags", "artifacts")
    assert {host.name: describe_host(host) for host in bare_lab.hosts} == before
    return changes(answer)


def test_check_predicts_what_the_run_changes(bare_lab: Laboratory, predicted: set[tuple[str, str]]) -> None:
    """The first run changes on each host what ``--check`` said, task by task."""
    done = changes(play_json(bare_lab, "site.yml", "--skip-tags", "artifacts"))
    assert {host for host, _ in done} >= {host.name for host in bare_lab.hosts}
    on_nodes = {change for change in done if change[0] != "localhost"}
    assert on_nodes == {change for change in predicted if change[0] != "localhost"}


def test_second_run_changes_nothing(bare_lab: Laboratory) -> None:
    """A cluster that is one already is left alone, on every host."""
    answer = play_json(bare_lab, "site.yml", "--skip-tags", "artifacts")
    assert changes(answer) == set()
    assert {name: stats["changed"] for name, stats in answer["stats"].items()} == dict.fromkeys(answer["stats"], 0)


def test_check_of_a_cluster_predicts_nothing(bare_lab: Laboratory) -> None:
    """Where nothing is to be done, ``--check`` says so."""
    assert changes(play_json(bare_lab, "site.yml", "--check", "--diff", "--skip-tags", "artifacts")) == set()


def test_mesh(bare_lab: Laboratory) -> None:
    """Every node reaches every node, itself included, by name and by both addresses, without a question."""
    for here in bare_lab.hosts:
        for there in bare_lab.hosts:
            for name in (there.name, there.address, there.fast_address):
                answer = here.run(["ssh", "-o", "BatchMode=yes", name, "id -un; hostname"], user=here.user)
                assert answer.stdout.split() == [there.user, there.name]
        config = here.run(["cat", f"/home/{here.user}/.ssh/flotilla/config"]).stdout
        assert "StrictHostKeyChecking no" not in config
        assert "StrictHostKeyChecking yes" in config


def test_control_machine_needs_no_password(bare_lab: Laboratory) -> None:
    """After the first run ansible's own connection works by key; only sudo still asks."""
    command = [word for word in arguments(bare_lab, "site.yml", "--tags", "ssh_mesh") if word != "--connection-password-file"]
    command.remove(str(bare_lab.password_file))
    done = bare_lab.control(command, check=False, cwd=ROOT / "ansible")
    assert done.returncode == 0, done.stdout[-3000:]


def test_verify(bare_lab: Laboratory) -> None:
    """verify.yml meets the ranks of both hosts and sees the fast link carry the bytes; the counters outside agree."""
    interface = Path("sys/class/net/tb0/statistics/tx_bytes")
    sent = [int(host.run(["cat", f"/{interface}"]).stdout) for host in bare_lab.hosts]
    assert "2 ranks, fast link: " in play(bare_lab, "verify.yml").stdout
    now = [int(host.run(["cat", f"/{interface}"]).stdout) for host in bare_lab.hosts]
    assert min(after - before for before, after in zip(sent, now, strict=True)) > 10 * 2**20


def test_verify_without_the_fast_link(bare_lab: Laboratory) -> None:
    """With the cable pulled verify.yml fails and says which link is down."""
    bare_lab.cut("beta", "fast")
    try:
        done = play(bare_lab, "verify.yml", check=False)
    finally:
        bare_lab.mend("beta", "fast")
    assert done.returncode != 0
    assert "the fast link is not up" in done.stdout


def _examine(lab: Laboratory) -> subprocess.CompletedProcess[str]:
    program = "import sys; from trainer.control import at_boundary, doctor\n"
    program += "sys.exit(at_boundary(lambda: doctor(sys.argv[1], as_json=False)))"
    return lab.control([sys.executable, "-P", "-c", program, str(lab.inventory)], check=False, cwd=ROOT)


def test_doctor(bare_lab: Laboratory) -> None:
    """A cluster has no problem; with a cable pulled there is one, named with its host, and the exit code is 3."""
    healthy = _examine(bare_lab)
    assert (healthy.returncode, healthy.stdout.count("no problem on 2 hosts")) == (0, 1), healthy.stdout
    bare_lab.cut("beta", "fast")
    try:
        ill = _examine(bare_lab)
    finally:
        bare_lab.mend("beta", "fast")
    assert (ill.returncode, ill.stdout.count("beta: Nothing is connected to the fast interface")) == (3, 1), ill.stdout


def test_teardown_leaves_the_hosts_as_they_were(bare_lab: Laboratory, before: dict[str, dict[str, str]]) -> None:
    """After teardown files, addresses and ssh configuration are those of before; a second teardown changes nothing."""
    play(bare_lab, "teardown.yml")
    for host in bare_lab.hosts:
        now, then = describe_host(host), before[host.name]
        assert {key: (then.get(key), now.get(key)) for key in now.keys() | then.keys() if now.get(key) != then.get(key)} == {}
    assert changes(play_json(bare_lab, "teardown.yml")) == set()


def _follow(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if match := TASK.match(line.rstrip()):
            yield match[1]


@pytest.mark.timeout(1800)  # thirteen playbooks
def test_interrupted_run_converges(bare_lab: Laboratory) -> None:
    """Killed at ten points, some amid the installation, each time further on, site.yml still ends in a cluster."""
    chance = random.Random(20261124)
    command = bare_lab.control_argv(arguments(bare_lab, "site.yml", "--skip-tags", "artifacts"))
    for victim in sorted(chance.sample(range(6, 48), INTERRUPTIONS)):
        with subprocess.Popen(
            command,
            cwd=ROOT / "ansible",
            env=bare_lab.control_env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            for number, _ in enumerate(_follow(process)):
                if number == victim:
                    process.send_signal(signal.SIGKILL)
                    break
    play(bare_lab, "site.yml", "--skip-tags", "artifacts")
    assert changes(play_json(bare_lab, "site.yml", "--skip-tags", "artifacts")) == set()
    assert "2 ranks, fast link: " in play(bare_lab, "verify.yml").stdout
