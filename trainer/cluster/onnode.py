"""What the control machine has done on a node: looking, receiving files, passing them on, sweeping up, handing back.

`trainer.cluster.call` sends this module's source, and that of the few it imports, to the node's own Python, which need
not have the package. So: the standard library only. The request is JSON; so is the answer, the last line of
standard output. What follows the request on standard input is for `receive`: a tar stream.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trainer.cluster.lock import HOST_LOCK, find_holder
from trainer.cluster.processes import end_mentioning
from trainer.cluster.room import read_room
from trainer.cluster.sessions import remove_sessions
from trainer.fingerprint import hash_files
from trainer.interfaces import Interface, find_owner, list_interfaces, read_counters

Request = dict[str, Any]
Answer = dict[str, Any]
_CONNECT_TIMEOUT_S = 3.0
_TELL_EVERY_S = 0.5
_SPARE_BYTES = 64 * 1024 * 1024
_INCOMING = ".incoming-"


class RefusedError(Exception):
    """Something that the person at the control machine must know; the text says what."""


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
        answer = {"error": _describe(error)}
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


def receive(request: Request, stream: IO[bytes]) -> Answer:
    """Unpack a tar stream of artifacts, check each against its fingerprint, and put those that are whole into the store."""
    store = Path(request["store"])
    store.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(store)
    expected = sum(artifact["size"] for artifact in request["artifacts"]) + _SPARE_BYTES
    if (free := shutil.disk_usage(store).free) < expected:
        raise RefusedError(f"{store} has {free // 2**20} MiB free where {expected // 2**20} MiB are needed")
    incoming = store / f"{_INCOMING}{os.getpid()}"
    incoming.mkdir()
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            unpack(archive, incoming)
        for artifact in request["artifacts"]:
            _admit(incoming / artifact["name"], store / artifact["name"], artifact)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return {"received": [artifact["name"] for artifact in request["artifacts"]]}


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Extract plain files and folders into ``folder``; raises `RefusedError` for a link, a device, or a way out of it.

    Python before 3.11.4 has no filter that sees to that.
    """
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    for entry in archive:
        path = PurePosixPath(entry.name)
        if path.is_absolute() or ".." in path.parts or not (entry.isfile() or entry.isdir()):
            raise RefusedError(f"the archive holds {entry.name!r}, which is no file or leads elsewhere")
        archive.extract(entry, folder, **safely)


def _admit(folder: Path, target: Path, artifact: dict[str, Any]) -> None:
    """Rename ``folder`` to its place in the store, if it is what it should be and not there already."""
    try:
        seen = hash_files(folder, artifact["files"])
    except FileNotFoundError:
        seen = "incomplete"
    if seen != artifact["digest"]:
        raise RefusedError(f"{artifact['name']} arrived damaged ({seen[:12]}); send it again")
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # somebody else was faster with the same content
            raise


def _clear_abandoned(store: Path) -> None:
    """Remove what receivers left that were killed."""
    for folder in store.glob(f"{_INCOMING}*"):
        try:
            os.kill(int(folder.name.removeprefix(_INCOMING)), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue


def relay(request: Request, bundle: dict[str, Any]) -> Answer:
    """Pass artifacts of this node's store on to peers, all at once; tells on standard output how far it has come."""
    outcomes: dict[str, str] = {}
    sent: dict[str, int] = {}

    def serve(peer: dict[str, Any]) -> None:
        try:
            outcomes[peer["host"]] = _send_to(peer, request["store"], bundle, lambda n: sent.update({peer["host"]: n}))
        except (OSError, ValueError) as error:
            outcomes[peer["host"]] = _describe(error)

    threads = [threading.Thread(target=serve, args=(peer,), daemon=True) for peer in request["peers"]]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(_TELL_EVERY_S) if threads[0].is_alive() else time.sleep(_TELL_EVERY_S / 5)
        print(json.dumps({"sent": sum(sent.values())}), flush=True)
    return {"outcomes": outcomes}


def _send_to(peer: dict[str, Any], store: str, bundle: dict[str, Any], tell: Callable[[int], None]) -> str:
    """Send a peer what it lacks, over the ssh mesh of the nodes; returns what went wrong, or nothing."""
    request = {"verb": "receive", "store": store, "artifacts": peer["artifacts"]}
    header = json.dumps({**bundle, "request": request}).encode()
    command = [*peer["command"], str(len(header))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        counted = Counting(process.stdin, tell)
        with suppress(BrokenPipeError):
            process.stdin.write(header)
            for artifact in peer["artifacts"]:
                artifact["folder"] = str(Path(store) / artifact["name"])
            pack(peer["artifacts"], counted)
        with suppress(BrokenPipeError):
            process.stdin.close()
        said, complained = process.stdout.read(), process.stderr.read().decode("utf-8", "replace").strip()
        process.wait()
    with suppress(ValueError, IndexError):
        return str(json.loads(said.splitlines()[-1]).get("error", ""))
    return complained.splitlines()[-1] if complained else f"ssh ended with exit code {process.returncode}"


class Counting:
    """A file to write to that tells how many bytes have gone through."""

    def __init__(self, file: IO[bytes], tell: Callable[[int], None]) -> None:
        self._file = file
        self._tell = tell
        self._count = 0

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        self._file.write(data)
        self._count += len(data)
        self._tell(self._count)
        return len(data)


def pack(artifacts: list[dict[str, Any]], target: Any) -> None:
    """Write the files of ``artifacts``, each from its ``folder``, to ``target`` as one tar stream."""
    with tarfile.open(fileobj=target, mode="w|", dereference=True) as archive:
        for artifact in artifacts:
            for name in artifact["files"]:
                archive.add(Path(artifact["folder"]) / name, f"{artifact['name']}/{name}", recursive=False, filter=_anonymous)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o644
    return entry


def collect(request: Request, target: IO[bytes]) -> Answer:
    """Write what the ranks left in a run's folder to ``target`` as a tar stream."""
    folder = Path(request["folder"])
    left_out, skipped = set(request["without"]), request["skip"]

    def choose(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        hidden = any(part.startswith(".") for part in PurePosixPath(entry.name).parts)
        return None if hidden or entry.name.startswith(skipped) or not (entry.isfile() or entry.isdir()) else entry

    with tarfile.open(fileobj=target, mode="w|") as archive:
        for path in sorted(folder.iterdir()):
            if path.name not in left_out and not path.name.startswith("."):
                archive.add(path, path.name, filter=choose)
    target.flush()
    return {}


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the network'}: {error.strerror}"
    return str(error)
