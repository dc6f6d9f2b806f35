"""Asking a node to do something: our source travels with the request, so that the node needs only its Python.

`trainer.cluster.onnode` is what runs there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import PurePosixPath
from typing import IO, Any

from trainer.cluster.inventory import Host
from trainer.cluster.ssh import NOT_FOUND, SSH_FAILED, describe_failure, run, ssh_command
from trainer.errors import ClusterError

_IN_CLUSTER = ("processes", "sessions", "lock", "room", "cargo", "onnode")
_CARRIED = ("trainer.fingerprint", "trainer.interfaces", *(f"trainer.cluster.{name}" for name in _IN_CLUSTER))
BOOT = """\
import sys, json, types
bundle = json.loads(sys.stdin.buffer.read(int(sys.argv[1])))
for name, source in bundle["modules"].items():
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = []
    exec(compile(source, name, "exec"), module.__dict__)
sys.exit(module.main(bundle))
"""


class NotProvisionedError(ClusterError):
    """The node lacks our Python environment."""


def interpreter(root: PurePosixPath) -> list[str]:
    """Return the command, up to the length of the request, that answers requests on a node with our folder ``root``."""
    return [str(root / "env" / "bin" / "python"), "-I", "-c", BOOT]


def make_bundle(request: Mapping[str, Any]) -> bytes:
    """Return what goes to the standard input of `interpreter`."""
    return json.dumps({"modules": _read_modules(), "request": request}).encode()


@functools.cache
def _read_modules() -> dict[str, str]:
    """Return the modules that a node needs, in the order in which they can be loaded; packages are empty there."""
    modules = {"trainer": "", "trainer.cluster": ""}
    for name in _CARRIED:
        *folders, stem = name.split(".")[1:]
        modules[name] = resources.files("trainer").joinpath(*folders, f"{stem}.py").read_text("utf-8")
    return modules


def ask(host: Host, root: PurePosixPath, request: Mapping[str, Any], timeout_s: float | None = 60.0) -> dict[str, Any]:
    """Return the node's answer to a small request; raises `ClusterError` with what went wrong and where."""
    bundle = make_bundle(request)
    done = run(host, [*interpreter(root), str(len(bundle))], bundle, timeout_s)
    return read_answer(host, done.returncode, done.stdout, done.stderr)


def read_answer(host: Host, returncode: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    """Return the answer, the last line of ``stdout``; raises `ClusterError` if it is none or tells of an error."""
    complaint = stderr.decode("utf-8", "replace").strip()
    if returncode in NOT_FOUND:
        raise NotProvisionedError(f"{host.name}: is not provisioned ({complaint or returncode})")
    if returncode == SSH_FAILED and not host.is_local:
        raise ClusterError(describe_failure(host, complaint))
    answer: dict[str, Any] = {"error": complaint or f"ended with exit code {returncode} and without a word"}
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(stdout.splitlines()[-1])
    if "error" in answer:
        raise ClusterError(f"{host.name}: {answer['error']}")
    return answer


def stream_to(host: Host, root: PurePosixPath, request: Mapping[str, Any], feed: Callable[[IO[bytes]], None]) -> dict[str, Any]:
    """Ask with a stream behind the request, which ``feed`` writes; returns the node's answer."""
    bundle = make_bundle(request)
    with _open(host, root, bundle) as process:
        stdin, stdout, stderr = pipes_of(process)
        with contextlib.suppress(BrokenPipeError):  # it has given up; its answer says why
            stdin.write(bundle)
            feed(stdin)
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        said, complaint = stdout.read(), stderr.read()
    return read_answer(host, process.returncode, said, complaint)


def stream_from(host: Host, root: PurePosixPath, request: Mapping[str, Any], take: Callable[[IO[bytes]], None]) -> None:
    """Ask for a stream, which ``take`` reads; raises `ClusterError` if the node could not give all of it."""
    bundle = make_bundle(request)
    with _open(host, root, bundle) as process:
        stdin, stdout, stderr = pipes_of(process)
        with contextlib.suppress(BrokenPipeError):
            stdin.write(bundle)
            stdin.close()
        try:
            take(stdout)
        finally:
            rest, complaint = stdout.read(), stderr.read()
    if process.returncode:
        read_answer(host, process.returncode, rest, complaint)


def follow(
    host: Host, root: PurePosixPath, request: Mapping[str, Any], on_news: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Ask for something long; each line of output but the last, the answer, goes to ``on_news``."""
    bundle = make_bundle(request)
    last = b""
    with _open(host, root, bundle) as process:
        stdin, stdout, stderr = pipes_of(process)
        with contextlib.suppress(BrokenPipeError):
            stdin.write(bundle)
            stdin.close()
        for line in stdout:
            with contextlib.suppress(ValueError):
                on_news(json.loads(line))
            last = line
        complaint = stderr.read()
    return read_answer(host, process.returncode, last, complaint)


def _open(host: Host, root: PurePosixPath, bundle: bytes) -> subprocess.Popen[bytes]:
    command = ssh_command(host, [*interpreter(root), str(len(bundle))])
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as error:
        raise ClusterError(f"{host.name}: {command[0]} cannot be started: {error.strerror}") from error


def pipes_of(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    """Return standard input, output and error of a process that was started with all three as pipes."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr
