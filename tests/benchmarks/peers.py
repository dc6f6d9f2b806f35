"""Our throughput and memory beside mlx_lm.lora's: the same samples, model, adapter, batch, optimizer, BLAS and threads.

    .venv/bin/python -m tests.benchmarks.peers [--steps 15] [--repeats 2] [--ranks 1 2] [--layers 8 -1] [--plot FILE]
    .venv/bin/python -m tests.benchmarks.peers --ablation          # our techniques, one after the other
    .venv/bin/python -m tests.benchmarks.peers --sizes 1 3 10      # data sets that many times as large

Runs are interleaved, for machines are noisy and only ratios measured side by side mean something. Prints a Markdown table for
docs/benchmarks.md: medians over the repeats, the first steps of every run left out as warm-up. `first` is a run that finds no
hidden states on disk, `later` one that finds those of all its samples there: what every epoch but the first does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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
WORK = ("train.global_batch=8", "train.eval_every=0", "style.markers=[]", "style.demo_prompts=[]")
OFF = ("speed.packing=false", "speed.fused_loss=false", "speed.kernels=false", "speed.trunk_cache=false")
STAGES = {
    "supervised positions only": OFF,
    "+ loss in portions": (OFF[0], *OFF[2:]),
    "+ packed rows": OFF[2:],
    "+ NumPy's kernels": OFF[3:],
    "+ frozen trunk kept": (),
}


@dataclasses.dataclass(frozen=True)
class Rate:
    """One run after its warm-up: samples and supervised tokens a second over all ranks, the largest rank's peak memory."""

    samples_per_s: float
    supervised_per_s: float
    peak_mib: float


Key = tuple[str, int, int, int]  # who, ranks, threads of each, adapted layers
Rates = dict[Key, list[Rate]]


def main() -> None:
    options = read_options()
    rates: Rates = {}
    with tempfile.TemporaryDirectory(prefix="flotilla-bench-") as scratch:
        for size in options.sizes:
            bench = Bench(Path(scratch) / str(size), options.steps, size)
            for _ in range(options.repeats):
                for ranks in options.ranks:
                    threads = options.threads or max(1, bench.cores // ranks)
                    for layers in options.layers:
                        for name, rate in bench.race(ranks, threads, layers, is_ablation=options.ablation):
                            label = name if options.sizes == [1] else f"{name}, {size} × data"
                            rates.setdefault((label, ranks, threads, layers), []).append(rate)
                            print(f"{label}, {ranks} × {threads}, {layers} layers: {rate}", file=sys.stderr, flush=True)
    print_table(rates)
    if options.plot:
        plot(rates, options.plot)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="optimizer steps of each run, a multiple of five")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=0, help="of each rank; default: the cores shared among them")
    parser.add_argument("--layers", type=int, nargs="+", default=[8], help="adapted layers from the last; -1 for all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1], help="how many times as large the data are")
    parser.add_argument("--ablation", action="store_true", help="switch our techniques on one after the other")
    parser.add_argument("--plot", type=Path, help="draw bars into this PNG")
    return parser.parse_args()


class Bench:
    """One data set, and runs of both trainers on it."""

    def __init__(self, folder: Path, steps: int, size: int) -> None:
        self.folder, self.steps = folder, steps
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.data = write_data(folder / "data", size)
        inputs = Inputs(cluster=local_cluster(1), config=self._config(8, ()), data=self.data, name="bench")
        self.model, self.fingerprints = prepare(inputs, Log())
        self._count = 0

    def race(self, ranks: int, threads: int, layers: int, *, is_ablation: bool) -> Iterator[tuple[str, Rate]]:
        """Run mlx_lm.lora and ourselves once, with nothing kept and again with all kept."""
        yield "mlx_lm.lora", self._peer(self._config(layers, ()), ranks, threads)
        for stage, overrides in STAGES.items() if is_ablation else [("flotilla", ())]:
            kept = self.folder / "trunk"
            shutil.rmtree(kept, ignore_errors=True)
            name = stage if is_ablation else "flotilla, first"
            keeps = not overrides and layers != -1
            yield name, self._ours(self._config(layers, overrides), ranks, threads, kept, is_first=keeps)
            if keeps:
                name = f"{stage}, later" if is_ablation else "flotilla, later"
                yield name, self._ours(self._config(layers, overrides), ranks, threads, kept, is_first=False)

    def _config(self, layers: int, overrides: tuple[str, ...]) -> RunConfig:
        return load_config("pirate", [*WORK, f"train.steps={self.steps}", f"adapter.num_layers={layers}", *overrides])

    def _next_folder(self) -> Path:
        self._count += 1
        return self.folder / f"run-{self._count}"

    def _ours(self, config: RunConfig, ranks: int, threads: int, kept: Path, *, is_first: bool) -> Rate:
        config = dataclasses.replace(config, launch=dataclasses.replace(config.launch, threads_per_rank=threads))
        inputs = Inputs(cluster=local_cluster(ranks), config=config, data=self.data, name="bench")
        launch = plan_run(inputs, self.model, self.fingerprints, self._next_folder())
        log = Log()
        outcome = execute(dataclasses.replace(launch, env={**launch.env, "FLOTILLA_TRUNK": str(kept)}), log)
        assert outcome.exit_code == 0, outcome.message
        # what enters the first adapted layer is computed for several steps at once: a first epoch's are counted whole
        steps = log.of("step")[0 if is_first else WARM_UP :]
        seconds = sum(step["step_s"] for step in steps)
        samples = config.train.global_batch * len(steps) / seconds
        return Rate(samples, sum(step["supervised"] for step in steps) / seconds, max(log.of("done")[0]["peak_memory_mib"]))

    def _peer(self, config: RunConfig, ranks: int, threads: int) -> Rate:
        folder = self._next_folder()
        folder.mkdir(parents=True)
        settings = folder / "lora.yaml"
        settings.write_text(json.dumps(peer_settings(config, self.model, self.data, folder)))
        tools = Tools(mpi=find_open_mpi(), python=Path(sys.executable), project_root=PROJECT_ROOT, is_root=os.geteuid() == 0)
        hostfile = folder / "hostfile"
        hostfile.write_text(render_open_mpi(local_cluster(ranks)))
        env = rank_environment(tools)
        # alone it runs without mpirun, which calls a rank that never finalises MPI a failure
        command = mpirun_command(local_cluster(ranks), tools, hostfile, env) if ranks > 1 else [str(tools.python)]
        program = [*command, str(PEER), str(threads), str(folder / "reports"), "--config", str(settings)]
        with (folder / "output").open("w") as output:
            subprocess.run(program, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **env})
        by_rank = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("reports.*"))]
        reports = by_rank[0][1:]  # the first report is the warm-up
        assert len(reports) == config.train.steps // WARM_UP - 1, (folder / "output").read_text()[-2000:]
        samples = config.train.global_batch * statistics.harmonic_mean(report["iterations_per_second"] for report in reports)
        tokens = statistics.harmonic_mean(report["tokens_per_second"] for report in reports)
        return Rate(samples, tokens, max(report["peak_memory_mib"] for rank in by_rank for report in rank))


