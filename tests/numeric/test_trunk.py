"""The frozen trunk, computed once and kept, stands for the layers below the first adapted one; the rest never notices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support import plan_tiny, run, write_tiny_model

from trainer.cluster.plan import Launch
from trainer.config import AdapterConfig
from trainer.data.batch import pack_batch
from trainer.data.tokens import TokenRow
from trainer.model.lora import attach_adapter
from trainer.model.network import Network
from trainer.model.trunk import Trunk, check_split, find_depth

ROWS = [[5, 9, 3, 7, 1, 8], [2, 4], [11, 12, 13, 14]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=4)


def loader(folder: Path, spoil: Callable[[nn.Module], None] = lambda _: None) -> Callable[[], nn.Module]:
    from mlx_lm.utils import load_model

    def load() -> nn.Module:
        model = load_model(folder, lazy=True)[0]
        model.freeze()
        spoil(model)
        return model

    return load


@pytest.mark.parametrize("use_kernels", [False, True])
def test_the_upper_layers_go_on_from_kept_states(folder: Path, use_kernels: bool) -> None:
    """Hidden states at the head are those of the whole model, to 1e-5, for samples packed in one row."""
    load = loader(folder)
    rows = [TokenRow(np.array(tokens, np.int32), np.ones(len(tokens), np.bool_)) for tokens in ROWS]
    whole = Network(load(), use_kernels=use_kernels).hidden(pack_batch(rows))
    entering = Trunk(load, 2, use_kernels=use_kernels).enter([row.tokens[:-1] for row in rows])
    network = Network(load(), skipped=2, use_kernels=use_kernels)
    kept = network.hidden(pack_batch(rows, np.concatenate([np.array(hidden) for hidden in entering])[None]))
    np.testing.assert_allclose(np.array(kept), np.array(whole), atol=1e-5)


def test_a_sample_is_the_same_to_the_bit_in_any_company(folder: Path) -> None:
    """What enters for a sample does not depend on which others are computed with it."""
    trunk = Trunk(loader(folder), 3)
    together = trunk.enter([np.array(tokens, np.int32) for tokens in ROWS])
    for tokens, hidden in zip(ROWS, together, strict=True):
        [alone] = trunk.enter([np.array(tokens, np.int32)])
        assert np.array_equal(np.array(alone), np.array(hidden))


def test_layers_taken_out_come_back(folder: Path) -> None:
    """After taking the frozen layers out and putting them back the model answers as before."""
    load = loader(folder)
    network = Network(load(), use_kernels=False)
    inputs = mx.array([[1, 2, 3]])
    before = np.array(network.model(inputs))
    network.shed(2)
    assert not np.array_equal(np.array(network.model(inputs)), before)
    network.restore(Trunk(load, 2).layers())
    np.testing.assert_array_equal(np.array(network.model(inputs)), before)


def test_where_the_first_adapted_layer_is(folder: Path) -> None:
    """As many layers lie below as are not adapted."""
    model = loader(folder)()
    for num_layers, depth in ((1, 3), (4, 0), (-1, 0)):
        assert find_depth(model, AdapterConfig(num_layers=num_layers)) == depth


class Whispering(nn.Module):
    """Layers that pass more to each other than what the model sees: the split would be wrong."""

    said: Any = None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        heard = Whispering.said if Whispering.said is not None and Whispering.said.shape == hidden.shape else 0
        Whispering.said = hidden
        return self.layer(hidden, *args, **kwargs) + heard


class Pair(nn.Module):
    """A layer that returns two things."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __call__(self, hidden: Any, *args: Any, **kwargs: Any) -> tuple[mx.array, int]:
        return self.layer(hidden, *args, **kwargs), 1


def replace_layers(kind: type[nn.Module]) -> Callable[[nn.Module], None]:
    def spoil(model: nn.Module) -> None:
        Whispering.said = None
        model.model.layers[:] = [kind(layer) for layer in model.model.layers]
        for layer in model.model.layers:
            object.__setattr__(layer, "use_sliding", False)

    return spoil


