"""What was prepared before: a model and rows that are as they were need no process that loads MLX to look at them again.

A receipt names the model's folder with size and time of change of its files. Only time is saved by it, nothing is taken on
trust: the ranks hash model, data and rows in any case and compare them with the plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from trainer.cluster.launch import Inputs, Watcher, prepare
from trainer.config import RunConfig
from trainer.data.checked import check_data
from trainer.data.store import key_store, read_index
from trainer.fingerprint import MODEL_SUFFIXES, hash_files
from trainer.paths import PROJECT_ROOT, cache_dir

Prepared = tuple[Path, dict[str, str]]  # the model's folder, fingerprints of model and data


def prepare_once(inputs: Inputs, watcher: Watcher) -> Prepared:
    """Return what `trainer.cluster.launch.prepare` returns, from a receipt where there is one, and leave one where not."""
    digest = check_data(inputs.data, cache_dir(), remembers=False)
    if found := find_prepared(inputs.config, digest):
        return found
    model, fingerprints = prepare(inputs, watcher)
    keep_receipt(inputs.config, model, fingerprints)
    return model, fingerprints


def find_prepared(config: RunConfig, data_digest: str) -> Prepared | None:
    """Return what `keep_receipt` was told, unless something of it has changed or is gone since."""
    try:
        receipt = json.loads(_place(config, data_digest).read_text("utf-8"))
        model, fingerprints = Path(receipt["model"]), receipt["fingerprints"]
        if _stat_files(model) != receipt["files"]:
            return None
        rows = read_index(cache_dir() / "tokens" / key_store(data_digest, model))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return (model, fingerprints) if rows is not None else None


def keep_receipt(config: RunConfig, model: Path, fingerprints: Mapping[str, str]) -> None:
    """Remember that ``model`` and the data of these ``fingerprints`` are sound for ``config``, and their rows made."""
    place = _place(config, fingerprints["data"])
    receipt = {"model": str(model), "files": _stat_files(model), "fingerprints": dict(fingerprints)}
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.with_name(f".{place.name}-{os.getpid()}")
    scratch.write_text(json.dumps(receipt), "utf-8")
    scratch.replace(place)


def _place(config: RunConfig, data_digest: str) -> Path:
    """Return where the receipt is, named after all that the preparation depends on, our own code included."""
    source = Path(config.model.source).expanduser()
    code = [path.relative_to(PROJECT_ROOT).as_posix() for path in (PROJECT_ROOT / "trainer").rglob("*.py")]
    facts = {
        "model": dataclasses.asdict(config.model),
        "folder": str(source.resolve()) if source.is_dir() else "",
        "adapter": dataclasses.asdict(config.adapter),
        "max_tokens": config.data.max_tokens,
        "data": data_digest,
        "code": hash_files(PROJECT_ROOT, code),
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return cache_dir() / "prepared" / f"{name}.json"


def _stat_files(folder: Path) -> dict[str, list[int]]:
    """Return size and time of change (ns) of the files that make up a model."""
    files = [path for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES]
    return {path.name: [(known := path.stat()).st_size, known.st_mtime_ns] for path in sorted(files)}
