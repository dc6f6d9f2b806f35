"""Data larger than one likes in memory: the small sibling of what tests/benchmarks/large_data.py does with gigabytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.large_data import Job, few_held_out, kill_at_random, run, write_samples

SMALL, LARGE = 2_000_000, 200_000_000  # bytes
ALLOWED_MIB = 250  # a list of the samples takes 400
SETTINGS = ["train.steps=20", "adapter.num_layers=2", "adapter.rank=4", "train.global_batch=2", "train.eval_every=0"]
SETTINGS += ["style.markers=[]", "style.demo_prompts=[]", "data.max_tokens=4096"]


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that does not outlive the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def make_job(folder: Path, size_bytes: int, model: Path) -> Job:
    """Return the three commands on made-up data of that size; tokens are not counted in preparing, for want of time."""
    folder.mkdir()
    write_samples(folder / "made-up.jsonl", size_bytes)
    shares = [*few_held_out(size_bytes), "--skip", "length"]
    return Job(str(folder / "made-up.jsonl"), folder, shares, [*SETTINGS, f"model.source={model}"])


@pytest.mark.timeout(1800)
def test_large_data_take_no_more_memory_and_survive_being_killed(scratch: Path, tiny_model: Path) -> None:
    """A hundred times the data go all the way, and no process takes much more.

    Preparing and tokenising, killed (SIGKILL) at random and repeated, end with the same bytes as when they were left alone.
    """
    small, large = (make_job(scratch / name, size, tiny_model) for name, size in (("small", SMALL), ("large", LARGE)))
    grown, taken = {}, {}
    for step in ("prepare", "tokenise", "train"):
        before = max(run(small.commands()[step], small.environment)[1].mib.values())
        taken[step], peaks, _ = run(large.commands()[step], large.environment)
        grown[step] = round(max(peaks.mib.values()) - before)
    assert max(grown.values()) <= ALLOWED_MIB, grown
    expected = large.digest()
    assert len(expected) == 14
    shutil.rmtree(large.data)
    shutil.rmtree(large.scratch / "cache" / "tokens")
    seed = random.randrange(1000)
    killed = {step: kill_at_random(large, step, taken[step] / 3, 1, random.Random(seed)) for step in ("prepare", "tokenise")}
    assert large.digest() == expected, (seed, killed)
    assert killed == {"prepare": 1, "tokenise": 1}, seed


def test_what_is_made_up_is_what_it_says(tmp_path: Path) -> None:
    """The size that was asked for, the same bytes for the same seed, and some rows broken, private and twice."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write_samples(one, 8_000_000)
    write_samples(two, 8_000_000)
    text = one.read_text("utf-8")
    assert text == two.read_text("utf-8")
    assert one.stat().st_size == pytest.approx(8_000_000, rel=0.01)
    lines = text.splitlines()
    assert len(set(lines)) < len(lines)
    assert "@mail.org" in text
    assert '{"prompt": "broken' in lines
