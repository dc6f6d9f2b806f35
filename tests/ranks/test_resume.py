"""A run that was interrupted, or lost, goes on as if nothing had been: the same numbers bit by bit."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Log, plan_tiny, run, write_tiny_data

from trainer.checkpoints import discard_after, folder_of, list_steps, read_checkpoint
from trainer.cluster.launch import execute
from trainer.cluster.plan import Launch, RunPlan
from trainer.cluster.processes import end_mentioning
from trainer.cluster.sessions import name_session
from trainer.paths import PROJECT_ROOT
from trainer.report.story import read_story

STEPS = 24
LOST_AFTER = 9  # steps, or some more: the ranks go on while the kill is on its way
SETTINGS = (
    f"train.steps={STEPS}",
    "train.eval_every=6",
    "train.global_batch=5",
    "train.micro_batch=2",
    "adapter.dropout=0.1",
    "checkpoint.every_steps=4",
    "checkpoint.keep=20",
    "speed.balance=tokens",  # another run's speeds are others: equal shares make two runs equal bit by bit
)


def launch_again(launch: Launch, runs: Path, model: Path, data: Path, num_ranks: int) -> Launch:
    """Return a launch that goes on in the folder of an earlier one."""
    fresh = plan_tiny(model, data, runs, num_ranks, *SETTINGS)
    plan = dataclasses.replace(fresh.plan, run_dir=launch.plan.run_dir, attempt=2)
    return going_on(fresh, plan, launch.plan.run_dir)


def going_on(launch: Launch, plan: RunPlan, source: Path) -> Launch:
    """Return ``launch`` with another plan, going on from the newest checkpoint of the run in ``source``."""
    sessions = [str(name_session(each.file, each.attempt)) for each in (launch.plan, plan)]
    argv = tuple(word.replace(str(launch.plan.run_dir), str(plan.run_dir)).replace(*sessions) for word in launch.argv)
    plan = dataclasses.replace(plan, resume_from=source)
    return Launch(plan=plan, kept=plan, argv=argv, env=launch.env, files={**launch.files, "plan.json": plan.render()})


def interrupted(launch: Launch, after: int) -> Log:
    """Run until step ``after`` is told, and kill all ranks where they are."""
    log = Log()

    class Killer(Log):
        def on_event(self, event: dict[str, Any]) -> None:
            log.on_event(event)
            if event["event"] == "step" and event["step"] == after:
                end_mentioning(str(launch.plan.run_dir / "plan.json"))  # by mpirun they would die a dozen steps later
                raise InterruptedError

    with pytest.raises(InterruptedError):
        execute(launch, Killer())
    return log


def told(log: Log, kind: str) -> dict[int, tuple[Any, ...]]:
    """Return what the steps, or validations, came to, without their times."""
    return {
        event["step"]: tuple(event.get(name) for name in ("loss", "grad_norm", "learning_rate", "tokens"))
        for event in log.of(kind)
    }


Whole = Callable[[int], tuple[Launch, Log]]


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return what makes the run that nobody interrupts, once for each number of ranks."""

    @functools.cache
    def make(num_ranks: int) -> tuple[Launch, Log]:
        launch = plan_tiny(tiny_model, tiny_data, tmp_path_factory.mktemp("runs"), num_ranks, *SETTINGS)
        outcome, log = run(launch)
        assert outcome.exit_code == 0, outcome.message
        return launch, log

    return make


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_lost_run_goes_on_bit_by_bit(whole: Whole, tiny_model: Path, tiny_data: Path, tmp_path: Path, num_ranks: int) -> None:
    """Killed amid its steps and resumed: every later step, validation and byte of the state equals the undisturbed run's."""
    reference, log = whole(num_ranks)
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, num_ranks, *SETTINGS)
    interrupted(launch, LOST_AFTER)
    outcome, after = run(launch_again(launch, tmp_path, tiny_model, tiny_data, num_ranks))
    assert outcome.exit_code == 0, outcome.message
    [resumed] = after.of("resumed")
    assert LOST_AFTER - 6 < resumed["step"] < STEPS
    for kind in ("step", "validated"):
        expected = {step: values for step, values in told(log, kind).items() if step > resumed["step"]}
        assert told(after, kind) == expected
        assert len(expected) > 0
    ours, theirs = (each.plan.run_dir for each in (launch, reference))
    for path in ("adapter", "checkpoints/last", f"checkpoints/step-{STEPS:08d}"):
        files = list((theirs / path).glob("*.safetensors"))
        assert files
        for file in files:
            assert (ours / path / file.name).read_bytes() == file.read_bytes(), file


