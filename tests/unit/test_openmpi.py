"""Which Open MPI is taken: fake installations that answer ``mpirun --version``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer.cluster import openmpi
from trainer.cluster.openmpi import OpenMPI, find_open_mpi
from trainer.errors import ClusterError

LIBRARY = "libmpi.dylib" if sys.platform == "darwin" else "libmpi.so.40"
FIVE = "mpirun (Open MPI) 5.0.11"
BREWED = [Path("/opt/homebrew/bin/mpirun")]
CANDIDATES = openmpi._candidates
NOTHING = "no Open MPI 5 found: neither on PATH nor in this environment; run ./inv again to set the environment up"

Install = Callable[..., OpenMPI]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make an installation in a folder of its own, and nothing else findable: the environment is the folder "env"."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(openmpi, "_candidates", lambda: (path for path in CANDIDATES() if path not in BREWED))

    def make(name: str, says: str = FIVE, library: str = LIBRARY, code: str = "exit 0") -> OpenMPI:
        root = tmp_path / name
        mpirun = root / "bin" / "mpirun"
        mpirun.parent.mkdir(parents=True)
        (root / "lib").mkdir()
        (root / "lib" / library).touch()
        mpirun.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n{code}\n")
        mpirun.chmod(0o755)
        return OpenMPI(mpirun=mpirun, libmpi=root / "lib" / LIBRARY, version=says.rpartition(" ")[2])

    return make


def put_on_path(monkeypatch: pytest.MonkeyPatch, mpirun: Path | str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: str(mpirun) if name == "mpirun" else None)


def test_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Homebrew's place comes first, then PATH, then this environment's wheel."""
    put_on_path(monkeypatch, "/somewhere/bin/mpirun")
    monkeypatch.setattr(sys, "prefix", "/environment")
    assert list(CANDIDATES()) == [
        *BREWED,
        Path("/somewhere/bin/mpirun"),
        Path("/environment/bin/mpirun"),
    ]


def test_first_good_one_wins(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first candidate that can be used is taken, with its version and the library beside it."""
    brewed, other, wheel = install("brew", "mpirun (Open MPI) 5.0.7"), install("path"), install("env")
    candidates = [brewed.mpirun, other.mpirun, wheel.mpirun]

    def all_of_them() -> Iterator[Path]:
        yield from candidates

    monkeypatch.setattr(openmpi, "_candidates", all_of_them)
    assert find_open_mpi() == brewed
    assert brewed.version == "5.0.7"
    for best in (other, wheel):
        candidates.pop(0)
        assert find_open_mpi() == best


@pytest.mark.parametrize(
    "says",
    [
        "HYDRA build details:\n    Version:                                 4.2.0",  # MPICH
        "mpirun (Open MPI) 4.1.6\n\nReport bugs to http://www.open-mpi.org/community/help/",
        "mpirun (Open MPI) 4.99",
        "mpirun (Open MPI)",
        "Intel(R) MPI Library for Linux* OS, Version 2021.11",
        "",
    ],
    ids=["MPICH", "4.1", "4.99", "no version", "Intel", "silence"],
)
def test_others_are_refused(install: Install, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """MPICH, older Open MPI and others on PATH are passed over for this environment's wheel."""
    wheel = install("env")
    put_on_path(monkeypatch, install("path", says).mpirun)
    assert find_open_mpi() == wheel


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/", "5.0.11"),
        ("mpirun (Open MPI) 5.1.0a1", "5.1.0a1"),
        ("mpirun (Open MPI) 5.0", "5.0"),
        ("mpirun (Open MPI) 10.2.3", "10.2.3"),
    ],
)
def test_versions(install: Install, says: str, version: str) -> None:
    """Open MPI 5.0 and everything newer is taken."""
    assert install("env", says).mpirun.is_file()
    assert find_open_mpi().version == version


def test_missing_library(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """An mpirun without its library in ../lib, as distributions place it, is passed over."""
    wheel = install("env")
    put_on_path(monkeypatch, install("path", library="libmpi.so.12").mpirun)
    assert find_open_mpi() == wheel


@pytest.mark.parametrize("fault", ["not executable", "not a program", "a folder", "a broken link"])
def test_does_not_run(install: Install, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """An mpirun that cannot be run is passed over, not an exception."""
    wheel, mpirun = install("env"), install("path").mpirun
    put_on_path(monkeypatch, mpirun)
    if fault == "not executable":
        mpirun.chmod(0o644)
    elif fault == "not a program":
        mpirun.write_bytes(b"\xcf\xfa\xed\xfe another machine's")
    else:
        mpirun.unlink()
        if fault == "a folder":
            mpirun.mkdir()
        else:
            mpirun.symlink_to("nowhere")
    assert find_open_mpi() == wheel


def test_does_not_answer(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """An mpirun that hangs is passed over."""
    monkeypatch.setattr(openmpi, "_ANSWER_TIMEOUT_S", 0.1)
    put_on_path(monkeypatch, install("path", code="exec /bin/sh -c 'kill -STOP $$'").mpirun)
    with pytest.raises(ClusterError):
        find_open_mpi()


def test_bytes_and_failure(install: Install) -> None:
    """What it says may hold any bytes, and its exit code is not asked."""
    made = install("env", code="printf '\\377\\376'; exit 1")
    assert find_open_mpi() == made


def test_nothing_found(install: Install) -> None:
    """With neither the message says what was looked for and what to do, with the exit code of cluster trouble."""
    with pytest.raises(ClusterError) as failure:
        find_open_mpi()
    assert str(failure.value) == NOTHING
    assert failure.value.exit_code == 3


def test_relative_path_on_path(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder on PATH still gives absolute paths: mpirun is started from elsewhere."""
    made = install("path")
    monkeypatch.chdir(tmp_path)
    put_on_path(monkeypatch, os.path.relpath(made.mpirun))
    assert find_open_mpi() == made
    assert made.mpirun.is_absolute()
    assert made.libmpi.is_absolute()


def test_links_are_kept(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linked mpirun, as Homebrew's is, is used under the link's name, beside which the linked library is."""
    cellar = install("Cellar/open-mpi/5.0.11")
    linked = OpenMPI(mpirun=tmp_path / "opt/bin/mpirun", libmpi=tmp_path / "opt/lib" / LIBRARY, version="5.0.11")
    for link, target in ((linked.mpirun, cellar.mpirun), (linked.libmpi, cellar.libmpi)):
        link.parent.mkdir(parents=True)
        link.symlink_to(target)
    put_on_path(monkeypatch, linked.mpirun)
    assert find_open_mpi() == linked


def test_this_environment() -> None:
    """Here there is one, and both of its paths are absolute files."""
    found = find_open_mpi()
    assert [path.is_absolute() and path.is_file() for path in (found.mpirun, found.libmpi)] == [True, True]
    assert int(found.version.split(".")[0]) >= 5
