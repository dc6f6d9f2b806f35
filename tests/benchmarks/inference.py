"""A baseline's inference figures beside mlx_lm's own counters: ``.venv/bin/python -m tests.benchmarks.inference``.

One process, the bundled model, 256 tokens of the pirate data, 48 tokens of reply. Call beside call: what `./inv baseline` does
on each host, and `mlx_lm.generate(verbose=True)` as anybody would call it, whose printed counters are read. Prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from trainer.native import load_blas, set_threads

KINDS = ("prompt", "generation")
COUNTER = re.compile(r"^(Prompt|Generation): \d+ tokens, ([\d.]+) tokens-per-sec$", re.MULTILINE)


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_threads(options.threads)
    load_blas()
    pairs = list(_measure(options.turns))
    print("| tokens/s | baseline, median | mlx_lm, median | ratio in pairs, median | best | best | ratio of the best |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        ours, theirs = ([pair[side][kind] for pair in pairs] for side in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        medians = f"{statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {ratio:.3f}"
        print(f"| {kind} | {medians} | {max(ours):.1f} | {max(theirs):.1f} | {max(ours) / max(theirs):.3f} |")


def _measure(turns: int) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Yield the rates of both, one call beside the other; before the first there is a warm-up."""
    from mlx_lm import generate
    from mlx_lm.utils import load

    from trainer.cluster.plan import RunPlan
    from trainer.comm.group import Comm
    from trainer.data.formats import read_splits
    from trainer.data.tokens import tokenize_samples
    from trainer.engine.measure import PROMPT_TOKENS, REPLY_TOKENS, HostMeasurement
    from trainer.events import Events
    from trainer.model.sources import fetch_model
    from trainer.paths import PROJECT_ROOT
    from trainer.recipe import load_config

    config = load_config("pirate", ())
    path, data = fetch_model(config.model, print), PROJECT_ROOT / config.data.path
    model, tokenizer = load(str(path))[:2]
    rows = tokenize_samples(read_splits(data)["train"], tokenizer._tokenizer, config.data.max_tokens)
    prompt = [int(token) for row in rows for token in row.tokens][:PROMPT_TOKENS]
    plan = RunPlan(name="", run_dir=Path(), world_size=1, model_path=path, data_path=data, fingerprints={}, config=config)
    measurement = HostMeasurement(plan, Comm(), Events(stream=io.StringIO()), is_quick=True)
    measurement.num_replies = 1
    for _ in range(turns):
        ours = measurement._infer(model, tokenizer, rows)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            generate(model, tokenizer, prompt, max_tokens=REPLY_TOKENS, verbose=True)
        theirs = {kind.lower(): float(rate) for kind, rate in COUNTER.findall(said.getvalue())}
        yield {kind: ours[f"{kind}_tokens_per_s"][0] for kind in KINDS}, theirs


if __name__ == "__main__":
    main()
