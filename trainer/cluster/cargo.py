"""Artifacts and results on their way: packed, passed on from node to node, received, verified, handed back.

Sent to the nodes with `trainer.cluster.onnode`: the standard library only.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trainer.fingerprint import hash_files

Request = dict[str, Any]
Answer = dict[str, Any]
_TELL_EVERY_S = 0.5
_SPARE_BYTES = 64 * 1024 * 1024
_INCOMING = ".incoming-"


class RefusedError(Exception):
    """Something that the person at the control machine must know; the text says what."""


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
            outcomes[peer["host"]] = describe(error)

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


def describe(error: Exception) -> str:
    """Return what a person is told of an error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the network'}: {error.strerror}"
    return str(error)
