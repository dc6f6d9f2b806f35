"""MLX's ring between ranks of an MPI job, in processes of their own: a process can join one ring only once in its life."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from trainer.comm.group import Comm
from trainer.comm.sweep import sweep

_TIMEOUT_S = 90


def sweep_by_ring(comm: Comm, address: str, sizes: Sequence[int], budget_s: float) -> list[dict[str, Any]] | str:
    """Return what `trainer.comm.sweep.sweep` measures over MLX's ring, or why that did not work; a collective.

    ``address`` is where this rank's left neighbour finds it.
    """
    with socket.create_server((address, 0)) as held:
        endpoints = comm.all_gather(f"{address}:{held.getsockname()[1]}")
    with tempfile.TemporaryDirectory(prefix="flotilla-") as scratch:
        hosts = Path(scratch) / "ring.json"
        hosts.write_text(json.dumps([[endpoint] for endpoint in endpoints]), "utf-8")
        env = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "PRTE_"))}
        env |= {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(comm.rank)}
        words = ["-P", "-m", "trainer", "sweep", "--sizes", ",".join(map(str, sizes)), "--budget-s", str(budget_s)]
        comm.all_gather(None)  # its peers wait for a rank only some seconds
        outcome = _run([sys.executable, *words, "--world-size", str(comm.size)], env)
    outcomes = comm.all_gather(outcome)
    return next((each for each in outcomes if isinstance(each, str)), outcomes[0])


def _run(command: list[str], env: dict[str, str]) -> list[dict[str, Any]] | str:
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"MLX's ring took longer than {_TIMEOUT_S} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"])[-1]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def sweep_here(sizes: Sequence[int], budget_s: float, world_size: int) -> list[dict[str, Any]]:
    """Join the ring that ``MLX_HOSTFILE`` describes and return what `trainer.comm.sweep.sweep` measures; in a child process."""
    group = mx.distributed.init(strict=True, backend="ring")
    return sweep(Comm(group.rank(), world_size, group), sizes, budget_s)
