"""``python -m trainer.cluster.wheelhouse``: fetch the wheels of a node to the control machine, once for each kind of node.

A node is a Mac or a Linux machine with some version of Python and of its system; the control machine may be another
kind. pip judges markers by the machine that it runs on, so the lock is reduced to the node's lines first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from trainer.errors import EXIT_OK, ClusterError, FlotillaError, InputError
from trainer.paths import cache_dir

_OLDEST_GLIBC = 17  # manylinux2014
_OLDEST_MACOS = 11  # the first on Apple Silicon
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of node, as its Python describes itself: ``platform``'s words; macos or libc is empty."""

    system: str
    machine: str
    python: str
    macos: str = ""
    libc: str = ""

    @property
    def platforms(self) -> list[str]:
        """Return the platform tags of wheels that run there, newest first. Raises `InputError` for an unknown system."""
        if self.system == "Darwin" and self.macos:
            newest = int(self.macos.split(".")[0])
            return [f"macosx_{major}_0_{self.machine}" for major in range(newest, _OLDEST_MACOS - 1, -1)]
        if self.system == "Linux" and self.libc:
            newest = int(self.libc.split(".")[1])
            tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
            return [*tags, f"manylinux2014_{self.machine}", f"linux_{self.machine}"]
        raise InputError(f"there are no wheels for {self.system} {self.machine} (macOS {self.macos!r}, glibc {self.libc!r})")

    @property
    def markers(self) -> dict[str, str]:
        """Return the environment that a lock's markers are judged by."""
        return {
            "sys_platform": self.system.lower(),
            "platform_system": self.system,
            "platform_machine": self.machine,
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }


def reduce_lock(text: str, target: Target) -> str:
    """Return the lines of a hashed lock that apply to ``target``, without their markers, a package a line."""
    return "".join(
        f"{requirement.name}{requirement.specifier} {' '.join(hashes)}\n"
        for requirement, hashes in _read_lock(text)
        if requirement.marker is None or requirement.marker.evaluate(target.markers)
    )


def _read_lock(text: str) -> Iterator[tuple[Requirement, list[str]]]:
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    for line in joined.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield Requirement(line.split(" --hash=")[0].strip()), _HASH.findall(line)


def fetch(lock: Path, target: Target, *, check: bool) -> dict[str, object]:
    """Return where the wheels of ``target`` are, fetching what is missing unless ``check``.

    The answer has ``changed``, ``digest`` (of the packages and the kind of node), ``archive`` and ``num_wheels``.
    Raises `ClusterError` with pip's words if a wheel cannot be had.
    """
    requirements = reduce_lock(lock.read_text("utf-8"), target)
    platforms = target.platforms
    key = json.dumps([requirements, target.python, platforms])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    archive = cache_dir() / "wheelhouse" / f"{digest}.tar"
    is_missing = not archive.is_file()
    if is_missing and not check:
        archive.parent.mkdir(parents=True, exist_ok=True)
        _fetch_to(archive, requirements, target)
    return {"changed": is_missing, "digest": digest, "archive": str(archive), "num_wheels": len(requirements.splitlines())}


def _fetch_to(archive: Path, requirements: str, target: Target) -> None:
    """Download, pack and put in place; nothing is left of an attempt that fails."""
    scratch = Path(tempfile.mkdtemp(dir=archive.parent, prefix=".fetching-"))
    try:
        (scratch / "requirements.txt").write_text(requirements, "utf-8")
        _download(scratch, target)
        packed = scratch / "wheels.tar"
        with tarfile.open(packed, "w") as tar:
            for file in sorted(scratch.iterdir()):
                if file.suffix in (".whl", ".txt"):
                    tar.add(file, arcname=file.name, filter=_anonymous)
        os.replace(packed, archive)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o644
    return entry


def _download(folder: Path, target: Target) -> None:
    command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--python-version", target.python]
    command += [f"--platform={tag}" for tag in target.platforms]
    command += ["--dest", str(folder), "--requirement", str(folder / "requirements.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"the wheels of the nodes cannot be fetched:\n{done.stderr.strip()[-2000:]}")


def main() -> int:
    """Fetch as the options say and print the answer as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.cluster.wheelhouse", description=__doc__)
    parser.add_argument("--lock", type=Path, required=True, help="pinned and hashed packages of a node")
    parser.add_argument(
        "--target", type=json.loads, required=True, help="the node, as JSON: system, machine, python, macos, libc"
    )
    parser.add_argument("--check", action="store_true", help="fetch nothing; say whether something would be fetched")
    options = parser.parse_args()
    try:
        print(json.dumps(fetch(options.lock, Target(**options.target), check=options.check)))
    except FlotillaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
