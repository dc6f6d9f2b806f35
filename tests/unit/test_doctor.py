"""The doctor's judges on recorded answers, its evidence and remedies, and the probe's frames."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from doctor_answers import BRIDGE, CLUSTER, HOSTS, ILL_DARWIN, ILL_LINUX, PINS, SSH, darwin, known, linux, mac_says, see
from rich.console import Console

from trainer.cluster.doctor.checks import CHECKS
from trainer.cluster.doctor.judge import judge_all
from trainer.cluster.doctor.probe import make_views, parse, read_pins
from trainer.cluster.doctor.report import count_problems, print_report, render_json
from trainer.cluster.doctor.script import list_items, make_script
from trainer.cluster.doctor.view import DARWIN, LINUX, Answers, Output
from trainer.cluster.inventory import Cluster, Host


@pytest.mark.parametrize("machine", [linux, darwin])
def test_healthy_hosts_have_no_finding(machine) -> None:
    """Recorded answers of healthy hosts of one kind lead to no problem, no note, and nothing unknown."""
    assert see({**machine(1)}, {**machine(2), "user": (0, "u1")}) == []


ROWS = [(linux, check, changes) for check, changes in ILL_LINUX.items()]
ROWS += [(darwin, check, changes) for check, changes in ILL_DARWIN.items()]


@pytest.mark.parametrize(("machine", "check", "changes"), ROWS, ids=[f"{row[0].__name__}-{row[1]}" for row in ROWS])
def test_a_failure_is_found_and_nothing_else(machine, check: str, changes: Mapping[str, tuple[int, str]]) -> None:
    """One changed answer of the second host leads to that failure there, with evidence and a way out, and to no other."""
    findings = see(machine(1), {**machine(2), "user": (0, "u1"), **changes})
    assert known(findings) == [(check, "book")]
    (finding,) = [each for each in findings if each.severity != "unknown"]
    assert finding.why
    assert finding.detail
    assert finding.remedy or finding.by_hand
    assert "{" not in finding.by_hand
    assert finding.evidence
    for command, _ in finding.evidence:
        assert command
        assert not re.search(r"\n|\bexec |\[ -|\$\(|MPIRUN|LIBMPI|session_path", command), command
        assert ("ifconfig" in command) <= (machine is darwin)


def test_every_check_has_a_case_here() -> None:
    """No check is without a recorded answer that trips it, on each system that it is for."""
    elsewhere = {"loop", "packet-filter", "not-provisioned", "other-processor", *SSH}
    for system, ill in ((DARWIN, ILL_DARWIN), (LINUX, ILL_LINUX)):
        assert {check.id for check in CHECKS if system in check.platforms} - elsewhere == set(ill) - elsewhere


@pytest.mark.parametrize(
    ("machine", "check", "command", "said"),
    [
        (linux, "link-down", "ip -j addr", '{"ifname": "tb0", "flags": ["BROADCAST"], "operstate": "UP"'),
        (darwin, "link-down", "/sbin/ifconfig -a", "bridge0: flags=8863<BROADCAST,"),
        (linux, "mesh", "ssh -o BatchMode=yes -o ConnectTimeout=3 10.99.0.1 true", "u1@10.99.0.1: Permission denied"),
        (linux, "route", "ip route get 10.99.0.1; ip route show to match 10.99.0.1", "10.99.0.1 dev tun0 src 10.8.0.2"),
        (linux, "mpirun-crash", "cd / && /opt/flotilla/env/bin/mpirun --prtemca prte_tmpdir_base /tmp -np 1", "Segm"),
        (linux, "disk-full", "df -Pk /opt/flotilla || df -Pk /opt || df -Pk /", "overlay 100 100 0 100% /"),
        (linux, "wrong-link", "cat /proc/net/dev; dd if=/dev/zero", "wifi0: 5000000 bytes more sent"),
        (linux, "orphans", "ps -axww -o pid= -o ppid= -o command=", "77 1 /opt/flotilla/env/bin/python -m trainer train"),
        (darwin, "sleep", "/usr/bin/pmset -g", "sleep                10"),
        (darwin, "cable", "/usr/sbin/system_profiler SPThunderboltDataType -json", "Thunderbolt 1: 80 Gb/s, nothing"),
        (darwin, "bridge-service", "/usr/sbin/networksetup -listnetworkserviceorder", "(*) Thunderbolt Bridge"),
    ],
)
def test_evidence_can_be_repeated(machine, check: str, command: str, said: str) -> None:
    """What is shown is the command that was run, as a person would type it, and the lines that matter of what it said."""
    ill = (ILL_LINUX if machine is linux else ILL_DARWIN)[check]
    findings = see(machine(1), {**machine(2), "user": (0, "u1"), **ill})
    (finding,) = [each for each in findings if each.check == check]
    told, text = finding.evidence[0]
    assert told.startswith(command)
    assert said in text


@pytest.mark.parametrize("check", SSH)
def test_a_host_out_of_reach_is_named_once(check: str) -> None:
    """What ssh says decides; the host's other checks are not told, and its neighbour is not blamed."""
    findings = see({**linux(1), "mesh": (0, "book 10.99.0.2 255 ssh: Connection timed out")}, {}, failure=SSH[check])
    assert known(findings) == [(check, "book")]


