"""The verbs that processes run: ``python -m trainer VERB``. People type ``./inv TASK`` instead (tasks.py).

This is the boundary at which every error becomes a message and an exit code. MLX is imported only inside verbs, after
the number of threads is known.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, ClusterError, FlotillaError
from trainer.events import Events
from trainer.native import load_blas, set_threads

if TYPE_CHECKING:
    from trainer.cluster.plan import RunPlan
    from trainer.comm.group import Comm


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="one rank of a run; started by mpirun")
    train.add_argument("--plan", type=Path, required=True, help="plan.json of the run")
    prepare = verbs.add_parser("prepare", help="fetch the model and check the data; prints where they are")
    prepare.add_argument("--config", type=Path, required=True, help="a resolved recipe")
    prepare.add_argument("--data", type=Path, required=True, help="folder of the data")
    chat = verbs.add_parser("chat", help="talk to a model, with or without an adapter")
    chat.add_argument("--model", type=Path, required=True)
    chat.add_argument("--adapter", type=Path)
    chat.add_argument("--trust-remote-code", action="store_true", help="let the model run Python code that it carries")
    chat.add_argument("--prompt", action="append", default=[], help="answer this and end; may be given several times")
    chat.add_argument("--system", default="", help="a system message to begin with")
    chat.add_argument("--max-tokens", type=int, default=512)
    chat.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    verbs.add_parser("lead", help="run mpirun for a control machine; the order comes on standard input")
    reduce = verbs.add_parser("allreduce", help="one rank of a check of the links; started by mpirun")
    reduce.add_argument("--plan", type=Path, required=True, help="plan.json that names backend and network")
    reduce.add_argument("--size-mib", type=float, required=True, help="how much to add up, all ranks together")
    options = parser.parse_args(argv)
    run = {"train": _train, "prepare": _prepare, "chat": _chat, "lead": _lead, "allreduce": _allreduce}
    return run[options.verb](options)


def _lead(_: argparse.Namespace) -> int:
    from trainer.cluster.lead import lead

    return lead()


def _allreduce(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = Events(rank=_rank())
    comm: Comm | None = None

    def run() -> None:
        nonlocal comm
        plan = _read_plan(options.plan)
        set_threads(1)
        from trainer.comm.group import connect
        from trainer.comm.probe import probe

        comm = connect(plan.world_size, plan.config.launch.backend)
        probe(comm, events, plan.network, options.size_mib)

    exit_code = guard(run, events)
    if exit_code and comm is not None:
        comm.abort(exit_code)
    return exit_code


def _train(options: argparse.Namespace) -> int:
    stop = StopFlag()
    signal.signal(signal.SIGUSR1, stop.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides; a rank alone would leave the others hanging
    events = Events(rank=_rank())
    comm: Comm | None = None

    def run() -> None:
        nonlocal comm
        plan = _read_plan(options.plan)
        threads = set_threads(plan.config.launch.threads_per_rank)
        from trainer.comm.group import connect
        from trainer.engine.loop import Run

        comm = connect(plan.world_size, plan.config.launch.backend)
        Run(plan, comm, events, stop).execute(threads)

    exit_code = guard(run, events)
    if exit_code and comm is not None:
        comm.abort(exit_code)
    return exit_code


def _read_plan(path: Path) -> RunPlan:
    from trainer.cluster.plan import RunPlan

    try:
        return RunPlan.parse(path.read_text("utf-8"))
    except FileNotFoundError as error:
        host = socket.gethostname()
        raise ClusterError(f"{host} has no {path}; every host needs the same files in the same place") from error


def _prepare(options: argparse.Namespace) -> int:
    events = Events()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))  # so that nothing half-made is left behind

    def run() -> None:
        set_threads(0)
        if sys.platform == "linux" and load_blas() is None:
            events.emit("notice", text="OpenBLAS cannot be loaded: training will be many times slower than it could be")
        from trainer.engine.prepare import prepare

        prepare(options.config, options.data, events)

    return guard(run, events)


def _chat(options: argparse.Namespace) -> int:
    set_threads(0)
    from trainer.engine.chat import chat

    try:
        chat(options)
    except FlotillaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


class StopFlag:
    """A signal handler that remembers that it was called."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self, *_: object) -> None:
        """Ask for a stop."""
        self._is_set = True

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._is_set


def guard(body: Callable[[], None], events: Events) -> int:
    """Run ``body``; whatever it raises becomes an ``error`` event and an exit code, which is returned."""
    try:
        body()
    except FlotillaError as error:
        events.emit("error", message=str(error), exit_code=error.exit_code)
        return error.exit_code
    except BaseException as error:  # the process boundary: nothing may pass, or the other ranks would wait for ever
        traceback.print_exc()
        events.emit("error", message=f"this is a bug in Flotilla: {error!r} (see the log)", exit_code=EXIT_BUG)
        return EXIT_BUG
    return EXIT_OK


def _rank() -> int:
    import os

    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