def test_models_that_cannot_be_split_are_found_out(folder: Path) -> None:
    """A plain model can be split at any depth; one whose layers talk behind its back, or return pairs, cannot."""
    assert [check_split(loader(folder), depth) for depth in (1, 2, 3)] == [""] * 3
    whispering = check_split(loader(folder, replace_layers(Whispering)), 2)
    assert whispering == "its layers pass more to each other than one hidden state"
    assert check_split(loader(folder, replace_layers(Pair)), 2).startswith("its layers cannot be run one by one (")


def losses(launch: Launch, kept: Path) -> tuple[list[float], dict[str, Any]]:
    """Run a launch with its kept states in ``kept``; returns its losses and what it said of its trunk."""
    import dataclasses

    outcome, log = run(dataclasses.replace(launch, env={**launch.env, "FLOTILLA_TRUNK": str(kept)}))
    assert outcome.exit_code == 0, outcome.message
    return [event["loss"] for event in log.of("step")], log.of("planned")[0]["trunk"]


def test_runs_with_and_without_kept_states(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Nothing kept, everything kept, files cut short or altered in between, or switched off: the same losses."""
    settings = ("train.steps=6", "adapter.num_layers=1", "train.eval_every=3")
    launch = [plan_tiny(tiny_model, tiny_data, tmp_path / str(n), 2, *settings) for n in range(4)]
    kept = tmp_path / "trunk"
    first, told = losses(launch[0], kept)
    assert (told["layers"], told["present"]) == (2, 0)
    again, told = losses(launch[1], kept)
    assert again == first
    assert told["present"] > 0
    [store] = [folder for folder in kept.iterdir() if folder.is_dir()]
    data = bytearray((store / "hidden.bin").read_bytes())
    data[: len(data) // 3] = bytes(len(data) // 3)
    (store / "hidden.bin").write_bytes(data[: len(data) // 2])
    assert losses(launch[2], kept)[0] == first
    off = plan_tiny(tiny_model, tiny_data, tmp_path / "off", 2, *settings, "speed.trunk_cache=false")
    plain, told = losses(off, tmp_path / "none")
    assert told == {"reason": "speed.trunk_cache is off"}
    np.testing.assert_allclose(plain, first, rtol=1e-5)


def test_why_there_is_no_trunk(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Adapters on all layers, no room, or a folder that cannot be made: said once, and the run goes on."""
    everything = plan_tiny(tiny_model, tiny_data, tmp_path / "a", 1, "train.steps=1", "adapter.num_layers=-1")
    assert losses(everything, tmp_path / "trunk")[1]["reason"] == (
        "all layers are adapted, so there is no frozen trunk below them"
    )
    small = plan_tiny(tiny_model, tiny_data, tmp_path / "b", 1, "train.steps=1", "speed.trunk_cache_gib=9.5367431640625e-07")
    assert losses(small, tmp_path / "trunk")[1]["reason"] == "it would take 0.0 GiB, above speed.trunk_cache_gib = 9.53674e-07"
    (tmp_path / "file").write_text(json.dumps("not a folder"))
    blocked = plan_tiny(tiny_model, tiny_data, tmp_path / "c", 1, "train.steps=1")
    assert "Not a directory" in losses(blocked, tmp_path / "file" / "trunk")[1]["reason"]


def test_the_adapter_is_untouched_by_what_lies_below(folder: Path) -> None:
    """The adapter's names are those of the whole model, so mlx_lm takes it."""
    from mlx.utils import tree_flatten

    model, shorn = loader(folder)(), loader(folder)()
    for each in (model, shorn):
        attach_adapter(each, AdapterConfig(num_layers=2, rank=2), 0)
    Network(shorn, skipped=2)
    names = [[name for name, _ in tree_flatten(each.trainable_parameters())] for each in (model, shorn)]
    assert names[0] == names[1]
