"""A data set larger than one likes in memory: made up, prepared, tokenised, trained on; with every process's peak memory.

    .venv/bin/python -m tests.benchmarks.large_data --gigabytes 5 --scratch /somewhere/with/room
    .venv/bin/python -m tests.benchmarks.large_data --gigabytes 0.2 --kills 3 --scratch /tmp/large

First the same is done with the pirate data, for comparison. With ``--kills`` preparing and tokenising are killed (SIGKILL)
that many times each, at random moments, and the results compared byte by byte with those of a run that was left alone.
Takes three times the data's size of disk. Speed is told by the wall and for each second of one core's time: on a machine that
others use, the second tells what two cores of one's own would do.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.config import render_toml
from trainer.paths import PROJECT_ROOT
from trainer.recipe import load_config

PIRATE = PROJECT_ROOT / "datasets" / "pirate"
INV = [sys.executable, "-P", "-m", "invoke", "--search-root", str(PROJECT_ROOT)]
PLAIN = [
    "train.steps=50",
    "adapter.num_layers=2",
    "data.max_tokens=2048",
    "train.global_batch=4",
    "train.eval_every=0",
    "style.markers=[]",
    "style.demo_prompts=[]",
]


def write_samples(target: Path, size_bytes: int, seed: int = 0) -> None:
    """Write about ``size_bytes`` of prompt/completion JSONL: words by chance, some rows twice, private or broken."""
    words = sorted(set(re.findall(r"[a-z']{2,}", (PIRATE / "train.jsonl").read_text("utf-8").lower())))
    chance = np.random.Generator(np.random.Philox(seed))
    weights = 1 / np.arange(3, len(words) + 3)
    table = np.array(words, dtype=object)[chance.permutation(len(words))]
    written, before = 0, ""
    with target.open("w", encoding="utf-8") as file:
        while written < size_bytes:
            picked = iter(table[chance.choice(len(words), 1 << 18, p=weights / weights.sum())].tolist())
            for question, answer, kind in zip(
                *(chance.integers(low, high, 1200) for low, high in ((8, 40), (40, 280), (0, 1000))), strict=True
            ):
                line = _make_line(picked, int(question), int(answer), int(kind), before)
                if not line or written >= size_bytes:
                    break
                written += file.write(line)
                before = line


def _make_line(picked: Iterator[str], question: int, answer: int, kind: int, before: str) -> str:
    if before and kind < 5:
        return before
    asked, answered = (list(itertools.islice(picked, n)) for n in (question, answer))
    if len(answered) < answer:
        return ""
    if kind == 6:
        answered[5] = f"write to {answered[6]}@mail.org"
    if kind == 7:
        return '{"prompt": "broken\n'
    if kind == 8 and before.startswith('{"prompt"') and before.endswith("}\n"):
        return before.replace(" ", " surely ", 12).replace(" surely ", " ", 11)
    return (
        json.dumps({"prompt": f"{' '.join(asked).capitalize()}?", "completion": f"{' '.join(answered).capitalize()}."}) + "\n"
    )


@dataclass
class Peaks:
    """The largest resident memory of each process below one, by what it runs."""

    mib: dict[str, float] = field(default_factory=dict)

    def watch(self, pid: int, ended: threading.Event) -> None:
        """Look every tenth of a second until ``ended``."""
        while not ended.wait(0.1):
            for child in list(descend(pid)):
                try:
                    status = Path(f"/proc/{child}/status").read_text()
                    command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                peak = re.search(r"VmHWM:\s+(\d+)", status)
                name = next((word.decode() for word in command if word.startswith(b"trainer") or word in NAMES), "other")
                name = f"{name} {command[-2].decode().split(':')[-1]}" if name == "trainer.workers" else name
                if peak:
                    self.mib[name] = max(self.mib.get(name, 0.0), int(peak[1]) / 1024)


NAMES = (b"data.prepare", b"train", b"prepare", b"fetch", b"mpirun")


def descend(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = [Path(f"/proc/{pid}/task/{t}/children").read_text().split() for t in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return
    for child in {*children, *(c for group in threads for c in group)}:
        yield from descend(int(child))


def core_seconds() -> float:
    """Return the seconds of processor time that all children took so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: list[str], environment: dict[str, str], kill_after_s: float | None = None) -> tuple[float, Peaks, bool]:
    """Run a command; return its seconds, the peaks of its processes, and whether it ended well rather than being killed."""
    started, peaks, ended = time.perf_counter(), Peaks(), threading.Event()
    process = subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    watcher = threading.Thread(target=peaks.watch, args=(process.pid, ended))
    watcher.start()
    try:
        _, said = process.communicate(timeout=kill_after_s)
        if process.returncode:
            raise SystemExit(f"{command}: exit code {process.returncode}\n{said.decode()[-2000:]}")
        return time.perf_counter() - started, peaks, True
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)  # it alone: its workers must notice
        process.wait()
        return time.perf_counter() - started, peaks, False
    finally:
        if process.stderr:
            process.stderr.close()
        ended.set()
        watcher.join()