def write_data(folder: Path, size: int = 1) -> Path:
    """Copy the pirate data ``size`` times, with a validation split of eight rows: both trainers validate before and after."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        lines = (PROJECT_ROOT / "datasets" / "pirate" / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines * size if split == "train" else lines[:8]), "utf-8")
    return folder


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


def summarise(rates: Rates) -> dict[Key, Rate]:
    """Return the medians of each kind of run."""
    return {
        key: Rate(*(statistics.median(getattr(rate, field.name) for rate in found) for field in dataclasses.fields(Rate)))
        for key, found in rates.items()
    }


def find_peer(medians: dict[Key, Rate], key: Key) -> Rate:
    """Return mlx_lm.lora's run of the same kind."""
    name, *kind = key
    suffix = name[name.index(", ", name.rindex("×") - 4) :] if "× data" in name else ""
    return medians["mlx_lm.lora" + suffix, *kind]  # type: ignore[index]


def print_table(rates: Rates) -> None:
    print("| ranks × threads | layers | trainer | samples/s | supervised tokens/s | ratio of samples/s | peak memory | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    medians = summarise(rates)
    for key in sorted(medians, key=lambda key: (key[1:], list(medians).index(key))):
        name, ranks, threads, layers = key
        rate, peer = medians[key], find_peer(medians, key)
        print(
            f"| {ranks} × {threads} | {'all' if layers < 0 else layers} | {name} | {rate.samples_per_s:.2f} "
            f"| {rate.supervised_per_s:.0f} | {rate.samples_per_s / peer.samples_per_s:.2f} "
            f"| {rate.peak_mib:.0f} MiB | {rate.peak_mib / peer.peak_mib:.2f} |"
        )


def plot(rates: Rates, path: Path) -> None:
    """Draw the ratios of samples a second and of peak memory as bars."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    medians = summarise(rates)
    keys = [key for key in sorted(medians, key=lambda key: (key[1:], key[0])) if not key[0].startswith("mlx_lm")]
    ratios = [(medians[key], find_peer(medians, key)) for key in keys]
    labels = [f"{name}\n{ranks} × {threads}, {'all' if layers < 0 else layers} layers" for name, ranks, threads, layers in keys]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.7 * len(keys) + 1.2), sharey=True, layout="constrained")
    for axes, title, values in (
        (
            left,
            "samples/s, times mlx_lm.lora's",
            [ours.samples_per_s / peer.samples_per_s for ours, peer in ratios],
        ),
        (right, "peak memory, times mlx_lm.lora's", [ours.peak_mib / peer.peak_mib for ours, peer in ratios]),
    ):
        bars = axes.barh(labels, values, color="#2b6cb0" if axes is left else "#b7791f", height=0.6)
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
        axes.axvline(1.0, color="#4a5568", linewidth=1)
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, max([*values, 1.0]) * 1.15)
    left.invert_yaxis()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
