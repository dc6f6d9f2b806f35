"""Checkpoints on disk: whole or not there, whatever happens while one is written, and nothing altered is taken for one."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.checkpoints import (
    MANIFEST,
    DamagedError,
    discard_after,
    find_newest,
    folder_of,
    keep_only,
    list_steps,
    read_checkpoint,
    write_checkpoint,
)
from trainer.paths import PROJECT_ROOT

FILES = {"state.safetensors": [b"header", bytes(range(256)) * 40], "best.safetensors": [b"best" * 100]}
SIZE = sum(len(portion) for portions in FILES.values() for portion in portions)

# Writes the checkpoint of step 2 once for each offset on standard input, in a child that the kernel kills when it has written
# so many bytes of checkpoint: SIGKILL at a system call, no handler of ours runs.
KILLED = """
import os, signal, sys
from pathlib import Path
from trainer import checkpoints
files = {"state.safetensors": [b"header", bytes(range(256)) * 40], "best.safetensors": [b"best" * 100]}
for offset in map(int, sys.stdin.read().split()):
    parent = Path(sys.argv[1]) / str(offset)
    checkpoints.write_checkpoint(parent, 1, {"step": "first"}, files)
    child = os.fork()
    if child == 0:
        left = [offset]
        class Dying:
            def __init__(self, file): self.file = file
            def __enter__(self): return self
            def __exit__(self, *_): self.file.close()
            def fileno(self): return self.file.fileno()
            def write(self, data):
                taken = self.file.write(bytes(data)[: left[0]])
                left[0] -= taken
                if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
                return taken
        real = Path.open
        Path.open = lambda self, mode, **options: Dying(real(self, mode, **options)) if "w" in mode else real(self, mode)
        checkpoints.write_checkpoint(parent, 2, {"step": "second"}, files)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(offset, os.WIFSIGNALED(status), flush=True)
"""


def test_a_kill_at_any_byte_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Killed at 100 random offsets of the second checkpoint: the first is found, whole, and the half one is never listed."""
    whole = write_checkpoint(tmp_path / "reference", 2, {"step": "second"}, FILES)
    total = SIZE + (whole.folder / MANIFEST).stat().st_size
    offsets = sorted({1, SIZE, total, *random.Random(6).sample(range(1, total), 100)})
    asked = " ".join(map(str, [*offsets, total + 1]))
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    shown = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=PROJECT_ROOT, check=True)
    told = dict(line.split() for line in shown.stdout.splitlines())
    assert told == {**{str(offset): "True" for offset in offsets}, str(total + 1): "False"}
    for offset in offsets:
        found, problems = find_newest(tmp_path / str(offset))
        assert found is not None
        assert (found.step, found.facts, problems) == (1, {"step": "first"}, [])
        assert list_steps(tmp_path / str(offset)) == [1]
    assert find_newest(tmp_path / str(total + 1))[0] == read_checkpoint(folder_of(tmp_path / str(total + 1), 2))


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    """Hidden halves are removed when old checkpoints are."""
    (tmp_path / ".step-00000002-4194304").mkdir()
    (tmp_path / ".old-step-00000001-4194304").mkdir()
    write_checkpoint(tmp_path, 3, {}, FILES)
    keep_only(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(data=st.data())
def test_an_altered_checkpoint_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    """One bit turned over, bytes cut off or added, in any of its files: it is named, and the one before is taken."""
    before = write_checkpoint(tmp_path, 1, {"n": 1}, FILES)
    newest = write_checkpoint(tmp_path, 2, {"n": 2, "loss": 0.1}, FILES)
    path = newest.folder / data.draw(st.sampled_from([*FILES, MANIFEST]))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["bit", "cut", "added"]))
    if how == "bit":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[:at] if how == "cut" else content + b"x" * (how == "added"))
    found, problems = find_newest(tmp_path)
    if path.name == MANIFEST and found and found.step == 2:
        assert found == newest  # white space, which says nothing
        return
    assert found == before
    assert len(problems) == 1
    assert str(newest.folder) in problems[0]


@pytest.mark.parametrize("lacking", [*FILES, MANIFEST])
def test_a_checkpoint_without_one_of_its_files_is_refused(tmp_path: Path, lacking: str) -> None:
    """The message names the file."""
    folder = write_checkpoint(tmp_path, 1, {}, FILES).folder
    (folder / lacking).unlink()
    with pytest.raises(DamagedError, match=lacking):
        read_checkpoint(folder)


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    """A folder that says another step than its manifest is not trusted."""
    folder = write_checkpoint(tmp_path, 1, {}, FILES).folder
    moved = folder.rename(folder_of(tmp_path, 7))
    with pytest.raises(DamagedError, match="is the checkpoint of step 1"):
        read_checkpoint(moved)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    """Of six checkpoints the newest two and that of the best step are kept."""
    for step in range(10, 70, 10):
        write_checkpoint(tmp_path, step, {}, FILES)
    keep_only(tmp_path, 2, 30, 0)
    assert list_steps(tmp_path) == [60, 50, 30]


def test_steps_that_are_taken_back_lose_their_checkpoints(tmp_path: Path) -> None:
    """Only later ones go; a folder of another name is nobody's business."""
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step, {}, FILES)
    (tmp_path / "last").mkdir()
    discard_after(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step-00000010", "step-00000020"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    """A step that is done again has the state of the second time."""
    write_checkpoint(tmp_path, 5, {"time": 1}, FILES)
    second = write_checkpoint(tmp_path, 5, {"time": 2}, {"state.safetensors": [b"other"]})
    assert find_newest(tmp_path) == (second, [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_disk_without_room_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while writing: it is raised, and neither a half checkpoint nor its scratch folder is left."""
    import trainer.checkpoints as module

    write_checkpoint(tmp_path, 1, {}, FILES)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_push", fail)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 2, {}, FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
