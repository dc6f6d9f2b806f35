"""How well a baseline foretells training, in a laboratory: ``.venv/bin/python -m tests.benchmarks.prediction``.

Two hosts with a core each. For every recipe a baseline is taken, then the run is made on the fast link and, with that cable
pulled, on the 100 Mbit/s link. Prints tables in Markdown and draws the plot of
docs/benchmarks.md. Takes about half an hour; nothing else should compute meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.lab.laboratory import Laboratory
from trainer.paths import PROJECT_ROOT

STEPS = 16
QUIET = ("style.markers=[]", "style.demo_prompts=[]", "train.eval_every=0", f"train.steps={STEPS}")
RECIPES = {
    "small adapter (rank 8, all layers)": (),
    "large adapter (rank 64, all layers)": ("adapter.rank=64",),
    "accumulation (rank 8, last 8 layers, batch 8 by 2)": ("adapter.num_layers=8", "train.global_batch=8"),
}
LINKS = ("fast", "slow")


def main() -> None:
    """Measure and print; with ``--plot`` also draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="", help="a provisioned laboratory of at least two hosts; default: a new one")
    parser.add_argument("--recipes", default="", help="numbers of the recipes, such as 0,2; default: all")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--keep", type=Path, help="folder for baselines and runs; default: a temporary one")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = Laboratory.attach(options.lab) if options.lab else stack.enter_context(_provisioned(2))
        chosen = [int(number) for number in options.recipes.split(",")] if options.recipes else range(len(RECIPES))
        rows = [row for number in chosen for row in _compare(lab, list(RECIPES)[number], folder)]
    print("| recipe | link | predicted tok/s | measured tok/s | off by | speed-up predicted | measured |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(row["line"])
    if options.plot:
        draw(rows, options.plot)


@contextmanager
def _provisioned(num_hosts: int) -> Iterator[Laboratory]:
    with Laboratory.up(num_hosts, name="prediction") as lab:
        passwords = f"--connection-password-file {lab.password_file} --become-password-file {lab.password_file}"
        _inv(lab, {}, "provision", "-i", str(lab.inventory), "--extra", f"{passwords} --skip-tags artifacts")
        yield lab


def _compare(lab: Laboratory, recipe: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield predicted and measured throughput of one recipe on each link."""
    overrides = [word for setting in (*QUIET, *RECIPES[recipe]) for word in ("-o", setting)]
    env = {"FLOTILLA_BASELINES": str(folder / "baselines"), "FLOTILLA_RUNS": str(folder / "runs")}
    _inv(lab, env, "baseline", "-i", str(lab.inventory), *overrides)
    for link in LINKS:
        if link == "slow":
            lab.cut(lab.hosts[1], "fast")
        try:
            _inv(lab, env, "train", "-i", str(lab.inventory), "--allow-slow-link", *overrides)
        finally:
            lab.mend(lab.hosts[1], "fast")
        summary = json.loads((folder / "runs" / "latest" / "summary.json").read_text("utf-8"))
        told, measured = summary["baseline"], summary["tokens_per_s"]
        predicted = told["predicted_tokens_per_s"]
        figures = f"{predicted:.1f} | {measured:.1f} | {predicted / measured - 1:+.1%}"
        speeds = f"{told['predicted_speedup']:.2f} | {told['measured_speedup']:.2f}"
        line = f"| {recipe} | {link} | {figures} | {speeds} |"
        print(line, file=sys.stderr, flush=True)
        yield {"recipe": recipe, "link": link, "predicted": predicted, "measured": measured, "line": line}


def _inv(lab: Laboratory, env: dict[str, str], *words: str) -> str:
    done = lab.control(["./inv", *words], env=env, cwd=PROJECT_ROOT, check=False, timeout=1800)
    if done.returncode:
        raise SystemExit(f"inv {' '.join(words)} ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw predicted and measured throughput side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    places = range(len(rows))
    for offset, kind, colour in ((-0.2, "predicted", "#8aa4c8"), (0.2, "measured", "#1f4e79")):
        axes.bar([place + offset for place in places], [row[kind] for row in rows], 0.38, label=kind, color=colour)
    axes.set_xticks(list(places), [f"{row['recipe'].split(' (')[0]}\n{row['link']} link" for row in rows])
    axes.set_ylabel("tokens/s, two hosts")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
