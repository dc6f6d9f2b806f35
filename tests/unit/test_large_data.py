"""Memory does not grow with the data: the small sibling of tests/benchmarks/large_data.py, which takes gigabytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.large_data import write_samples
from trainer.paths import PROJECT_ROOT

SMALL, LARGE = 2_000_000, 24_000_000  # bytes
ALLOWED_MIB = 40  # a list of the large one's samples takes more than 70

PROGRAM = """
import resource, sys
from pathlib import Path
from trainer.data.batch import make_batch
from trainer.data.fill import fill_store
from trainer.data.order import global_batch_at
from trainer.data.formats import check_splits
from trainer.data.store import open_store
from trainer.workshop.prepare import prepare
from trainer.workshop.settings import Settings

what, source, out, model = sys.argv[1], *map(Path, sys.argv[2:])
if what == "prepare":
    prepare([source], out, Settings(skip=("length",)), num_workers=2)
elif what == "check":
    check_splits(out)
elif what == "tokenise":
    fill_store(out.with_name("tokens"), out, model, num_workers=2)
else:
    rows = open_store(out.with_name("tokens"), out)["train"]
    for step in range(50):
        make_batch([rows[int(row)] for row in global_batch_at(step, len(rows), 8, 0)])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "linux" else 1024))
"""


def peaks(folder: Path, size_bytes: int, model: Path) -> dict[str, float]:
    """Return the peak memory in MiB of the process that does each step, on data of that size."""
    folder.mkdir()
    write_samples(folder / "source.jsonl", size_bytes)
    found = {}
    for what in ("prepare", "check", "tokenise", "train"):
        command = [sys.executable, "-c", PROGRAM, what, str(folder / "source.jsonl"), str(folder / "out"), str(model)]
        done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[what] = int(done.stdout) / 1024
    return found


def test_twelve_times_the_data_take_no_more_memory(tmp_path: Path, tiny_model: Path) -> None:
    """Preparing, checking, tokenising and reading batches by chance: twelve times the data, a few MiB more."""
    small, large = peaks(tmp_path / "small", SMALL, tiny_model), peaks(tmp_path / "large", LARGE, tiny_model)
    grown = {what: round(large[what] - small[what]) for what in small}
    assert max(grown.values()) <= ALLOWED_MIB, grown


def test_what_is_made_up_is_what_it_says(tmp_path: Path) -> None:
    """The size that was asked for, the same bytes for the same seed, and some rows broken, private and twice."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write_samples(one, 9_000_000)
    write_samples(two, 9_000_000)
    text = one.read_text("utf-8")
    assert text == two.read_text("utf-8")
    assert one.stat().st_size == pytest.approx(9_000_000, rel=0.01)
    lines = text.splitlines()
    assert len(set(lines)) < len(lines)
    assert "@mail.org" in text
    assert '{"prompt": "broken' in lines
