"""The one place that builds the control machine's ssh command, and runs something on one host or on all of them.

A host that is this machine needs no ssh: the same calls run there directly.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from trainer.cluster.inventory import Host
from trainer.errors import ClusterError

T = TypeVar("T")
SSH_FAILED = 255  # ssh's own exit code; what we run on hosts never ends with it
NOT_FOUND = (126, 127)  # what a shell answers when the program is not there
_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=5",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    "IdentityFile=~/.ssh/flotilla/id_ed25519",
    "UserKnownHostsFile=~/.ssh/flotilla/known_hosts ~/.ssh/known_hosts",
)
_REMEDIES = {
    "Permission denied": "our key is not there yet: ./inv provision -i INVENTORY --ask-pass",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "its host key is not the one that was pinned; if it was set up anew: "
        "ssh-keygen -R {known_as} -f ~/.ssh/flotilla/known_hosts, then ./inv provision -i INVENTORY"
    ),
    "Host key verification failed": "its host key is not known yet: ./inv provision -i INVENTORY",
    "Could not resolve hostname": "correct ansible_host in the inventory",
    "": "is it on and in this network, and is Remote Login on? ./inv doctor -i INVENTORY tells more",
}


def ssh_command(host: Host, argv: Sequence[str]) -> list[str]:
    """Return the command that runs ``argv`` on ``host``, every word quoted for the shell over there."""
    if host.is_local:
        return list(argv)
    return [
        "ssh",
        *(word for option in _OPTIONS for word in ("-o", option)),
        *(["-l", host.user] if host.user else []),
        *(["-p", str(host.port)] if host.port else []),
        host.management,
        shlex.join(argv),
    ]


def run(
    host: Host, argv: Sequence[str], stdin: bytes = b"", timeout_s: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``argv`` on ``host``; returns how it ended, whatever its exit code.

    Raises `ClusterError` if the host could not be reached, with what ssh said and what to do.
    """
    try:
        done = subprocess.run(ssh_command(host, argv), input=stdin, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{host.name}: has not answered for {timeout_s:.0f} s") from error
    except OSError as error:
        if host.is_local:
            return subprocess.CompletedProcess(list(argv), NOT_FOUND[1], b"", str(error).encode())
        raise ClusterError(f"ssh: cannot be started: {error.strerror}") from error
    if done.returncode == SSH_FAILED and not host.is_local:
        raise ClusterError(describe_failure(host, done.stderr.decode("utf-8", "replace")))
    return done


def describe_failure(host: Host, said: str) -> str:
    """Return what ``said`` by ssh means for ``host``, and the remedy."""
    remedy = next(remedy for sign, remedy in _REMEDIES.items() if sign in said)
    known_as = f"'[{host.management}]:{host.port}'" if host.port not in (None, 22) else host.management
    last = (said.strip().splitlines() or ["nothing"])[-1].strip()
    return f"{host.name}: cannot be reached by ssh ({last}); {remedy.format(known_as=known_as)}"


def on_all(hosts: Iterable[Host], action: Callable[[Host], T]) -> dict[str, T]:
    """Return host name to result of ``action`` for every host, all at the same time.

    Raises one `ClusterError` with the messages of all hosts where it failed.
    """
    chosen = list(hosts)
    problems: list[str] = []
    results: dict[str, T] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
        tasks = {host.name: pool.submit(action, host) for host in chosen}
        for name, task in tasks.items():
            try:
                results[name] = task.result()
            except ClusterError as error:
                problems.append(str(error))
    if problems:
        raise ClusterError("\n".join(problems))
    return results
