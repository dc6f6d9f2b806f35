"""Fixtures that are expensive enough to be made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import write_tiny_data, write_tiny_model

from trainer.native import load_blas

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when the library loads; ranks set their own
os.environ["TOKENIZERS_PARALLELISM"] = "false"
load_blas()  # before any test module imports MLX, so that they all compute as training does


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a three-layer Llama of random weights and a byte-level tokenizer."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three splits of short and long chat samples."""
    return write_tiny_data(tmp_path_factory.mktemp("datasets") / "tiny")
