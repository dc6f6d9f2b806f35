"""Whatever goes wrong on one rank, all ranks end soon, with one message and the exit code that the design gives it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import Log, plan_tiny, run, with_program

from trainer.cluster.outcome import Outcome
from trainer.cluster.plan import Launch
from trainer.cluster.sessions import name_session
from trainer.data.order import global_batch_at
from trainer.data.store import digest_index, read_index
from trainer.errors import ClusterError
from trainer.paths import PROJECT_ROOT

BROKEN = Path(__file__).with_name("job_broken.py")
SOON_S = 10.0


def run_broken(launch: Launch, how: str, **environment: str) -> tuple[Outcome, Log]:
    broken = with_program(launch, BROKEN)
    return run(dataclasses.replace(broken, env={**broken.env, "BROKEN": how, **environment}))


def seconds_after(kind: str, log: Log, ended_at: float) -> float:
    return ended_at - log.of(kind)[-1]["time"]


@pytest.mark.parametrize(
    ("how", "exit_code", "message"),
    [
        ("raises", 70, "this is a bug in Flotilla: RuntimeError('the disk is on fire') (see the log)"),
        ("exits", 70, "this is a bug in Flotilla: SystemExit(1) (see the log)"),
        ("is killed", 75, "a rank was killed from outside, for example for want of memory"),
    ],
)
def test_a_rank_that_fails_in_a_step_ends_all_ranks(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, how: str, exit_code: int, message: str
) -> None:
    """While the others wait in the all-reduce, an exception, an exit or a kill on rank 1 ends the job at once, traceless."""
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, 3)
    outcome, log = run_broken(launch, how)
    ended_at = time.time()
    assert (outcome.exit_code, outcome.message) == (exit_code, message)
    assert seconds_after("planned", log, ended_at) < SOON_S
    assert not name_session(launch.plan.file, 1).exists()


@pytest.mark.parametrize(("how", "exit_code"), [("raises", 70), ("is killed", 75)])
def test_a_rank_that_fails_in_a_ring_ends_all_ranks(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, how: str, exit_code: int
) -> None:
    """With MLX's ring, mpirun still sees to it that no rank is left waiting for one that is gone."""
    outcome, _ = run_broken(plan_tiny(tiny_model, tiny_data, tmp_path, 3, "launch.backend=ring"), how)
    assert outcome.exit_code == exit_code, outcome.message


