"""The memory plan: what a run will take, what a host has, and what is said when the one is more than the other."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.room import judge_mac, read_room
from trainer.config import RunConfig
from trainer.errors import MemoryPlanError
from trainer.measure.anatomy import Anatomy, read_anatomy
from trainer.measure.fit import fit, plan_memory
from trainer.measure.memory import MIB, Rows, estimate, largest_batch, suggest
from trainer.recipe import load_config
from trainer.report.memory import render_memory

QUIET = ("schedule.warmup_steps=0", "style.markers=[]", "style.demo_prompts=[]")
SMALL = Anatomy(
    layer_bytes=(14 * MIB,) * 30,
    outside_bytes=108 * MIB,
    embedding_bytes=108 * MIB,
    linear={"self_attn.q_proj": (576, 576), "self_attn.k_proj": (576, 192), "mlp.up_proj": (576, 1536)},
    hidden=576,
    queries=576,
    keys=192,
    inner=1536,
    heads=9,
    vocabulary=49152,
    item_bytes=4,
    is_quantized=False,
)
ROWS = Rows(np.random.default_rng(0).integers(20, 300, 700), 72, 40)
PAIR = Cluster(
    hosts=(
        Host(name="mini", slots=1, management="mini.local", is_local=False),
        Host(name="here", slots=2, management="localhost", is_local=True),
    )
)


def config(*overrides: str) -> RunConfig:
    return load_config("pirate", [*QUIET, "adapter.num_layers=8", *overrides])


def total(*overrides: str, ranks: int = 2, anatomy: Anatomy = SMALL) -> int:
    return estimate(anatomy, config(*overrides), ROWS, ranks, on_gpu=False).total


def test_a_models_files_tell_its_sizes(tiny_model: Path) -> None:
    """Layers, what lies outside of them, and the linear modules' shapes: what MLX has of it once it is loaded."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    found = read_anatomy(tiny_model)
    assert found is not None
    model = load_model(tiny_model)[0]
    assert list(found.layer_bytes) == [sum(v.nbytes for _, v in tree_flatten(layer.parameters())) for layer in model.layers]
    everything = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    assert found.outside_bytes + sum(found.layer_bytes) == everything
    assert found.linear["mlp.down_proj"] == (64, 32)
    assert found.linear["self_attn.k_proj"] == (32, 16)
    assert (found.hidden, found.queries, found.keys, found.inner, found.item_bytes) == (32, 32, 16, 64, 4)


def test_a_quantised_models_shapes_are_those_of_its_numbers(tmp_path: Path) -> None:
    """A packed weight has as many inputs as there are numbers in its words, and takes the bytes of the words."""
    tensors = {
        "model.layers.0.mlp.up_proj.weight": ("U32", [64, 16], 4),
        "model.layers.0.mlp.up_proj.scales": ("F16", [64, 2], 2),
        "model.layers.0.input_layernorm.weight": ("F16", [128], 2),
    }
    start, header = 0, {}
    for name, (kind, shape, item) in tensors.items():
        size = int(np.prod(shape)) * item
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(start))
    settings = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 128, "intermediate_size": 64, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "quantization": {"bits": 4, "group_size": 64}}))
    found = read_anatomy(tmp_path)
    assert found is not None
    assert found.linear == {"mlp.up_proj": (128, 64)}
    assert found.layer_bytes == (64 * 16 * 4 + 64 * 2 * 2 + 256,)
    assert (found.item_bytes, found.is_quantized) == (2, True)


