"""docs/failures.md is made from the doctor's own table."""

from __future__ import annotations

from pathlib import Path

from trainer.cluster.doctor.reference import render_page

ROOT = Path(__file__).resolve().parents[2]


def test_failures_are_current() -> None:
    """The committed page is what the table says; ``python -m trainer.cluster.doctor.reference`` renews it."""
    assert (ROOT / "docs" / "failures.md").read_text("utf-8") == render_page()