def test_remedies_are_exact() -> None:
    """A remedy names inventory, host, user and port as they are, and quotes what a shell would take apart."""
    host = dataclasses.replace(HOSTS[1], port=2222)
    cluster = dataclasses.replace(CLUSTER, hosts=(HOSTS[0], host), source="my lab's.yml")
    ill = {**linux(2), "tmp": (2, "Permission denied"), "sudo": (1, "a password is required"), "node": (1, "")}
    remedies = {finding.check: finding.remedy for finding in see(linux(1), ill, cluster=cluster)}
    ours = "-i ~/.ssh/flotilla/id_ed25519 -o UserKnownHostsFile=~/.ssh/flotilla/known_hosts"
    assert remedies["tmp"] == f"ssh -t {ours} -p 2222 u2@192.168.1.2 'sudo chmod 1777 /tmp'"
    quoted = "'my lab'\"'\"'s.yml'"
    assert remedies["not-provisioned"] == f"./inv provision -i {quoted} --tags node_env,open_mpi --ask-become-pass"


def test_a_filter_is_found_by_the_others_silence() -> None:
    """A free port that does not answer its neighbour means a firewall on the host that is asked, not on the asker."""
    silence = (0, json.dumps({"book": {"ssh": "open", "other": "silence"}}))
    findings = see({**linux(1), "connect": silence}, {**linux(2), "filters": (0, "/usr/sbin/ufw")})
    assert known(findings) == [("packet-filter", "book")]
    assert findings[0].remedy.endswith("'sudo ufw allow from 10.99.0.0/24'")


def test_ranks_of_a_live_run_are_no_orphans() -> None:
    """Processes on one host belong to the mpirun that lives on another; only a run without one is an orphan."""
    mpirun = "50 40 /opt/flotilla/env/bin/mpirun --hostfile /opt/flotilla/runs/a/hostfile"
    rank = "77 1 /opt/flotilla/env/bin/python -m trainer train --plan /opt/flotilla/runs/a/plan.json"
    findings = see({**linux(1), "processes": (0, mpirun)}, {**linux(2), "processes": (0, rank)})
    assert known(findings) == [("busy", "mini"), ("busy", "book")]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("only_quick", [True, False])
def test_the_script_is_one_that_sh_takes(host: Host, only_quick: bool) -> None:
    """``sh -n`` finds no fault in it."""
    script = make_script(CLUSTER, host, "@@mark", only_quick)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_the_probe_reads_what_its_script_prints(tmp_path: Path) -> None:
    """Run on this machine, every command that it has is answered within its time and framed so that it is found again."""
    host = Host(name="here", slots=1, management="localhost", is_local=True)
    cluster = Cluster(hosts=(host,), root=tmp_path)  # type: ignore[arg-type]
    done = subprocess.run(["sh", "-s"], input=make_script(cluster, host, "@@m"), text=True, capture_output=True, timeout=30)
    outputs = parse(done.stdout, "@@m", list_items(cluster, host))
    system = outputs["system"].text.strip()
    assert set(outputs) == {"system", *(item.key for item in list_items(cluster, host) if system in item.systems)}
    assert outputs["clock"].text.strip().isdigit()
    assert outputs["node"].exit_code == 1


GREETS_LATE = "Connection timed out during banner exchange\nConnection to 10.99.0.1 port 22 timed out"