@pytest.mark.parametrize("num_ranks", [3])
def test_another_number_of_ranks_goes_on_in_the_same_order(
    whole: Whole, tiny_model: Path, tiny_data: Path, tmp_path: Path, num_ranks: int
) -> None:
    """Two ranks' checkpoint continued by one or three: the same samples in the same steps, and nearly the losses."""
    reference, log = whole(2)
    since = 12
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, num_ranks, *SETTINGS)
    shutil.copytree(reference.plan.run_dir / "checkpoints", tmp_path / "old" / "checkpoints")
    discard_after(tmp_path / "old" / "checkpoints", since)
    outcome, after = run(going_on(launch, launch.plan, tmp_path / "old"))
    assert outcome.exit_code == 0, outcome.message
    assert after.of("resumed")[0]["step"] == since
    for event, expected in zip(after.of("step"), log.of("step")[since:], strict=True):
        for same in ("step", "tokens", "supervised"):
            assert event[same] == expected[same]
        assert event["loss"] == pytest.approx(expected["loss"], rel=0.02)  # dropout's masks differ from rank to rank


def test_a_damaged_checkpoint_is_named_and_passed_over(whole: Whole, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """A bit turned over in the newest checkpoint, the next one cut short: the run goes on from the third."""
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, 2, *SETTINGS)
    shutil.copytree(whole(2)[0].plan.run_dir, launch.plan.run_dir)
    kept = launch.plan.run_dir / "checkpoints"
    newest, second, third = list_steps(kept)[:3]
    altered, cut = folder_of(kept, newest) / "state.safetensors", folder_of(kept, second) / "manifest.json"
    data = bytearray(altered.read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:100])
    outcome, after = run(launch_again(launch, tmp_path, tiny_model, tiny_data, 2))
    assert outcome.exit_code == 0, outcome.message
    host = os.uname().nodename
    said = [event["text"] for event in after.of("notice")]
    assert f"passed over a damaged checkpoint: {host}: {altered}: is not what was written" in said
    assert any(text.startswith(f"passed over a damaged checkpoint: {host}: {cut}: cannot be read: ") for text in said)
    assert after.of("resumed")[0]["step"] == third
    assert read_checkpoint(folder_of(kept, newest)).step == STEPS


