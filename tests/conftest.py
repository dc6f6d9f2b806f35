"""Fixtures that are expensive enough to be made once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from support import write_tiny_data, write_tiny_model

from trainer.native import load_blas

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when the library loads; ranks set their own
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job: what is tested here would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
load_blas()  # before any test module imports MLX, so that they all compute as training does
REMEDY = "remedy"  # the name of a report's property


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a three-layer Llama of random weights and a byte-level tokenizer."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three splits of short and long chat samples."""
    return write_tiny_data(tmp_path_factory.mktemp("datasets") / "tiny")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that of two files at a time none is left alone at the end."""
    rooms = ["ansible", "lab", "ranks", "numeric", "page", "contracts", "unit"]
    items.sort(key=lambda item: rooms.index(item.path.parent.name) if item.path.parent.name in rooms else len(rooms))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> None:
    """Hand the failures that a test made, found and mended on with its report, from whichever process it ran in."""
    clinic = sys.modules.get("tests.lab.clinic")
    if clinic and clinic.TABLE:
        item.user_properties.extend((REMEDY, row.cells()) for row in clinic.TABLE)
        clinic.TABLE.clear()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show which failures were made, found and mended, where tests did that."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    rows = [cells for report in reports for name, cells in report.user_properties if name == REMEDY]
    if rows:
        from tests.lab.clinic import render_table

        terminalreporter.section("failures made, found by the doctor, and mended as it says")
        for line in render_table(rows):
            terminalreporter.write_line(line)
