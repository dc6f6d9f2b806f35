"""What a checkpoint takes along of what was told: the steps since the one before, and those of the last minutes."""

from __future__ import annotations

from trainer.engine.diary import Diary


def test_pages() -> None:
    """Only events about steps are kept; old ones until a checkpoint has taken them along, young ones longer."""
    diary = Diary()
    for kind, step, time in (("step", 1, 100.0), ("progress", 1, 100.0), ("validated", 1, 101.0), ("step", 2, 260.0)):
        diary.note({"event": kind, "rank": 1, "step": step, "time": time})
    told = [(page["event"], page["rank"], page["step"]) for page in diary.pages()]
    assert told == [("step", 0, 1), ("validated", 0, 1), ("step", 0, 2)]
    diary.forget(0, 1000.0)
    assert len(diary.pages()) == 3
    diary.forget(2, 300.0)
    assert [page["step"] for page in diary.pages()] == [2]
    diary.forget(2, 1000.0)
    assert diary.pages() == []


def test_bound() -> None:
    """Steps of milliseconds fill no checkpoint: the latest are kept."""
    diary = Diary()
    for step in range(1, 2001):
        diary.note({"event": "step", "rank": 0, "step": step, "time": 0.0})
    assert [page["step"] for page in diary.pages()][:: len(diary.pages()) - 1] == [2001 - len(diary.pages()), 2000]
    assert len(diary.pages()) < 1000
