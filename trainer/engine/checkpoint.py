"""The state of a run: what is in a checkpoint, when one is written, and how a run goes on from it.

The state is the same on all ranks, so the first rank of each host writes it to that host's disk, without traffic. A step
needs references to the arrays alone, for MLX never changes an array in place; they are copied out of MLX when a checkpoint is
due, and a thread does the rest. The ranks agree on when in the all-reduce of a step (`Keeper.wishes`): a time, or a disk that
is slow, is one rank's, but the checkpoint of a step must be on all hosts.
"""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from trainer.checkpoints import Checkpoint, discard_after, find_newest, keep_only, write_checkpoint
from trainer.comm.group import Comm
from trainer.config import CheckpointConfig
from trainer.engine.step import trainable_parameters
from trainer.errors import ClusterError, InputError

STATE, BEST = "state.safetensors", "best.safetensors"
_MODEL, _OPTIMIZER = "model.", "optimizer."
_KINDS = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint64: "U64", mx.uint32: "U32", mx.int32: "I32"}
_REPEAT_S = 10.0  # after a checkpoint that could not be written the next one is tried, then after twice that, and so on
_ROOM = 3  # checkpoints that must fit on the disk when a run starts: the one before, the next, and air

Named = dict[str, mx.array]


def collect_state(model: nn.Module, optimizer: optim.Optimizer) -> Named:
    """Return the trainable parameters and the optimizer's state (moments, step, learning rate) by name."""
    named = {_MODEL + name: value for name, value in trainable_parameters(model)}
    return {**named, **{_OPTIMIZER + name: value for name, value in sorted(tree_flatten(optimizer.state))}}


def restore_state(model: nn.Module, optimizer: optim.Optimizer, named: Named) -> None:
    """Put what `collect_state` returned back; raises `InputError` if it is the state of other parameters."""
    parameters = {name.removeprefix(_MODEL): value for name, value in named.items() if name.startswith(_MODEL)}
    expected = {name: (value.shape, value.dtype) for name, value in trainable_parameters(model)}
    if {name: (value.shape, value.dtype) for name, value in parameters.items()} != expected:
        raise InputError("the checkpoint is of another model or of another adapter; start a new run with ./inv train")
    model.load_weights(list(parameters.items()), strict=False)
    moments = [(name.removeprefix(_OPTIMIZER), value) for name, value in named.items() if name.startswith(_OPTIMIZER)]
    optimizer.state = tree_unflatten(moments)
    mx.eval(model.trainable_parameters(), optimizer.state)  # mx.load is lazy: read before anyone replaces the file


def to_safetensors(named: Mapping[str, mx.array]) -> list[Any]:
    """Return a safetensors file in portions, each a copy of its array: to be written by a thread that knows no MLX."""
    header: dict[str, Any] = {}
    portions: list[Any] = []
    offset = 0
    for name, value in named.items():
        bits = _copy(value)
        header[name] = {
            "dtype": _KINDS[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + bits.nbytes],
        }
        offset += bits.nbytes
        portions.append(bits)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *portions]


@dataclass(frozen=True)
class Written:
    """A checkpoint that is on this host's disk; ``seconds`` is how long the thread was at it."""

    checkpoint: Checkpoint
    seconds: float


class Keeper:
    """Keeps a host's checkpoints in ``folder``. Every rank has one; the first of each host writes.

    ``best`` is the file of the best adapter so far, for whoever goes on from here.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, comm: Comm, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.best: bytes | None = None
        self._config, self._comm, self._clock = config, comm, clock
        self._thread: threading.Thread | None = None
        self._done: list[Written | str] = []
        self._saved_step = 0
        self._saved_at = clock()
        self._failed_at: float | None = None  # when this host could not write the last one
        self._repeat_s = _REPEAT_S

    def go_on_from(self, step: int) -> None:
        """Count from ``step``, of which there is a checkpoint."""
        self._saved_step, self._saved_at = step, self._clock()

    def wishes(self, step: int) -> tuple[float, float]:
        """Return, to be added up over all ranks during ``step``: is a checkpoint due, and is a writer still busy."""
        is_wanted = (self._comm.rank == 0 and self._is_due(step)) or self._is_to_be_repeated
        return float(is_wanted), float(self._is_busy)

    @staticmethod
    def grants(sums: Sequence[float]) -> bool:
        """Whether the ranks write a checkpoint now, from the sums of what they wished."""
        due, busy = sums
        return due > 0 and busy == 0

    def save(self, step: int, state: Named, facts: Mapping[str, Any], keep_step: int = 0) -> None:
        """Copy ``state`` and have it written as the checkpoint of ``step``, unless it is there; that of ``keep_step`` stays.

        What a host cannot write it wishes for again soon, since room may have been made.
        """
        if step == self._saved_step:
            return
        self.go_on_from(step)
        if not self._comm.is_first_on_host:
            return
        files = {STATE: to_safetensors(state), **({BEST: [self.best]} if self.best else {})}
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, facts, files, keep_step), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self._thread:
            self._thread.join()

    def take_news(self) -> list[Written | str]:
        """Return what has been written since this was last asked for, and, in words, what could not be."""
        news = []
        while self._done:
            news.append(self._done.pop(0))
        return news

    def check_room(self, size_bytes: int) -> str:
        """Return why checkpoints of ``size_bytes`` do not fit on this host's disk, nothing if they do."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(self.folder).free, _ROOM * size_bytes
        if free >= needed:
            return ""
        host = socket.gethostname()
        return f"{host}: {self.folder} has {free // 2**20} MiB free where checkpoints need {needed // 2**20 + 1} MiB; make room"

    @property
    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def _is_to_be_repeated(self) -> bool:
        return self._failed_at is not None and self._clock() - self._failed_at >= self._repeat_s

    def _is_due(self, step: int) -> bool:
        every, every_s = self._config.every_steps, self._config.every_s
        late = bool(every_s) and self._clock() - self._saved_at >= every_s
        return late or (bool(every) and step - self._saved_step >= every)

    def _write(self, step: int, facts: Mapping[str, Any], files: Mapping[str, Sequence[Any]], keep_step: int) -> None:
        started = time.perf_counter()
        try:
            written = write_checkpoint(self.folder, step, facts, files)
            keep_only(self.folder, self._config.keep, keep_step)
        except OSError as error:
            where = f"{socket.gethostname()}: the checkpoint of step {step} could not be written to {self.folder}"
            self._done.append(f"{where} ({error.strerror}); the run goes on without it")
            self._repeat_s = _REPEAT_S if self._failed_at is None else 2 * self._repeat_s
            self._failed_at = self._clock()
            return
        self._failed_at = None
        self._done.append(Written(written, time.perf_counter() - started))