def test_jaccl_without_its_cables_is_refused(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """RDMA needs a cable between every two hosts; on one machine there is none, and nothing starts."""
    with pytest.raises(ClusterError, match=r"^launch.backend jaccl takes one rank a host; set slots: 1 for here$"):
        plan_tiny(tiny_model, tiny_data, tmp_path, 2, "launch.backend=jaccl")


def test_hosts_that_disagree_are_named_with_what_they_have(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Other data on one rank: exit 3 before the model is loaded, the message says what differs and where."""
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, 3)
    outcome, log = run_broken(launch, "has other data")
    host, right = os.uname().nodename, launch.plan.fingerprints["data"][:20]
    assert outcome == Outcome(
        3,
        "the hosts do not agree; bring them to the same state and start again:\n"
        f"  data: {right} (rank 0 on {host}, rank 2 on {host}, the control machine) but {'0' * 20} (rank 1 on {host})",
    )
    assert not log.of("planned")


def test_files_that_changed_since_the_launch_are_refused(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """All ranks have the same model, but not the one that the control machine planned with: exit 3."""
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, 2)
    right = launch.plan.fingerprints["model"][:20]
    plan = dataclasses.replace(launch.plan, fingerprints={**launch.plan.fingerprints, "model": "f" * 64})
    outcome, _ = run(dataclasses.replace(launch, plan=plan, kept=plan, files={**launch.files, "plan.json": plan.render()}))
    assert outcome.exit_code == 3
    host = os.uname().nodename
    [difference] = [line for line in outcome.message.splitlines() if "model: " in line]
    assert f"{right} (rank 0 on {host})" in difference
    assert "the control machine" in difference


def test_hosts_that_tokenised_otherwise_are_named(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """The same model and data made another store on one host: exit 3 before a step, the store and both hosts named."""
    outcome, log = run_broken(
        plan_tiny(tiny_model, tiny_data, tmp_path, 2), "tokenises otherwise", OTHER_CACHE=str(tmp_path / "other")
    )
    [made] = [path for path in (tmp_path / "other" / "tokens").iterdir() if not path.name.startswith(".")]
    theirs, host = read_index(made), os.uname().nodename
    assert theirs is not None
    assert outcome.exit_code == 3, outcome.message
    assert f"  token store {made.name}: " in outcome.message
    assert re.search(rf"\b(?!{digest_index(theirs)[:20]})[0-9a-f]{{20}} \(rank 0 on {host}\)", outcome.message)
    assert f"{digest_index(theirs)[:20]} (rank 1 on {host})" in outcome.message
    assert not log.of("planned")


def test_hosts_with_other_packages_are_refused(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Another version of mlx on one rank: exit 3, the package and both versions named."""
    outcome, _ = run_broken(plan_tiny(tiny_model, tiny_data, tmp_path, 2), "has another mlx")
    assert outcome.exit_code == 3
    assert "mlx: " in outcome.message
    assert f"0.31.0 (rank 1 on {os.uname().nodename})" in outcome.message


def test_a_loss_that_stays_infinite_ends_the_run(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """NaN on one rank reaches all through the reduction; the third time in a row: exit 4, and what to go back to."""
    settings = ("checkpoint.every_steps=1", "train.compare_every=0")
    outcome, log = run_broken(plan_tiny(tiny_model, tiny_data, tmp_path, 2, *settings), "diverges")
    assert outcome == Outcome(
        4,
        "step 3: the loss is nan and the gradient's norm nan, the 3rd step in a row that is not finite; "
        "lower optimizer.learning_rate or raise schedule.warmup_steps; there is no checkpoint yet",
    )
    assert [event["step"] for event in log.of("skipped")] == [1, 2, 3]
    assert not log.of("step")


def test_a_step_that_is_not_finite_is_left_out_on_all_ranks(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """One infinite loss on rank 1: its samples are named, no rank applies the step, the ranks stay alike, and go on."""
    settings = ("train.steps=6", "train.eval_every=0", "train.compare_every=1")
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, 2, *settings)
    outcome, log = run_broken(launch, "diverges once")
    assert outcome.exit_code == 0, outcome.message
    [skipped] = log.of("skipped")
    assert (skipped["step"], skipped["ranks"], skipped["loss"]) == (3, [1], math.inf)
    seed = launch.plan.config.train.seed
    chosen = {int(row) + 1 for row in global_batch_at(2, 24, launch.plan.config.train.global_batch, seed)}
    assert 0 < len(skipped["samples"]) < len(chosen)
    assert set(skipped["samples"]) < chosen
    assert [event["step"] for event in log.of("step")] == [1, 2, 4, 5, 6]
    rates = [event["learning_rate"] for event in log.of("step")]
    assert rates[2] > rates[3]
    assert log.of("done")[0]["skipped"] == 1


def test_ranks_that_drift_apart_are_stopped(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """One bit in one parameter of rank 1: exit 3 at the next comparison, with the rank that is not like the others."""
    outcome, log = run_broken(plan_tiny(tiny_model, tiny_data, tmp_path, 3, "train.compare_every=2"), "drifts")
    assert outcome.exit_code == 3
    assert outcome.message == (
        f"after step 2 the ranks' parameters are not the same: rank 1 on {os.uname().nodename} has others than most; "
        "its memory or its link is not to be trusted; there is no checkpoint yet"
    )
    assert len(log.of("step")) == 2


def test_without_the_mpi_library_no_rank_trains_alone(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """A libmpi that is not there: exit 3 instead of two ranks that each train on everything."""
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, 2)
    missing = tmp_path / "libmpi.so.40"
    argv = [word.replace(launch.env["MLX_MPI_LIBNAME"], str(missing)) if "MLX_MPI" in word else word for word in launch.argv]
    outcome, log = run(dataclasses.replace(launch, argv=tuple(argv), env={**launch.env, "MLX_MPI_LIBNAME": str(missing)}))
    assert outcome.exit_code == 3
    assert outcome.message.startswith(f"MLX cannot use the MPI library {missing} (")
    assert outcome.message.endswith("; run ./inv again to repair the environment")
    assert not log.of("started")


@pytest.mark.parametrize(("started", "verb"), [(1, "was"), (2, "were")])
def test_a_world_of_the_wrong_size_is_refused(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, started: int, verb: str
) -> None:
    """A plan for three ranks started with one or two: exit 3, both numbers in the message."""
    launch = plan_tiny(tiny_model, tiny_data, tmp_path, 3)
    position = launch.argv.index("-np") + 1
    argv = (*launch.argv[:position], str(started), *launch.argv[position + 1 :])
    outcome, log = run(dataclasses.replace(launch, argv=argv))
    assert outcome == Outcome(
        3,
        f"the plan is for 3 ranks, but {started} {verb} started; start the run with ./inv train, which renders hostfile "
        "and plan together",
    )
    assert not log.of("started")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_all_ranks_and_keeps_the_adapter(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C or SIGTERM during training: exit 130, the last adapter is on disk, no rank is left."""
    program = (
        "import sys; from pathlib import Path; from support import plan_tiny, run; from trainer.cluster.launch import execute\n"
        "class Watch:\n"
        "    def on_event(self, event):\n"
        "        print(event['event'], event.get('path', ''), flush=True)\n"
        "    def on_line(self, line): pass\n"
        "model, data, runs = map(Path, sys.argv[1:])\n"
        "sys.exit(execute(plan_tiny(model, data, runs, 2, 'train.steps=100000', 'train.eval_every=0'), Watch()).exit_code)\n"
    )
    command = [sys.executable, "-c", program, str(tiny_model), str(tiny_data), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'tests'}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("step"))
        process.send_signal(number)
        rest = process.stdout.read().split()
        assert process.wait(SOON_S) == 130
    assert "saved" in rest
    [run_dir] = [path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()]
    assert (run_dir / "adapter" / "adapters.safetensors").is_file()
    assert (run_dir / "checkpoints" / "last" / "adapters.safetensors").is_file()
    assert not find_processes(str(run_dir))


def find_processes(argument: str) -> list[str]:
    """Return the command lines of living processes that mention ``argument``."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if argument in line and not line.startswith("ps ")]
