"""The verbs that processes run: ``python -m trainer VERB``. People type ``./inv TASK`` instead (tasks.py).

This is the boundary at which every error becomes a message and an exit code. MLX is imported only inside verbs, after
the number of threads is known.
"""

from __future__ import annotations

import argparse
import json
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
    fetch = verbs.add_parser("fetch", help="fetch the model; prints where it is")
    fetch.add_argument("--config", type=Path, required=True, help="a resolved recipe")
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
    measure = verbs.add_parser("measure", help="one rank of a baseline; started by mpirun")
    measure.add_argument("--plan", type=Path, required=True, help="plan.json of the run that is measured")
    measure.add_argument("--what", required=True, help="hosts,links,mpi,ring: what to measure, in this order")
    measure.add_argument("--payload", type=int, default=0, help="bytes that a run reduces each step, unless hosts are measured")
    measure.add_argument("--quick", action="store_true", help="fewer repeats")
    sweep = verbs.add_parser("sweep", help="one rank of all-reduces over MLX's ring; prints their times")
    sweep.add_argument("--sizes", required=True, help="bytes, with commas between")
    sweep.add_argument("--budget-s", type=float, required=True)
    sweep.add_argument("--world-size", type=int, required=True)
    rehearse = verbs.add_parser("rehearse", help="one rank of a run that waits instead of computing; started by mpirun")
    rehearse.add_argument("--plan", type=Path, required=True, help="plan.json; schedule.json lies beside it")
    options = parser.parse_args(argv)
    run = {
        "train": _train,
        "prepare": _prepare,
        "fetch": _fetch,
        "chat": _chat,
        "lead": _lead,
        "allreduce": _allreduce,
        "measure": _measure,
        "sweep": _sweep,
        "rehearse": _rehearse,
    }
    return run[options.verb](options)


def _lead(_: argparse.Namespace) -> int:
    from trainer.cluster.lead import lead

    return lead()


def _allreduce(options: argparse.Namespace) -> int:
    def work(plan: RunPlan, comm: Comm, events: Events, _: int) -> None:
        from trainer.comm.probe import probe

        probe(comm, events, plan.network, options.size_mib)

    return _as_rank(options.plan, work, threads=1)


def _measure(options: argparse.Namespace) -> int:
    def work(plan: RunPlan, comm: Comm, events: Events, threads: int) -> None:
        from trainer.engine.baseline import measure

        measure(plan, comm, events, threads, options.what.split(","), options.payload, is_quick=options.quick)

    return _as_rank(options.plan, work)


def _rehearse(options: argparse.Namespace) -> int:
    def work(_: RunPlan, comm: Comm, events: Events, __: int) -> None:
        from trainer.comm.rehearse import rehearse

        table = json.loads((options.plan.parent / "schedule.json").read_text("utf-8"))
        rehearse(comm, events, table["seconds"], table["payload_bytes"], table["fixed_s"])

    return _as_rank(options.plan, work, threads=1)


def _sweep(options: argparse.Namespace) -> int:
    set_threads(1)
    from trainer.comm.ring import sweep_here

    print(json.dumps(sweep_here([int(size) for size in options.sizes.split(",")], options.budget_s, options.world_size)))
    return EXIT_OK


def _train(options: argparse.Namespace) -> int:
    stop = StopFlag()
    signal.signal(signal.SIGUSR1, stop.set)

    def work(plan: RunPlan, comm: Comm, events: Events, threads: int) -> None:
        from trainer.engine.loop import Run

        Run(plan, comm, events, stop).execute(threads)

    return _as_rank(options.plan, work)


def _as_rank(plan_file: Path, work: Callable[[RunPlan, Comm, Events, int], None], threads: int | None = None) -> int:
    """Connect this rank as its plan says and do ``work``, which is given the number of threads; an error ends all ranks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides; a rank alone would leave the others hanging
    events = Events(rank=_rank())
    comm: Comm | None = None

    def run() -> None:
        nonlocal comm
        plan = _read_plan(plan_file)
        num_threads = set_threads(plan.config.launch.threads_per_rank if threads is None else threads)
        from trainer.comm.group import connect

        comm = connect(plan.world_size, plan.config.launch.backend)
        work(plan, comm, events, num_threads)

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


def _fetch(options: argparse.Namespace) -> int:
    events = Events()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))

    def run() -> None:
        set_threads(0)
        from trainer.model.sources import fetch_model
        from trainer.recipe import load_config

        model = fetch_model(load_config(options.config).model, lambda text: events.emit("notice", text=text))
        events.emit("fetched", model=str(model))

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