def test_a_host_that_lacks_the_checkpoint_is_given_it(tmp_path: Path) -> None:
    """Each of three ranks stands for a host: one has the newest, one an older one, one nothing; all go on from the newest."""
    from trainer.checkpoints import write_checkpoint
    from trainer.comm.group import Comm
    from trainer.engine.checkpoint import agree_on_checkpoint

    for host, steps in enumerate([(4,), (4, 8), ()]):
        for step in steps:
            write_checkpoint(tmp_path / str(host), step, {"attempt": 1}, {"state.safetensors": [b"state %d" % step]})
    meeting = Meeting(3)
    found: dict[int, Any] = {}

    def attend(rank: int) -> None:
        class Seat(Comm):
            is_first_on_host = True

            def all_gather(self, value: Any) -> list[Any]:
                return meeting.gather(rank, value)

            def broadcast(self, value: Any, root: int) -> Any:
                return meeting.gather(rank, value)[root]

        comm = Seat(rank, 3)
        found[rank] = agree_on_checkpoint(comm, tmp_path / str(rank), tmp_path / str(rank), host=f"host-{rank}")[0]

    threads = [threading.Thread(target=attend, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert {
        rank: (each.step, (each.folder / "state.safetensors").read_bytes()) for rank, each in found.items()
    } == dict.fromkeys(range(3), (8, b"state 8"))
    assert {each.folder.parent.name for each in found.values()} == {"0", "1", "2"}
    assert all(read_checkpoint(each.folder).facts == {"attempt": 1} for each in found.values())


class Meeting:
    """Threads that stand for ranks exchange values."""

    def __init__(self, size: int) -> None:
        self._values: list[Any] = [None] * size
        self._barrier = threading.Barrier(size)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait(20)
        values = list(self._values)
        self._barrier.wait(20)
        return values


def test_a_checkpoint_remembers_the_whole_run(whole: Whole) -> None:
    """What a checkpoint remembers adds up: steps, tokens, best validation."""
    launch, log = whole(2)
    newest = read_checkpoint(folder_of(launch.plan.run_dir / "checkpoints", STEPS))
    progress = newest.facts["progress"]
    assert progress["tokens"] == sum(event["tokens"] for event in log.of("step"))
    assert progress["best_loss"] == min(event["loss"] for event in log.of("validated"))
    assert json.loads((newest.folder / "manifest.json").read_text())["facts"]["config"]["train"]["steps"] == STEPS


def invoke(*arguments: str, runs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "invoke", "--search-root", str(PROJECT_ROOT), *arguments]
    env = {**os.environ, "FLOTILLA_RUNS": str(runs)}
    return subprocess.run(command, cwd=runs.parent, capture_output=True, text=True, timeout=200, env=env)


def test_the_command_resumes_refuses_and_branches(whole: Whole, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """`train --resume` goes on in the run's folder; other settings or data are refused with the difference, or branch off.

    Of the last steps before the checkpoint nobody has heard, as when the control machine is gone: they are made up for.
    """
    reference, log = whole(2)
    runs = tmp_path / "runs"
    old = runs / "old"
    shutil.copytree(reference.plan.run_dir, old)
    discard_after(old / "checkpoints", 18)
    plan = dataclasses.replace(reference.plan, run_dir=old)
    (old / "plan.json").write_text(plan.render())
    steps = [event for event in log.events if event["event"] in ("step", "answered") and event.get("step", 0) <= 15]
    (old / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in steps) + '{"event": "st')

    refused = invoke("train", "--resume", "old", "-o", "optimizer.learning_rate=0.5", runs=runs)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"{old}: cannot go on, for something has changed; put it back, or start a new run from its newest checkpoint with "
        "--branch:\n  optimizer.learning_rate: was 0.001, now 0.5\n"
    )
    other = write_tiny_data(tmp_path / "other", seed=5)
    refused = invoke("train", "--resume", "old", "-o", f"data.path={other}", runs=runs)
    assert refused.returncode == 2
    assert re.search(r"with --branch:\n  data: was [0-9a-f]{12}, now [0-9a-f]{12}\n", refused.stderr)

    resumed = invoke("train", "--resume", "old", runs=runs)
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on after step 18 of 24" in resumed.stderr
    story = read_story(old)
    assert story.state == "done"
    assert [step.step for step in story.steps] == list(range(1, STEPS + 1))
    assert [step.loss for step in story.steps] == [event["loss"] for event in log.of("step")]
    assert [event["step"] for event in story.of("validated")] == [0, 6, 12, 18, 24]
    assert story.summary["steps"] == STEPS

    done = invoke("train", "--resume", "old", runs=runs)
    assert done.returncode == 2
    assert done.stderr == f"{old}: has ended well, there is nothing to go on with; --branch starts a new run from its end\n"
    options = ("-o", "train.steps=26", "-o", "optimizer.learning_rate=0.001", "-n", "twig")
    branched = invoke("train", "--resume", "old", "--branch", *options, runs=runs)
    assert branched.returncode == 0, branched.stderr
    twig = read_story(runs / "latest")
    assert twig.folder.resolve().name.endswith("-twig")
    assert [step.step for step in twig.steps] == [25, 26]
    assert [event["step"] for event in twig.of("checkpoint")] == [24, 26]  # the first at once: it may be lost before a step
