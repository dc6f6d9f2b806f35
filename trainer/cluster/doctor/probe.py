"""Asking all hosts at the same time: one ssh connection and one script each; what came back is taken apart here."""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from trainer.cluster.doctor.script import FROM_NODE, Item, list_items, make_script
from trainer.cluster.doctor.view import Answers, Output, View
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.ssh import SSH_FAILED, ssh_command
from trainer.paths import PROJECT_ROOT

FULL_LIMIT_S = 17.0
QUICK_LIMIT_S = 8.0


def examine(cluster: Cluster, only_quick: bool = False) -> dict[str, View]:
    """Return the view of every host by name, those included that cannot be reached; ends within 20 seconds."""
    with ThreadPoolExecutor(max_workers=len(cluster.hosts)) as pool:
        answers = pool.map(lambda host: ask(cluster, host, only_quick), cluster.hosts)
        by_name = {host.name: answer for host, answer in zip(cluster.hosts, answers, strict=True)}
    return make_views(cluster, by_name, read_pins(PROJECT_ROOT / "requirements-node.lock"))


def make_views(cluster: Cluster, answers: dict[str, Answers], pins: Mapping[str, str] | None = None) -> dict[str, View]:
    """Return the views of hosts that gave these answers, each with all of them as its fleet."""
    fleet: dict[str, View] = {}
    for host in cluster.hosts:
        fleet[host.name] = View(host=host, cluster=cluster, answers=answers[host.name], fleet=fleet, pins=pins or {})
    return fleet


def read_pins(lock: Path) -> dict[str, str]:
    """Return the versions that a lock allows, of packages that have one version on all systems; none without a lock."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text("utf-8") if lock.is_file() else "", re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return {name: versions.pop() for name, versions in found.items() if len(versions) == 1}


def ask(cluster: Cluster, host: Host, only_quick: bool) -> Answers:
    """Return what the probe of one host brought; what had not been said when its time was up is missing."""
    mark = f"@@{secrets.token_hex(8)}"
    command = ssh_command(host, ["sh", "-s"])
    script = make_script(cluster, host, mark, only_quick).encode()
    began_at, failure = time.time(), ""
    try:
        done = subprocess.run(
            command, input=script, capture_output=True, check=False, timeout=QUICK_LIMIT_S if only_quick else FULL_LIMIT_S
        )
        said = done.stdout
        if done.returncode == SSH_FAILED or (done.returncode and not said):
            failure = done.stderr.decode("utf-8", "replace").strip() or f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        failure = "" if said else "no answer in time"
    except OSError as error:
        said, failure = b"", f"{command[0]} cannot be started: {error.strerror}"
    answers = Answers(command=shlex.join(ssh_command(host, ["true"])), failure=failure, began_at=began_at, ended_at=time.time())
    return replace(answers, outputs=parse(said.decode("utf-8", "replace"), mark, list_items(cluster, host)))


def parse(said: str, mark: str, items: Iterable[Item]) -> dict[str, Output]:
    """Return the framed outputs by key; what lies outside of frames, or was not finished, is left out."""
    edge = re.escape(mark)
    frame = re.compile(rf"^{edge} begin (\w+)\n(.*?)\n?^{edge} end \1 (\d+)$", re.MULTILINE | re.DOTALL)
    frames = {match[1]: (match[2], int(match[3])) for match in frame.finditer(said)}
    system, node = frames.get("system", ("", 0))[0].strip(), frames.get("node", ("", 1))[0]
    commands = {item.key: _fill_in(item.shown, node) for item in items if system in item.systems}
    return {
        key: Output(command=commands.get(key, key), exit_code=exit_code, text=text) for key, (text, exit_code) in frames.items()
    }


def _fill_in(command: str, node: str) -> str:
    """Return a command with the paths that the host itself read from its node.json."""
    for name in FROM_NODE:
        path = re.search(rf'"{name}": *"([^"]*)"', node)
        command = command.replace(name.upper(), shlex.quote(path[1]) if path else name)
    return command
