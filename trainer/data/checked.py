"""Whether a data set was gone through before: nobody waits twice for the same gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trainer import __version__
from trainer.data.formats import SPLITS, check_splits
from trainer.fingerprint import hash_files


def check_data(folder: Path, cache: Path, *, remembers: bool) -> str:
    """Return the fingerprint of a data set; raises `InputError` with all problems of a broken one.

    One that ``cache`` remembers as sound, by its hash, is not gone through again. Nothing is written unless ``remembers``.
    """
    names = [f"{split}.jsonl" for split in SPLITS]
    if not all((folder / name).is_file() for name in names):
        check_splits(folder)  # tells which is missing
    digest = hash_files(folder, names)
    stamp = cache / "checked" / hashlib.sha256(f"{__version__} {digest}".encode()).hexdigest()
    if not stamp.exists():
        check_splits(folder)
    if remembers:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    return digest