@pytest.mark.parametrize("weights", [b"", b"short", (2**60).to_bytes(8, "little"), (4).to_bytes(8, "little") + b"none"])
def test_files_that_tell_nothing_are_no_obstacle(weights: bytes, tmp_path: Path) -> None:
    """Damaged or unusual weights and configurations give no plan, and no traceback."""
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert read_anatomy(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert read_anatomy(tmp_path) is None
    assert read_anatomy(tmp_path / "nowhere") is None


def test_what_takes_less_is_estimated_less() -> None:
    """Every saving is one: smaller micro-batches, the trunk kept, fewer layers, checkpointing, the loss in portions."""
    for more, less in (
        ((), ("train.micro_batch=1",)),
        (("speed.trunk_cache=false",), ()),
        (("adapter.num_layers=-1",), ()),
        ((), ("train.checkpointing=true",)),
        (("speed.fused_loss=false",), ()),
        (("speed.kernels=false",), ()),
    ):
        assert total(*more) > total(*less), (more, less)
    assert total("train.global_batch=16", "train.micro_batch=16", ranks=1) > total(
        "train.global_batch=16", "train.micro_batch=16", ranks=4
    )


def test_the_heaviest_micro_batch_is_one_that_occurs() -> None:
    """Of the samples that a rank gets at once, those with most tokens; without packing each is as long as the longest."""
    chosen = config("train.global_batch=4", "train.micro_batch=2", "train.steps=3")
    found = largest_batch(chosen, ROWS.lengths, 2)
    assert len(found) == 2
    assert {length + 1 for length in found} <= set(ROWS.lengths.tolist())
    padded = largest_batch(
        config("train.global_batch=4", "train.micro_batch=2", "train.steps=3", "speed.packing=false"), ROWS.lengths, 2
    )
    assert len(set(padded)) == 1


def test_the_longest_row_counts_however_late_it_comes() -> None:
    """A row that only comes after all steps that are looked at is found by itself."""
    lengths = np.full(9000, 10)
    lengths[8123] = 500
    chosen = config("train.global_batch=2", "train.micro_batch=1", "train.steps=0", "train.epochs=1")
    assert largest_batch(chosen, lengths, 1) == (499,)


def rooms(mini: int, here: int = 10**12) -> dict[str, dict[str, Any]]:
    return {
        "mini": {"size_bytes": mini, "what": "wired limit"},
        "here": {"size_bytes": here, "what": "available"},
    }


def test_a_run_that_does_not_fit_is_refused_with_settings_that_do() -> None:
    """Exit code 5; the host, what it takes and has; and every proposal, followed, gives a run that fits."""
    chosen = config("train.global_batch=16", "train.micro_batch=8")
    need = estimate(SMALL, chosen, ROWS, PAIR.world_size, on_gpu=False).total
    has = rooms(10**12, here=int(2 * need * 0.8))
    plan = fit(PAIR, has, chosen, SMALL, ROWS)
    with pytest.raises(MemoryPlanError) as refused:
        plan.check()
    assert refused.value.exit_code == 5
    lines = str(refused.value).splitlines()
    assert lines[0] == "the run does not fit in memory; nothing was sent or started:"
    assert lines[1].startswith("  here: 2 ranks of ")
    assert lines[1].endswith(f"and it has {has['here']['size_bytes'] / MIB:,.0f} MiB (available)")
    assert lines[2] == "what would fit:"
    assert plan.ways
    for overrides, size in plan.ways:
        followed = load_config(
            "pirate", [*QUIET, "adapter.num_layers=8", "train.global_batch=16", "train.micro_batch=8", *overrides]
        )
        again = fit(PAIR, has, followed, SMALL, ROWS)
        again.check()
        assert max(host.each.total for host in again.hosts) == size


def test_where_nothing_would_fit_that_is_said() -> None:
    """No proposal that does not fit: other ways out instead."""
    with pytest.raises(MemoryPlanError, match=r"no setting would make it fit: .*fewer slots on here"):
        fit(PAIR, rooms(10**12, here=MIB), config(), SMALL, ROWS).check()


def test_a_host_that_does_not_tell_is_not_refused() -> None:
    """Without a size there is nothing to compare; the table says so."""
    plan = fit(PAIR, {}, config(), SMALL, ROWS)
    plan.check()
    assert plan.ways == ()
    assert list(render_memory(plan).columns[-1].cells) == ["not told", "not told"]


def test_the_table_adds_up() -> None:
    """A host's parts, of all its ranks, sum to its peak."""
    table = render_memory(fit(PAIR, rooms(10**12), config(), SMALL, ROWS))
    columns: Sequence[Sequence[Any]] = [list(column.cells) for column in table.columns]
    for row in zip(*columns, strict=True):
        *parts, peak = (int(str(cell).replace(",", "")) for cell in row[1:-1])
        assert abs(sum(parts) - peak) <= len(parts)
    assert columns[-1][0] == f"{10**12 / MIB:,.0f} wired limit"


def test_on_a_gpu_the_process_itself_does_not_count() -> None:
    """The wired limit is about what the GPU uses."""
    assert estimate(SMALL, config(), ROWS, 2, on_gpu=True).process == 0
    plan = fit(PAIR, rooms(10**12), config(), SMALL, ROWS)
    assert plan.hosts[0].each.process == 0 < plan.hosts[1].each.process


@settings(max_examples=8, deadline=None)
@given(
    layers=st.sampled_from([-1, 1, 4, 29, 30]),
    batch=st.integers(1, 16),
    micro=st.integers(1, 16),
    ranks=st.integers(1, 4),
    flags=st.tuples(*[st.booleans()] * 5),
)
def test_proposals_only_ever_change_what_they_name(
    layers: int, batch: int, micro: int, ranks: int, flags: tuple[bool, ...]
) -> None:
    """Whatever the configuration: estimates are positive, and each proposal's overrides give exactly its configuration."""
    packing, fused, kernels, trunk, checkpointing = (str(flag).lower() for flag in flags)
    base = [
        *QUIET,
        f"adapter.num_layers={layers}",
        f"train.global_batch={batch}",
        f"train.micro_batch={micro}",
        f"speed.packing={packing}",
        f"speed.fused_loss={fused}",
        f"speed.kernels={kernels}",
        f"speed.trunk_cache={trunk}",
        f"train.checkpointing={checkpointing}",
        "train.steps=5",
    ]
    chosen = load_config("pirate", base)
    assert estimate(SMALL, chosen, ROWS, ranks, on_gpu=False).total > 0
    for overrides, other in suggest(SMALL, chosen):
        assert load_config("pirate", [*base, *overrides]) == other != chosen


def test_no_plan_without_a_token_store(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the data were tokenised nothing is known of the rows' lengths."""
    monkeypatch.setenv("FLOTILLA_CACHE", str(tmp_path))
    assert plan_memory(PAIR, {}, config(), tiny_model, "a" * 64, tmp_path) is None


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.skipif(sys.platform == "darwin", reason="reads Linux's /proc")
def test_a_control_groups_limit_counts_where_it_is_less(tmp_path: Path) -> None:
    """Version 2 and version 1, at any height; files that are only cached are not taken; no limit: what is available."""
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert read_room(tmp_path) == {"size_bytes": 8000 * 1024, "what": "available"}
    write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
    write(tmp_path / "sys/fs/cgroup/outer/inner/memory.max", "max\n")
    assert read_room(tmp_path)["what"] == "available"
    write(tmp_path / "sys/fs/cgroup/outer/memory.max", "1000000\n")
    write(tmp_path / "sys/fs/cgroup/outer/memory.current", "600000\n")
    write(tmp_path / "sys/fs/cgroup/outer/memory.stat", "anon 5\ninactive_file 100000\n")
    assert read_room(tmp_path) == {"size_bytes": 500000, "what": "control group's limit"}
    write(tmp_path / "proc/self/cgroup", "4:memory:/old\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory/old/memory.limit_in_bytes", "700000\n")
    write(tmp_path / "sys/fs/cgroup/memory/old/memory.usage_in_bytes", "900000\n")
    assert read_room(tmp_path) == {"size_bytes": 0, "what": "control group's limit"}
    assert read_room(tmp_path / "nothing") == {"size_bytes": 0, "what": "available"}


def test_a_macs_wired_limit() -> None:
    """The limit that was set, or the system's own share of the memory; nothing where sysctl says nothing."""
    said = "hw.memsize: 34359738368\niogpu.wired_limit_mb: 28672\n"
    assert judge_mac(said) == {"size_bytes": 28672 * MIB, "what": "wired limit"}
    small = judge_mac("hw.memsize: 17179869184\niogpu.wired_limit_mb: 0\n")
    assert small == {"size_bytes": 17179869184 * 2 // 3, "what": "wired limit (the system's)"}
    assert judge_mac("hw.memsize: 68719476736\n")["size_bytes"] == 48 * 1024 * MIB
    assert judge_mac("")["size_bytes"] == 0


def test_dora_trains_magnitudes_too() -> None:
    """A magnitude for each output beside the two matrices."""
    lora, dora = (
        estimate(
            SMALL,
            dataclasses.replace(config(), adapter=dataclasses.replace(config().adapter, kind=kind)),
            ROWS,
            1,
            on_gpu=False,
        )
        for kind in ("lora", "dora")
    )
    assert dora.adapters - lora.adapters == 4 * 8 * (576 + 192 + 1536)