def agree_on_checkpoint(comm: Comm, source: Path, folder: Path, host: str = "") -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint in ``source`` that is whole on any host, as it now is on this host too; a collective.

    A host that lacks it, or has another of that step, gets it from one that has it, into ``folder``. Also returns what is wrong
    with the checkpoints that were passed over, of all hosts. None if there is no checkpoint anywhere.
    """
    host = host or socket.gethostname()
    found, problems = find_newest(source) if comm.is_first_on_host else (None, [])
    # a host that was away may have a later step of an earlier attempt, which the others have taken back
    own = (found.facts["attempt"], found.step) if found else (0, -1)
    everyone = comm.all_gather((own, [f"{host}: {problem}" for problem in problems]))
    newest = max(theirs for theirs, _ in everyone)
    passed_over = [problem for _, theirs in everyone for problem in theirs]
    step = newest[1]
    if step < 0:
        return None, passed_over
    owner = next(rank for rank, (theirs, _) in enumerate(everyone) if theirs == newest)
    is_owner = comm.rank == owner
    chosen = comm.broadcast((found.facts, _state_digest(found)) if is_owner and found else None, owner)
    facts, digest = chosen
    has_it = found is not None and found.step == step and _state_digest(found) == digest
    lacking = [rank for rank, lacks in enumerate(comm.all_gather(comm.is_first_on_host and not has_it)) if lacks]
    if lacking:
        files = comm.broadcast(_read_files(found.folder) if is_owner and found else None, owner)
        if comm.rank in lacking:
            found = write_checkpoint(folder, step, facts, {name: [data] for name, data in files.items()})
    where = comm.all_gather((host, str(found.folder) if found and comm.is_first_on_host else ""))
    mine = next(Path(path) for name, path in where if name == host and path)
    return Checkpoint(folder=mine, step=step, facts=facts, digest=digest, size_bytes=0), passed_over


def take_over(comm: Comm, folder: Path, step: int) -> None:
    """Remove on this host what comes after ``step``: the run does it again; a collective."""
    if comm.is_first_on_host and folder.is_dir():
        discard_after(folder, step)
    comm.all_gather(None)


def to_bytes(value: mx.array) -> bytes:
    """Return the bits of an array of any type."""
    return _copy(value).tobytes()


def load_state(checkpoint: Checkpoint) -> Named:
    """Return the arrays of a checkpoint, not yet read."""
    named = mx.load(str(checkpoint.folder / STATE))
    assert isinstance(named, dict)
    return named


def load_best(checkpoint: Checkpoint) -> bytes | None:
    """Return the file of the best adapter of a checkpoint; None if no validation had beaten the base model."""
    path = checkpoint.folder / BEST
    return path.read_bytes() if path.exists() else None


def check_rooms(comm: Comm, keeper: Keeper, model: nn.Module) -> None:
    """Raise `ClusterError` on all ranks if any host's disk has no room for checkpoints; a collective."""
    size = sum(value.nbytes for _, value in trainable_parameters(model))
    problems = comm.all_gather(keeper.check_room(4 * size) if comm.is_first_on_host else "")  # two moments, the best adapter
    if any(problems):
        raise ClusterError("\n".join(problem for problem in problems if problem))


def _state_digest(checkpoint: Checkpoint) -> str:
    """Return what two hosts' checkpoints of the same state have in common: their times differ."""
    files = json.loads((checkpoint.folder / "manifest.json").read_bytes())["files"]
    return json.dumps({name: entry["sha256"] for name, entry in sorted(files.items())})


def _read_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (STATE, BEST) if (folder / name).exists()}


def _copy(value: mx.array) -> NDArray[Any]:
    """Return a flat copy of an array that NumPy can hold: of bfloat16, which it does not know, the bits."""
    return np.array(value.view(mx.uint16) if value.dtype == mx.bfloat16 else value, copy=True, order="C").reshape(-1)
