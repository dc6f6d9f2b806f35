"""Work shared among processes: order, errors, and that no worker outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from trainer.errors import InputError
from trainer.paths import PROJECT_ROOT
from trainer.workers import map_in_order

HERE = "test_workers"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers import this file."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_ROOT / "tests/unit"))


def make_adder(number: int) -> Callable[[int], int]:
    return lambda item: item + number


def make_printer() -> Callable[[int], int]:
    def work(item: int) -> int:
        print("not an answer", flush=True)
        os.write(1, b"neither is this")
        return item

    return work


def make_refuser() -> Callable[[int], int]:
    def work(item: int) -> int:
        if item == 3:
            raise InputError(["one", "two"])
        return item

    return work


def make_dying() -> Callable[[int], int]:
    def work(item: int) -> int:
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    return work


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(num_workers: int) -> None:
    """One process or several: the same results, each once."""
    assert list(map_in_order(f"{HERE}:make_adder", (5,), range(40), num_workers)) == list(range(5, 45))


def test_no_more_is_taken_than_is_in_hand() -> None:
    """Of an endless source only a few items beyond the results are taken: memory does not grow with the source."""
    taken: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    results = map_in_order(f"{HERE}:make_adder", (0,), endless(), 2)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 4
    results.close()


def test_what_a_worker_prints_is_no_answer() -> None:
    """Standard output of a worker's work goes elsewhere."""
    assert list(map_in_order(f"{HERE}:make_printer", (), [1, 2, 3], 2)) == [1, 2, 3]


def test_an_input_error_arrives_with_all_its_problems() -> None:
    """What a worker refuses is refused here, in words for people."""
    results = map_in_order(f"{HERE}:make_refuser", (), range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError) as caught:
        next(results)
    assert caught.value.problems == ("one", "two")


def test_a_worker_that_dies_is_an_error() -> None:
    """Nobody waits for the answer of a process that is gone."""
    with pytest.raises(RuntimeError, match="a worker process died with exit code -9"):
        list(map_in_order(f"{HERE}:make_dying", (), range(9), 2))


PARENT = """
import os
from trainer.workers import map_in_order
results = map_in_order("test_workers:make_pid_teller", (), range(100), 2)
print(next(results), next(results), flush=True)
import signal
os.kill(os.getpid(), signal.SIGKILL)
"""


def make_pid_teller() -> Callable[[int], int]:
    return lambda _: os.getpid()


def test_no_worker_outlives_a_killed_parent() -> None:
    """The parent gets SIGKILL, and its workers' standard error, which they share, reaches its end: they are gone."""
    parent = subprocess.run([sys.executable, "-c", PARENT], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert parent.returncode == -signal.SIGKILL
    for worker in map(int, parent.stdout.split()):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(worker)], capture_output=True, text=True).stdout
        assert not state or state.startswith("Z")  # nobody may have asked yet how it ended