@pytest.mark.parametrize(
    ("said", "mends_at", "asked", "way"),
    [
        (GREETS_LATE, 2, ["3", "5"], "mini 10.99.0.1 0 "),
        (GREETS_LATE, 9, ["3", "5"], "mini 10.99.0.1 255 " + GREETS_LATE.replace("\n", " ")),
        ("kex_exchange_identification: read: Connection reset by peer", 3, ["3", "3", "3"], "mini 10.99.0.1 0 "),
        ("ssh: connect to host 10.99.0.1 port 22: Connection refused", 2, ["3"], "mini 10.99.0.1 255 ssh: connect"),
    ],
    ids=["busy", "silent", "dropped", "refused"],
)
def test_a_login_that_was_dropped_or_is_slow_is_tried_again(
    tmp_path: Path, said: str, mends_at: int, asked: list[str], way: str
) -> None:
    """A busy host is given more time once, a crowded one is asked again, one that refuses is not: by a stub of ssh."""
    bin_, calls = tmp_path / "bin", tmp_path / "calls"
    bin_.mkdir()
    (bin_ / "ssh").write_text(
        f"""#!/bin/sh
case "$*" in *10.99.0.1*) ;; *) exit 0 ;; esac
echo "$*" >>{calls}
[ $(wc -l <{calls}) -lt {mends_at} ] || exit 0
printf %s '{said}' >&2
exit 255
"""
    )
    (bin_ / "ssh").chmod(0o755)
    (bin_ / "sleep").symlink_to("/bin/true")
    (tmp_path / ".ssh/flotilla").mkdir(parents=True)
    (tmp_path / ".ssh/flotilla/config").touch()
    (mesh,) = [item.text for item in list_items(CLUSTER, HOSTS[1]) if item.key == "mesh"]
    environment = {"HOME": str(tmp_path), "PATH": f"{bin_}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", mesh], env=environment, text=True, capture_output=True, check=True, timeout=30)
    assert re.findall(r"ConnectTimeout=(\d+)", calls.read_text()) == asked
    assert [line for line in done.stdout.splitlines() if line.startswith(way)]


def test_an_output_cannot_forge_another() -> None:
    """Only frames with the secret mark count, and an unfinished one is left out."""
    said = "@@x begin node\n@@y begin sudo\n\n@@y end sudo 0\n\n@@x end node 0\n@@x begin tmp\nhalf"
    assert set(parse(said, "@@x", [])) == {"node"}


def test_pins_are_those_without_a_choice(tmp_path: Path) -> None:
    """A package that has two versions in the lock, for different systems, is not compared."""
    lock = tmp_path / "lock"
    lock.write_text("mlx==0.32.4 ; x \\\n    --hash=sha256:0\nnumpy==2.4.6 ; a\nnumpy==2.5.5 ; b\n")
    assert read_pins(lock) == {"mlx": "0.32.4"}
    assert read_pins(tmp_path / "none") == {}


def test_the_report_counts_in_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line tells how many problems there are; JSON tells the same number; nothing is lost in a narrow window."""
    ill = {**linux(2), "tmp": (2, "cannot [create] /tmp"), "sudo": (1, "a password is required")}
    outputs = [{key: Output(command=key, exit_code=c, text=t) for key, (c, t) in each.items()} for each in (linux(1), ill)]
    answers = {host.name: Answers(outputs=o, began_at=995, ended_at=1005) for host, o in zip(HOSTS, outputs, strict=True)}
    fleet = make_views(CLUSTER, answers, PINS)
    results = judge_all(fleet)
    print_report(Console(width=60), fleet, results)
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("1 problem on 2 hosts (1 note, ")
    assert "cannot [create] /tmp" in said
    assert "sudo chmod 1777 /tmp" in said
    assert json.loads(render_json(fleet, results))["problems"] == count_problems(results) == 1


def test_check_names_are_unique_and_the_twenty_are_there() -> None:
    """Each of the twenty failures has a check, and no two checks share a name."""
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    assert {check.number for check in CHECKS if check.number} == set(range(1, 21))


def test_a_loop_counts_only_while_the_bridge_is_up() -> None:
    """Three Macs in a ring are refused with the bridge up, and left alone without it."""
    third = Host(name="studio", slots=1, management="192.168.1.3", fast="10.99.0.3", is_local=False)
    cluster = dataclasses.replace(CLUSTER, hosts=(*HOSTS, third))
    ring = {"mini": ((1, "book-1"), (2, "studio-2")), "book": ((1, "mini-1"), (2, "studio-1"))}
    ring["studio"] = ((1, "book-2"), (2, "mini-2"))
    machines = [{**darwin(1), "user": (0, "u1"), "thunderbolt": (0, mac_says(name, *links))} for name, links in ring.items()]
    loops = [each for each in see(*machines, cluster=cluster) if each.check == "loop" and each.severity == "problem"]
    assert [each.host for each in loops] == ["mini"]
    assert "mini Thunderbolt 2 (en2) - studio Thunderbolt 2 (en2)" in loops[0].by_hand
    down = [{**machine, "interfaces": (0, BRIDGE.format(number=1).replace("<UP,", "<"))} for machine in machines]
    assert not [each for each in see(*down, cluster=cluster) if each.check == "loop" and each.severity == "problem"]
