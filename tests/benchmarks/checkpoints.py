"""What a checkpoint every ten steps costs: runs with and without, interleaved, compared step by step.

    .venv/bin/python -m tests.benchmarks.checkpoints [--steps 31] [--repeats 2] [--ranks 2] [--layers -1]

Both kinds of run go through the same rows in the same order, so step N of one is compared with step N of the other, from one
``step`` event to the next: the copy, which the training thread makes, and what the writer takes from the steps that go on
meanwhile are all in it. What is left of a slower machine shows in the other steps, and is divided out.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import Log, local_cluster

from tests.benchmarks.peers import WORK, write_data
from trainer.cluster.launch import Inputs, execute, plan_run, prepare
from trainer.config import RunConfig
from trainer.recipe import load_config

EVERY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3 * EVERY + 1, help="optimizer steps of each run")
    parser.add_argument("--repeats", type=int, default=2, help="pairs of runs")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=-1, help="adapted layers from the last; -1 for all")
    options = parser.parse_args()
    after, other, written = [], [], []
    with tempfile.TemporaryDirectory(prefix="flotilla-bench-") as scratch:
        data = write_data(Path(scratch) / "data")
        for repeat in range(options.repeats):
            pair = {}
            for every in (0, EVERY) if repeat % 2 else (EVERY, 0):
                settings = [*WORK, f"train.steps={options.steps}", f"adapter.num_layers={options.layers}"]
                config = load_config("pirate", [*settings, f"checkpoint.every_steps={every}", "checkpoint.every_s=0"])
                pair[every] = run(config, data, options.ranks, Path(scratch) / f"{repeat}-{every}")
            written += pair[EVERY].of("checkpoint")
            for step, ratio in compare(pair[EVERY], pair[0]):
                (after if step % EVERY == 1 else other).append(ratio)
                print(f"step {step}: {ratio:.3f} times as long", file=sys.stderr, flush=True)
    excess = statistics.median(after) / statistics.median(other) - 1
    size = statistics.median(event["size_bytes"] for event in written) / 2**20
    seconds = statistics.median(event["seconds"] for event in written)
    print(f"{len(written)} checkpoints of {size:.0f} MiB, each written in {seconds:.2f} s (median)")
    print(f"the step after one takes {excess:+.1%}: {excess / EVERY:+.2%} of the throughput at one every {EVERY} steps")


def run(config: RunConfig, data: Path, ranks: int, runs: Path) -> Log:
    """Return what a run on this machine tells."""
    config = dataclasses.replace(config, launch=dataclasses.replace(config.launch, threads_per_rank=max(1, 2 // ranks)))
    inputs = Inputs(cluster=local_cluster(ranks), config=config, data=data, name="bench")
    outcome = execute(plan_run(inputs, *prepare(inputs, Log()), runs), log := Log())
    assert outcome.exit_code == 0, outcome.message
    return log


def compare(ours: Log, theirs: Log) -> Sequence[tuple[int, float]]:
    """Return for each step but the first how long it took in one run, in times of the other."""

    def gaps(log: Log) -> dict[int, float]:
        return {event["step"]: event["time"] - before["time"] for before, event in itertools.pairwise(log.of("step"))}

    base = gaps(theirs)
    return [(step, seconds / base[step]) for step, seconds in gaps(ours).items()]


if __name__ == "__main__":
    main()
