"""Baselines on disk: ``baselines/<time>-<name>/baseline.json``, ``baselines/latest`` pointing at the newest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.paths import baselines_dir, find_beside, point_latest

VERSION = 1
FILE = "baseline.json"
_DEALT = ("balance", "trunk_cache_gib")  # what does not change a micro-batch's time
_FORM = {
    "time": (int, float),
    "name": (str,),
    "config": (dict,),
    "fingerprints": (dict,),
    "job": (dict,),
    "hosts": (dict,),
    "links": (list,),
    "all_reduce": (list,),
    "prediction": (list,),
    "verdict": (dict,),
}


def save_baseline(baseline: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write ``baseline`` into a new folder of ``folder`` (default: that of all baselines), whole or not at all; returns it."""
    parent = folder or baselines_dir()
    stem = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(baseline['time']))}-{baseline['name']}"
    target = next(path for n in range(1, 1000) if not (path := parent / (stem if n == 1 else f"{stem}-{n}")).exists())
    scratch = parent / f".{target.name}"
    scratch.mkdir(parents=True)
    (scratch / FILE).write_text(json.dumps(baseline, indent=1) + "\n", "utf-8")
    os.rename(scratch, target)
    point_latest(target)
    return target


def load_baseline(name: str = "") -> dict[str, Any]:
    """Return a baseline given as folder, file, or name among the stored ones; the latest for nothing.

    Raises `InputError` where there is none, or one that this version cannot read.
    """
    return read_baseline(find_baseline(name))


def find_baseline(name: str = "") -> Path:
    """Return the file of a baseline given as `load_baseline` takes it, whether it is there or not."""
    path = find_beside(name, baselines_dir()) if name else baselines_dir() / "latest"
    return path if path.is_file() else path / FILE


def read_baseline(path: Path) -> dict[str, Any]:
    """Return the baseline of a file; raises `InputError` for one that cannot be read."""
    again = "measure again with ./inv baseline"
    try:
        table = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: there is no baseline here; ./inv baseline makes one") from error
    except ValueError as error:
        raise InputError(f"{path}: is no baseline ({error}); {again}") from error
    version = table.get("version") if isinstance(table, dict) else None
    if version != VERSION:
        raise InputError(f"{path}: is of version {version}, this Flotilla reads {VERSION}; {again}")
    if missing := [key for key in _FORM if key not in table]:
        raise InputError(f"{path}: lacks {', '.join(missing)}; {again}")
    if wrong := [key for key, kinds in _FORM.items() if not isinstance(table[key], kinds)]:
        raise InputError(f"{path}: {', '.join(wrong)} is not what Flotilla writes there; {again}")
    found: dict[str, Any] = table
    return found


def find_matching(fingerprints: Mapping[str, str], config: Mapping[str, Any], hosts: set[str]) -> dict[str, Any] | None:
    """Return the newest stored baseline of the same work that knows all ``hosts``; None if there is none.

    The work is the same if model, data, adapter, and what makes a step faster are.
    """
    for path in sorted(baselines_dir().glob(f"*/{FILE}"), key=lambda path: path.parent.name, reverse=True):
        try:
            baseline = read_baseline(path)
        except InputError:
            continue
        same = _work(baseline["config"]) == _work(config)
        if same and baseline["fingerprints"] == dict(fingerprints) and hosts <= baseline["hosts"].keys():
            return baseline
    return None


def _work(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [dict(config.get(key, {})) for key in ("adapter", "data", "speed")]
    for setting in _DEALT:
        parts[-1].pop(setting, None)
    return parts
