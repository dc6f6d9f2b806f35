"""Connecting a rank to its world, strictly: a rank that cannot find the others ends instead of training alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np

from trainer.errors import ClusterError, StalledError

_REST_S = 0.002
LAUNCHED_SIZE = "OMPI_COMM_WORLD_SIZE"


class Comm:
    """The world of ranks. Every method but `abort` is a collective: all ranks call it, in the same order.

    MLX carries arrays, mpi4py carries Python objects, over the one MPI world that MLX initialised. A world of one rank
    needs neither and is the identity. With another backend than MPI's, MLX has connections of its own and mpi4py the world.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        group: mx.distributed.Group | None = None,
        mpi: ModuleType | None = None,
        world: Any = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self._group = group
        self._mpi = mpi
        self._world: Any = world or (mpi.COMM_WORLD if mpi else None)

    @property
    def is_first_on_host(self) -> bool:
        """Whether this is the lowest rank on its machine, the one that writes files there."""
        return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")) == 0

    def all_sum(self, vector: mx.array) -> mx.array:
        """Return the sum of ``vector`` (float32, any shape, the same on all ranks) over all ranks, materialised.

        Runs on the CPU stream on a materialised array: on a GPU stream ranks that arrive late would trip Metal's
        watchdog. The result is bit-identical on all ranks.
        """
        assert vector.dtype == mx.float32, f"reduce in float32, not {vector.dtype}: smaller types round at each addition"
        if self._group is None:
            return vector
        mx.eval(vector)
        try:
            total = mx.distributed.all_sum(vector, group=self._group, stream=mx.cpu)
            mx.eval(total)
        except RuntimeError as error:  # MPI ends the job itself; the ring and JACCL raise
            raise StalledError(f"rank {self.rank} lost the others in an all-reduce: {error}") from error
        return total

    def all_gather(self, value: Any) -> list[Any]:
        """Return every rank's ``value`` (anything that pickles) in rank order."""
        if self._mpi is None:
            return [value]
        gathered: list[Any] = self._world.allgather(value)
        return gathered

    def broadcast(self, value: Any, root: int) -> Any:
        """Return to all ranks the ``value`` (anything that pickles) of rank ``root``."""
        return value if self._mpi is None else self._world.bcast(value, root)

    def split(self, ranks: Sequence[int]) -> Comm | None:
        """Return to each of ``ranks`` a world of only them, whose first is its rank 0; to the others None. A collective.

        MPI alone can do that. The smaller world must be gone before the process ends: MPI frees it.
        """
        assert self._mpi is not None
        assert self._group is not None
        is_in = self.rank in ranks
        group = self._group.split(0 if is_in else 1, self.rank)
        world = self._world.Split(0 if is_in else 1, self.rank)
        return Comm(world.Get_rank(), world.Get_size(), group if len(ranks) > 1 else None, self._mpi, world) if is_in else None

    def rest(self) -> None:
        """Wait until all ranks have called this, without using the processor: others may be measuring."""
        if self._mpi is None:
            return
        request = self._world.Ibarrier()
        while not request.Test():
            time.sleep(_REST_S)

    def abort(self, exit_code: int) -> None:
        """End all ranks on all hosts with ``exit_code``, from any one rank; does not return."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self._mpi is not None:
            self._mpi.COMM_WORLD.Abort(exit_code)
        os._exit(exit_code)


def to_floats(vector: mx.array) -> list[float]:
    """Return a one-dimensional array as Python numbers."""
    return [float(number) for number in np.array(vector)]


def connect(world_size: int, backend: str = "mpi") -> Comm:
    """Return this rank's `Comm` after checking that the world has ``world_size`` ranks.

    ``backend`` carries the arrays: MPI, or MLX's ring or JACCL, which read their hosts from files that the launcher
    wrote. All ranks must call it, once, before any other use of MPI. Raises `ClusterError` when MLX cannot load MPI, when the
    launcher started another number of ranks, or when the ranks did not find each other.
    """
    launched = int(os.environ.get(LAUNCHED_SIZE, "1"))
    if launched != world_size:
        raise ClusterError(
            f"the plan is for {world_size} ranks, but {launched} {'was' if launched == 1 else 'were'} started; "
            "start the run with ./inv train, which renders hostfile and plan together"
        )
    if world_size == 1:
        return Comm()
    if backend != "mpi":
        return _connect_beside_mpi(world_size, backend)
    try:
        group = mx.distributed.init(strict=True, backend="mpi")
    except RuntimeError as error:
        library = os.environ.get("MLX_MPI_LIBNAME", "(MLX_MPI_LIBNAME is not set)")
        raise ClusterError(
            f"MLX cannot use the MPI library {library} ({error}); run ./inv again to repair the environment"
        ) from error
    if group.size() != world_size:
        raise ClusterError(
            f"the plan is for {world_size} ranks, but MPI connected {group.size()}; is the same Open MPI on every host?"
        )
    return Comm(group.rank(), group.size(), group, _import_mpi4py())


def _connect_beside_mpi(world_size: int, backend: str) -> Comm:
    """Return a `Comm` whose arrays go over MLX's own ``backend``; mpi4py starts MPI itself, MLX never does."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank = world.Get_rank()
    if world.Get_size() != world_size:
        raise ClusterError(
            f"the plan is for {world_size} ranks, but MPI connected {world.Get_size()}; is the same Open MPI on every host?"
        )
    os.environ["MLX_RANK"] = str(rank)
    world.Barrier()  # its peers wait for a rank only some seconds
    try:
        group = mx.distributed.init(strict=True, backend=backend)
    except RuntimeError as error:
        raise ClusterError(f"rank {rank} cannot connect by MLX's {backend} ({error}); launch.backend mpi may work") from error
    if (group.rank(), group.size()) != (rank, world_size):
        raise ClusterError(f"MLX's {backend} made rank {rank} of {world_size} rank {group.rank()} of {group.size()}")
    return Comm(rank, world_size, group, MPI)


def _import_mpi4py() -> ModuleType:
    """Return mpi4py's MPI module on the world that MLX has initialised; it must neither start nor end MPI itself."""
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI
