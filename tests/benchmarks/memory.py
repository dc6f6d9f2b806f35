"""The memory plan beside measured peaks, on the bundled model and rows of the pirate data.

    .venv/bin/python -m tests.benchmarks.memory [--only NUMBER ...] [--threads 1]

Each setting is a run of its own, of a few steps. What is measured is what the trainer itself reports at the end: the peak of
resident memory of the rank that had most. What is estimated is what `./inv train` says before it starts. Prints a Markdown
table for docs/benchmarks.md; ends with 1 if an estimate is off by more than 15 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import Log, local_cluster

from trainer.cluster.launch import Inputs, execute, plan_run, prepare
from trainer.data.formats import SPLITS
from trainer.measure.fit import plan_memory
from trainer.measure.memory import MIB
from trainer.paths import PROJECT_ROOT
from trainer.recipe import load_config

MOST_OFF = 0.15
WORK = (
    "schedule.warmup_steps=0",
    "train.eval_every=0",
    "style.markers=[]",
    "style.demo_prompts=[]",
    "train.micro_batch=4",
    "train.global_batch=8",
)
# ranks, and what differs from `WORK`
SETTINGS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (1, ("adapter.num_layers=8",)),
    (2, ("adapter.num_layers=8",)),
    (2, ("adapter.num_layers=4", "train.global_batch=4", "train.micro_batch=2")),
    (1, ("adapter.num_layers=-1", "train.micro_batch=2")),
    (2, ("adapter.num_layers=-1", "train.global_batch=16", "train.micro_batch=8")),
    (1, ("adapter.num_layers=8", "train.global_batch=16", "train.micro_batch=1")),
    (1, ("adapter.num_layers=8", "speed.trunk_cache=false")),
    (1, ("adapter.num_layers=-1", "train.checkpointing=true")),
    (1, ("adapter.num_layers=8", "speed.kernels=false")),
    (1, ("adapter.num_layers=8", "train.global_batch=2", "train.micro_batch=2", "model=4bit")),
    (1, ("adapter.num_layers=8", "style=on")),
)


def main() -> int:
    options = read_options()
    chosen = [each for number, each in enumerate(SETTINGS, 1) if not options.only or number in options.only]
    lines = []
    with tempfile.TemporaryDirectory(prefix="flotilla-memory-") as scratch:
        bench = Bench(Path(scratch), options.threads, options.steps)
        for ranks, overrides in chosen:
            estimated, measured, phase = bench.compare(ranks, overrides)
            said = ", ".join(each.partition(".")[2] or each for each in overrides)
            lines.append((ranks, said, estimated, measured, phase))
            print(lines[-1], file=sys.stderr, flush=True)
    print("| ranks | settings | highest while | estimated | measured | off by |\n|---|---|---|---|---|---|")
    for ranks, said, estimated, measured, phase in lines:
        off = estimated / measured - 1
        print(f"| {ranks} | {said} | {phase} | {estimated:.0f} MiB | {measured:.0f} MiB | {off:+.1%} |")
    return int(any(abs(estimated / measured - 1) > MOST_OFF for _, _, estimated, measured, _ in lines))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", default=[], help="numbers of settings, from 1")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each run")
    return parser.parse_args()


class Bench:
    """Some of the pirate data, and runs on it."""

    def __init__(self, folder: Path, threads: int, steps: int) -> None:
        self.folder, self.threads, self.steps = folder, threads, steps
        self.data = write_data(folder / "data")
        self._count = 0

    def compare(self, ranks: int, overrides: tuple[str, ...]) -> tuple[float, float, str]:
        """Return estimated and measured peak of a rank in MiB, and what it is doing when it has it, by the estimate."""
        self._count += 1
        settings = [*WORK, f"train.steps={self.steps}", f"launch.threads_per_rank={self.threads}"]
        settings += [each for each in overrides if "." in each]
        if "model=4bit" in overrides:
            settings.append(f"model.source={self._quantized()}")
        config = load_config("pirate", settings)
        if "style=on" in overrides:
            config = dataclasses.replace(config, style=dataclasses.replace(load_config("pirate").style, max_reply_tokens=16))
        inputs = Inputs(cluster=local_cluster(ranks), config=config, data=self.data, name="memory")
        model, fingerprints = prepare(inputs, Log())
        plan = plan_memory(inputs.cluster, {}, config, model, fingerprints["data"], self.data)
        assert plan is not None
        launch = plan_run(inputs, model, fingerprints, self.folder / f"run-{self._count}")
        log = Log()
        outcome = execute(dataclasses.replace(launch, env={**launch.env, "FLOTILLA_TRUNK": str(self.folder / "trunk")}), log)
        assert outcome.exit_code == 0, outcome.message
        [each] = plan.hosts
        return each.each.total / MIB, max(log.of("done")[0]["peak_memory_mib"]), each.each.phase

    def _quantized(self) -> Path:
        """Return the bundled model in 4 bits, made from the float32 one by mlx_lm's own converter."""
        target = self.folder / "4bit"
        if not target.is_dir():
            inputs = Inputs(cluster=local_cluster(1), config=load_config("pirate"), data=self.data, name="memory")
            source = prepare(inputs, Log())[0]
            command = [
                sys.executable,
                "-P",
                "-m",
                "mlx_lm",
                "convert",
                "--hf-path",
                str(source),
                "--mlx-path",
                str(target),
                "-q",
            ]
            subprocess.run(
                [*command, "--dtype", "float32"], check=True, stdout=sys.stderr, env={**os.environ, "MLX_DISABLE_COMPILE": "1"}
            )
        return target


def write_data(folder: Path) -> Path:
    """Copy 64 training rows of the pirate data, two to validate on and eight to answer: as long as all, and soon done."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        lines = (PROJECT_ROOT / "datasets" / "pirate" / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[: {"train": 64, "valid": 2, "test": 8}[split]]), "utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main())
