"""Our throughput beside mlx_lm.lora's: the same samples, model, adapter, batch, optimizer, BLAS and threads.

    .venv/bin/python tests/benchmarks/peers.py [--steps 15] [--repeats 2] [--ranks 1 2] [--layers 8]

Runs are interleaved, because machines are noisy and only ratios measured side by side mean something. Prints a Markdown
table for docs/benchmarks.md: medians over the repeats, the first steps of every run left out as warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import Log, local_cluster

from trainer.cluster.hostfile import render_open_mpi
from trainer.cluster.launch import Inputs, execute, plan_run, prepare
from trainer.cluster.openmpi import find_open_mpi
from trainer.cluster.plan import Tools, mpirun_command, rank_environment
from trainer.config import RunConfig
from trainer.data.formats import SPLITS
from trainer.paths import PROJECT_ROOT
from trainer.recipe import load_config

WARM_UP = 5
PEER = Path(__file__).with_name("run_mlx_lm.py")


@dataclasses.dataclass(frozen=True)
class Rate:
    """Throughput of one run after its warm-up: samples and supervised tokens a second, over all ranks."""

    samples_per_s: float
    supervised_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="optimizer steps of each run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, default=8, help="adapted layers from the last; -1 for all")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="flotilla-bench-") as scratch:
        data = write_data(Path(scratch) / "data")
        work = [
            "train.global_batch=8",
            "train.micro_batch=4",
            "train.eval_every=0",
            "style.markers=[]",
            "style.demo_prompts=[]",
        ]
        work += [f"train.steps={options.steps}", f"adapter.num_layers={options.layers}"]
        config = load_config("pirate", work)
        model, fingerprints = prepare(Inputs(cluster=local_cluster(1), config=config, data=data, name="bench"), Log())
        rates: dict[tuple[str, int, int], list[Rate]] = {}
        for repeat in range(options.repeats):
            for ranks in options.ranks:
                for threads in sorted({max(1, cores // ranks)}):
                    for name, run in (("flotilla", run_ours), ("mlx_lm.lora", run_peer)):
                        folder = Path(scratch) / f"{name}-{ranks}-{repeat}"
                        rate = run(config, model, fingerprints, data, folder, ranks, threads)
                        rates.setdefault((name, ranks, threads), []).append(rate)
                        print(f"{name}, {ranks} ranks, {threads} threads each: {rate}", file=sys.stderr, flush=True)
    print_table(rates)


def write_data(folder: Path) -> Path:
    """Copy the pirate data with a validation split of eight rows: both trainers validate before and after."""
    folder.mkdir()
    for split in SPLITS:
        lines = (PROJECT_ROOT / "datasets" / "pirate" / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines if split == "train" else lines[:8]), "utf-8")
    return folder


def run_ours(
    config: RunConfig, model: Path, prints: dict[str, str], data: Path, folder: Path, ranks: int, threads: int
) -> Rate:
    launch_config = dataclasses.replace(config.launch, threads_per_rank=threads)
    config = dataclasses.replace(config, launch=launch_config)
    inputs = Inputs(cluster=local_cluster(ranks), config=config, data=data, name="bench")
    log = Log()
    outcome = execute(plan_run(inputs, model, prints, folder), log)
    assert outcome.exit_code == 0, outcome.message
    steps = log.of("step")[WARM_UP:]
    seconds = sum(step["step_s"] for step in steps)
    return Rate(config.train.global_batch * len(steps) / seconds, sum(step["supervised"] for step in steps) / seconds)


def run_peer(config: RunConfig, model: Path, _: dict[str, str], data: Path, folder: Path, ranks: int, threads: int) -> Rate:
    folder.mkdir(parents=True)
    settings = folder / "lora.yaml"
    settings.write_text(json.dumps(peer_settings(config, model, data, folder)))
    tools = Tools(mpi=find_open_mpi(), python=Path(sys.executable), project_root=PROJECT_ROOT, is_root=os.geteuid() == 0)
    hostfile = folder / "hostfile"
    hostfile.write_text(render_open_mpi(local_cluster(ranks)))
    env = rank_environment(tools)
    # alone it runs without mpirun, which calls a rank that never finalises MPI a failure
    command = mpirun_command(local_cluster(ranks), tools, hostfile, env) if ranks > 1 else [str(tools.python)]
    kept = folder / "reports.jsonl"
    program = [*command, str(PEER), str(threads), str(kept), "--config", str(settings)]
    with (folder / "output").open("w") as output:
        subprocess.run(program, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **env})
    reports = [json.loads(line) for line in kept.read_text().splitlines()][1:]  # the first report is the warm-up
    assert len(reports) == config.train.steps // WARM_UP - 1, (folder / "output").read_text()[-2000:]
    samples = config.train.global_batch * statistics.harmonic_mean(report["iterations_per_second"] for report in reports)
    return Rate(samples, statistics.harmonic_mean(report["tokens_per_second"] for report in reports))


def peer_settings(config: RunConfig, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Return mlx_lm.lora's configuration for the same work."""
    adapter, optimizer = config.adapter, config.optimizer
    return {
        "model": str(model),
        "train": True,
        "data": str(data),
        "mask_prompt": True,
        "fine_tune_type": adapter.kind,
        "num_layers": adapter.num_layers,
        "lora_parameters": {"rank": adapter.rank, "scale": adapter.scale, "dropout": adapter.dropout},
        "optimizer": "adamw",
        "learning_rate": optimizer.learning_rate,
        "batch_size": config.train.global_batch,
        "iters": config.train.steps,
        "steps_per_report": WARM_UP,
        "steps_per_eval": 10**6,
        "val_batches": 1,
        "save_every": 10**6,
        "max_seq_length": config.data.max_tokens,
        "adapter_path": str(folder / "adapter"),
        "seed": config.train.seed,
    }


def print_table(rates: dict[tuple[str, int, int], list[Rate]]) -> None:
    print("| ranks × threads | trainer | samples/s | supervised tokens/s | ratio of samples/s |\n|---|---|---|---|---|")
    for name, ranks, threads in sorted(rates, key=lambda key: (key[1], key[0])):
        median = statistics.median(rate.samples_per_s for rate in rates[name, ranks, threads])
        tokens = statistics.median(rate.supervised_per_s for rate in rates[name, ranks, threads])
        peer = statistics.median(rate.samples_per_s for rate in rates["mlx_lm.lora", ranks, threads])
        print(f"| {ranks} × {threads} | {name} | {median:.2f} | {tokens:.0f} | {median / peer:.2f} |")


if __name__ == "__main__":
    main()
