"""The formulae that the simulated Homebrew offers: those that matter here, with the files that are used of them."""

from __future__ import annotations

from typing import Any

OPEN_MPI = {
    "bin/mpirun": "mpirun.sh",
    "bin/mpiexec": "mpirun.sh",
    "lib/libmpi.dylib": "->/Users/Shared/flotilla/env/lib/libmpi.so.40",
}
MPICH = {"bin/mpirun": "mpirun-mpich.sh", "bin/mpiexec": "mpirun-mpich.sh"}


def formulae() -> dict[str, dict[str, Any]]:
    """Return the formulae with version, relations and files; ``->`` means a link, here to what the host really has."""
    table: dict[str, dict[str, Any]] = {
        "open-mpi": {
            "version": "5.0.10",
            "aliases": ["openmpi"],
            "dependencies": ["gcc", "hwloc", "libevent", "pmix", "prrte"],
            "conflicts_with": ["mpich"],
            "files": OPEN_MPI,
        },
        "prrte": {"version": "4.1.0_1", "dependencies": ["hwloc", "libevent", "pmix"]},
        "pmix": {"version": "6.1.0", "dependencies": ["hwloc", "libevent"]},
        "hwloc": {"version": "2.13.0"},
        "libevent": {"version": "2.1.12_1"},
        "gcc": {"version": "16.1.0"},
        "mpich": {"version": "5.0.0", "dependencies": ["gcc", "hwloc"], "conflicts_with": ["open-mpi"], "files": MPICH},
    }
    for minor in (11, 12, 13, 14):
        name = f"python3.{minor}"
        files = {f"bin/{name}": "->/usr/bin/python3"}
        table[f"python@3.{minor}"] = {"version": f"3.{minor}.9", "dependencies": ["openssl@3"], "files": files}
    table["python@3.14"]["aliases"] = ["python", "python3"]
    table["openssl@3"] = {"version": "3.6.1"}
    return table
