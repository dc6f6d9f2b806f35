"""Work shared among processes of our own: items in, results out in the same order, never more in memory than is in hand.

A worker is ``python -m trainer.workers MODULE:FACTORY``. It reads pickles on standard input: first the arguments of the
factory, which returns the function to call, then item after item. It ends when its input ends, so none outlives a parent that
was killed. (Of the standard library's pools, one that is forked may not load what MLX has touched, and a spawned one leaves its
workers waiting for ever.)
"""

from __future__ import annotations

import collections
import importlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, BinaryIO

from trainer.errors import InputError
from trainer.paths import PROJECT_ROOT


def count_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    factory: str, arguments: tuple[Any, ...], items: Iterable[Any], num_workers: int
) -> Generator[Any, None, None]:
    """Yield the result of each item, in order. ``factory`` is "module:function"; ``arguments`` are given to it in each worker.

    With one worker all is done here, without a process. An `InputError` of a worker is raised here as it was there; the workers
    are ended with the iterator.
    """
    if num_workers <= 1:
        work = load_by_name(factory)(*arguments)
        yield from map(work, items)
        return
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(factory, arguments)) for _ in range(num_workers)]
        threads = stack.enter_context(ThreadPoolExecutor(num_workers, thread_name_prefix="worker"))
        free: collections.deque[_Worker] = collections.deque(workers)
        lock = threading.Lock()

        def ask(item: Any) -> Any:
            with lock:
                worker = free.popleft()
            try:
                return worker.ask(item)
            finally:
                with lock:
                    free.append(worker)

        for worker in workers:
            stack.callback(worker.kill)  # before the threads are waited for: one may wait for its worker
        waiting: collections.deque[Future[Any]] = collections.deque()
        for item in items:
            waiting.append(threads.submit(ask, item))
            if len(waiting) > num_workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Worker:
    """A process that answers one item at a time."""

    def __init__(self, factory: str, arguments: tuple[Any, ...]) -> None:
        path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer.workers", factory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=False,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._out: BinaryIO = self._process.stdout  # type: ignore[assignment]
        _send(self._in, arguments)

    def ask(self, item: Any) -> Any:
        """Return the result of ``item``; raises what the worker raised, or `RuntimeError` if it died."""
        try:
            _send(self._in, item)
            is_error, result = pickle.load(self._out)  # noqa: S301 - from our own process
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise RuntimeError(f"a worker process died with exit code {self._process.wait()}") from error
        if is_error:
            raise InputError(result)
        return result

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._in, self._out):
            try:
                pipe.close()
            except OSError:  # what was written last never arrived
                continue


def load_by_name(name: str) -> Callable[..., Any]:
    """Return the function that "module:function" names. What is named as text is no import of the module that names it."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _send(pipe: BinaryIO, value: Any) -> None:
    pickle.dump(value, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def main() -> None:
    """Answer items until standard input ends. What others print goes to standard error, away from the answers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    work = load_by_name(sys.argv[1])(*pickle.load(questions))  # noqa: S301 - from our own parent
    while True:
        try:
            item = pickle.load(questions)  # noqa: S301
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = (False, work(item))
        except InputError as error:
            answer = (True, error.problems)
        _send(answers, answer)


if __name__ == "__main__":
    main()
