"""Fixtures that are expensive enough to be made once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from support import write_tiny_data, write_tiny_model
from xdist.scheduler import LoadFileScheduling

from trainer.native import load_blas

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when the library loads; ranks set their own
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job: what is tested here would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
load_blas()  # before any test module imports MLX, so that they all compute as training does
REMEDY = "remedy"  # the name of a report's property
ON_PROVISIONED = ("test_baseline", "test_remedies", "test_train")


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


class Lanes(LoadFileScheduling):  # type: ignore[misc]
    """One file at a time in each lane; those that stand on the provisioned laboratory, which takes minutes to make, in one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "the provisioned laboratory" if Path(file).stem in ON_PROVISIONED and Path(file).parent.name == "lab" else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    """Deal the files out."""
    return Lanes(config, log)


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
