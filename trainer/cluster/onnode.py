"""What the control machine has done on a node: looking, writing small files, sweeping up; `cargo` has the large ones.

`trainer.cluster.call` sends this module's source, and that of the few it imports, to the node's own Python, which need
not have the package. So: the standard library only. The request is JSON; so is the answer, the last line of
standard output. What follows the request on standard input is for `receive`: a tar stream.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.cluster.cargo import Answer, RefusedError, Request, collect, describe, receive, relay
from trainer.cluster.lock import HOST_LOCK, find_holder
from trainer.cluster.processes import end_mentioning
from trainer.cluster.room import read_room
from trainer.cluster.sessions import remove_sessions
from trainer.interfaces import Interface, find_owner, list_interfaces, read_counters

_CONNECT_TIMEOUT_S = 3.0


def main(bundle: dict[str, Any]) -> int:
    """Do ``bundle["request"]`` and print the answer; returns the exit code of the process."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))  # so that nothing half-made is left behind
    request = bundle["request"]
    verbs: dict[str, Callable[[], Answer]] = {
        "survey": lambda: survey(request),
        "missing": lambda: find_missing(request),
        "receive": lambda: receive(request, sys.stdin.buffer),
        "relay": lambda: relay(request, bundle),
        "write": lambda: write(request),
        "sweep": lambda: sweep(request),
        "holder": lambda: {"holder": find_holder(Path(request["folder"]) / HOST_LOCK)},
        "collect": lambda: collect(request, sys.stdout.buffer),
    }
    try:
        answer = verbs[request["verb"]]()
    except (RefusedError, OSError, tarfile.TarError, ValueError, KeyError, subprocess.SubprocessError) as error:
        answer = {"error": describe(error)}
    if request["verb"] != "collect" or "error" in answer:
        print(json.dumps(answer), flush=True)
    return 1 if "error" in answer else 0


def survey(request: Request) -> Answer:
    """Tell what this node is, which artifacts it has, and whether the fast link leads to its peers."""
    root = Path(request["root"])
    try:
        node = json.loads((root / "node.json").read_text("utf-8"))
    except FileNotFoundError:
        node = None
    interfaces = list_interfaces()
    session = os.environ.get("SSH_CONNECTION", "").split()
    return {
        "node": node,
        "host_name": socket.gethostname(),
        "uid": os.geteuid(),
        "reached_at": session[2] if len(session) == 4 else "",
        "interfaces": [vars(interface) for interface in interfaces],
        "counters": read_counters(),
        "link": _check_link(request, interfaces),
        "cables": _read_cables(root),
        "room": read_room(),
    }


def _read_cables(root: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads((root / "state" / "thunderbolt.json").read_text("utf-8"))
    return None


def _check_link(request: Request, interfaces: list[Interface]) -> list[str]:
    """Return what keeps the fast link from being used, in words; empty if nothing does, or if none is asked for."""
    owners = {own: find_owner(own, interfaces) for own in request["own"]}
    problems = [f"no interface has the address {own}" for own, owner in owners.items() if owner is None]
    for own, owner in owners.items():
        if owner is not None and not owner.is_up:
            problems.append(f"{owner.name}, which has the address {own}, is down or has no cable")
    if problems:
        return problems
    with ThreadPoolExecutor(max_workers=max(1, len(request["peers"]))) as pool:
        tried = [pool.submit(_try_peer, find_owner(peer[3], interfaces), *peer) for peer in request["peers"]]
        return [problem for attempt in tried if (problem := attempt.result())]


def _try_peer(owner: Interface | None, name: str, address: str, port: int, own: str) -> str:
    """Return why ``address`` of host ``name`` cannot be reached over the interface that has ``own``; nothing if it answers."""
    interface = owner.name if owner else f"the interface of {own}"
    if owner is None or not owner.is_up:
        return f"{name} ({address}) does not answer over {interface}: it is down or has no cable"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing: asks the kernel for the route
            source = probe.getsockname()[0]
        if source != own:
            return f"{name} ({address}) is reached from {source}, not over {interface}"
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_TIMEOUT_S)
            probe.connect((address, port))
    except ConnectionRefusedError:
        return f"{name} ({address}) refuses connections to port {port}"
    except OSError as error:
        return f"{name} ({address}) does not answer over {interface}: {error.strerror or error}"
    return ""


def write(request: Request) -> Answer:
    """Write small text files, path to content; before that sweep up what an earlier start of ``request["plan"]`` has left."""
    ended = sweep_up(request["plan"]) if request["plan"] else 0
    for name, text in request["files"].items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}-{os.getpid()}")
        scratch.write_text(text, "utf-8")
        os.replace(scratch, path)
    return {"ended": ended}


def sweep(request: Request) -> Answer:
    """Sweep up what a run has left that has the plan ``request["plan"]``, and remove a folder if one is named."""
    ended = sweep_up(request["plan"])
    if request["remove"]:
        shutil.rmtree(request["remove"], ignore_errors=True)
    return {"ended": ended}


def sweep_up(plan_file: str) -> int:
    """End the processes that name ``plan_file`` and remove their Open MPI sessions; returns how many were ended."""
    ended = end_mentioning(plan_file)
    remove_sessions(Path(plan_file))
    return ended


def find_missing(request: Request) -> Answer:
    """Return which of the folders ``request["names"]`` the store lacks."""
    return {"missing": [name for name in request["names"] if not (Path(request["store"]) / name).is_dir()]}
