"""What was prepared before is not prepared again, unless anything that it depends on has changed."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import Log, local_cluster

from trainer import receipt
from trainer.cluster.launch import Inputs, JobError
from trainer.data.checked import check_data
from trainer.data.store import key_store
from trainer.paths import cache_dir
from trainer.recipe import load_config


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOTILLA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def inputs(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Inputs:
    """Return the inputs of a run on copies of model and data."""
    model, data = (Path(shutil.copytree(path, tmp_path / kind)) for kind, path in (("model", tiny_model), ("data", tiny_data)))
    config = load_config("pirate", [f"model.source={model}"])
    return Inputs(cluster=local_cluster(1), config=config, data=data, name="tiny")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Inputs]:
    """Return the list of what was prepared: by a stub, which leaves of the rows only that they are there."""
    calls = []

    def prepare(inputs: Inputs, _: Any) -> receipt.Prepared:
        calls.append(inputs)
        model, digest = Path(inputs.config.model.source), check_data(inputs.data, cache_dir(), remembers=True)
        index = cache_dir() / "tokens" / key_store(digest, model) / "index.json"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text("{}")
        return model, {"model": "0" * 64, "data": digest}

    monkeypatch.setattr(receipt, "prepare", prepare)
    return calls


def test_once(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time gives the same and starts no process; other settings of the run make no difference."""
    first = receipt.prepare_once(inputs, Log())
    again = dataclasses.replace(inputs, config=load_config("pirate", [f"model.source={first[0]}", "train.steps=7"]))
    monkeypatch.setattr(receipt, "prepare", None)
    assert receipt.prepare_once(again, Log()) == first


@pytest.mark.parametrize("what", ["weights", "another file", "a file less", "data", "rows", "model", "adapter", "receipt"])
def test_again_when_something_has_changed(inputs: Inputs, prepared: list[Inputs], what: str, tmp_path: Path) -> None:
    """Files of the model that are touched, added or gone, other data, rows that are gone, another adapter, a broken receipt."""
    model, fingerprints = receipt.prepare_once(inputs, Log())
    if what == "weights":
        os.utime(model / "model.safetensors", ns=(0, 0))
    elif what == "another file":
        (model / "extra.json").write_text("{}")
    elif what == "a file less":
        (model / "extra.txt").write_text("")
        receipt.keep_receipt(inputs.config, model, fingerprints)
        (model / "extra.txt").unlink()
    elif what == "data":
        lines = (inputs.data / "train.jsonl").read_text().splitlines(keepends=True)
        (inputs.data / "train.jsonl").write_text("".join(reversed(lines)))
    elif what == "rows":
        shutil.rmtree(cache_dir() / "tokens")
    elif what == "model":
        shutil.copytree(model, tmp_path / "other")
        inputs = dataclasses.replace(inputs, config=load_config("pirate", [f"model.source={tmp_path / 'other'}"]))
    elif what == "adapter":
        inputs = dataclasses.replace(inputs, config=load_config("pirate", [f"model.source={model}", "adapter.rank=2"]))
    else:
        [place] = (cache_dir() / "prepared").iterdir()
        place.write_text(place.read_text()[:50])
    receipt.prepare_once(inputs, Log())
    assert len(prepared) == 2


def test_no_receipt_for_what_is_refused(inputs: Inputs) -> None:
    """A model that cannot be loaded is refused, and nothing is remembered of it."""
    (Path(inputs.config.model.source) / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(JobError):
        receipt.prepare_once(inputs, Log())
    assert not (cache_dir() / "prepared").exists()
