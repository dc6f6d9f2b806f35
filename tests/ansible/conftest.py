"""Bare hosts for the playbooks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.laboratory import Laboratory


@pytest.fixture(scope="module")
def bare_lab() -> Iterator[Laboratory]:
    """Two hosts with nothing but a system, a user and a password."""
    if lacking := Laboratory.missing():
        pytest.skip(f"a laboratory needs {', '.join(lacking)}")
    with Laboratory.up(2, name=f"test-{os.getpid()}") as lab:
        yield lab
