"""Fingerprints: SHA-256 over the files that make up a model or a data set, to know whether two hosts hold the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")


def hash_files(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 (hex) over names and contents of ``names`` in ``folder``, in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def hash_model(folder: Path) -> str:
    """Return the fingerprint of a model folder: its weights, configuration, tokenizer and code.

    Hidden files are left out: macOS strews ``._model.safetensors`` over disks of other systems, and nobody reads them.
    """
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return hash_files(folder, [path.name for path in files if path.suffix in MODEL_SUFFIXES])