@dataclass
class Job:
    """The three commands on one source, in a folder and a cache of their own."""

    source: str
    scratch: Path
    shares: list[str]
    settings: list[str]

    def __post_init__(self) -> None:
        """Begin with an empty cache, but for the models that are there already."""
        (self.scratch / "cache").mkdir(parents=True, exist_ok=True)
        if not (self.scratch / "cache" / "models").exists():
            (self.scratch / "cache" / "models").symlink_to(_find_models())

    @property
    def data(self) -> Path:
        return self.scratch / "data"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "FLOTILLA_CACHE": str(self.scratch / "cache"),
            "FLOTILLA_RUNS": str(self.scratch / "runs"),
            "PYTHONPATH": str(PROJECT_ROOT),
        }

    def commands(self) -> dict[str, list[str]]:
        """Return the commands by name."""
        settings = [f"data.path={self.data}", *self.settings]
        config = self.scratch / "config.toml"
        config.write_text(render_toml(load_config("pirate", settings)), "utf-8")
        overrides = [word for setting in settings for word in ("-o", setting)]
        limits = [
            word for setting in self.settings if setting.startswith(("model.", "data.")) for word in ("--override", setting)
        ]
        return {
            "prepare": [*INV, "data.prepare", self.source, "--out", str(self.data), *self.shares, *limits],
            "tokenise": [sys.executable, "-P", "-m", "trainer", "prepare", "--config", str(config), "--data", str(self.data)],
            "train": [*INV, "train", *overrides],
        }

    def digest(self) -> dict[str, str]:
        """Return the SHA-256 of all that was made, data and tokens."""
        files = [*self.data.iterdir(), *(p for p in (self.scratch / "cache" / "tokens").glob("*/*") if p.is_file())]
        return {str(path.relative_to(self.scratch)): _hash(path) for path in sorted(files)}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def few_held_out(size_bytes: int) -> list[str]:
    """Return the shares of splits that make validation and test of a large source some 60 KB each."""
    share = str(max(1e-6, 60e3 / size_bytes))
    return ["--valid", share, "--test", share]


def kill_at_random(job: Job, name: str, seconds: float, kills: int, chance: random.Random) -> int:
    """Run a command, killed up to ``kills`` times before it may end; returns how often it was."""
    killed = 0
    for _ in range(kills):
        *_, is_done = run(job.commands()[name], job.environment, kill_after_s=chance.uniform(0.1, 0.9) * seconds)
        killed += not is_done
        if is_done:
            return killed
    run(job.commands()[name], job.environment)
    return killed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="go on with the data that an earlier run prepared here")
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("--skip", action="append", default=[], help="a step of data.prepare to leave out")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    source = options.scratch / "made-up.jsonl"
    size = int(options.gigabytes * 1e9)
    if not source.exists() or source.stat().st_size < size:
        write_samples(source, size)
    skipped = [word for step in options.skip for word in ("--skip", step)]
    folders = {name: options.scratch / name for name in ("pirate", "made-up")}
    for folder in folders.values():
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    jobs = {
        "pirate": Job(str(PIRATE), folders["pirate"], [], PLAIN),
        "made-up": Job(str(source), folders["made-up"], [*few_held_out(size), *skipped], PLAIN),
    }
    taken: dict[str, float] = {}
    for name, job in jobs.items():
        for step, command in job.commands().items():
            if (step == "train" and options.no_train) or (step == "prepare" and job.data.exists()):
                continue
            before = core_seconds()
            seconds, peaks, _ = run(command, job.environment)
            taken[step] = seconds
            files = [Path(job.source)] if Path(job.source).is_file() else list(Path(job.source).glob("*.jsonl"))
            size_mb = sum(file.stat().st_size for file in files) / 1e6
            rate = f", {size_mb / seconds:.1f} MB/s, {size_mb / (core_seconds() - before):.1f} MB per core second"
            told = ", ".join(f"{what} {mib:.0f}" for what, mib in sorted(peaks.mib.items()))
            print(f"{name:8} {step:9} {seconds:7.1f} s{rate if step != 'train' else ''}; peak MiB: {told}", flush=True)
    if options.kills:
        job, chance = jobs["made-up"], random.Random(1)
        expected = job.digest()
        shutil.rmtree(job.data)
        shutil.rmtree(job.scratch / "cache" / "tokens")
        counts = {step: kill_at_random(job, step, taken[step], options.kills, chance) for step in ("prepare", "tokenise")}
        verdict = "the same" if job.digest() == expected else "NOT THE SAME"
        print(f"killed {counts}: the result is {verdict}, {len(expected)} files")


def _find_models() -> Path:
    from trainer.paths import cache_dir

    (cache_dir() / "models").mkdir(parents=True, exist_ok=True)
    return cache_dir() / "models"


if __name__ == "__main__":
    main()
