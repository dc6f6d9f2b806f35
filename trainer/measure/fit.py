"""Does a run fit? What each of its ranks takes against what its host has, before anything is sent or started."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cluster.inventory import Cluster
from trainer.config import ModelConfig, RunConfig
from trainer.data.store import TokenStore, key_store, open_store, read_index
from trainer.errors import MemoryPlanError
from trainer.measure.anatomy import Anatomy, read_anatomy
from trainer.measure.memory import MIB, Footprint, Rows, estimate, suggest
from trainer.paths import cache_dir

_MOST_WAYS = 3
_PROMPTS_LOOKED_AT = 1000


@dataclass(frozen=True, kw_only=True)
class HostFit:
    """One host: what each of its ``ranks`` takes, and what it has (0 if it does not tell) of ``what``."""

    name: str
    ranks: int
    each: Footprint
    room_bytes: int
    what: str

    @property
    def need_bytes(self) -> int:
        """What its ranks take together."""
        return self.ranks * self.each.total

    @property
    def fits(self) -> bool:
        """Whether that is no more than there is; a host that does not tell is given the benefit of the doubt."""
        return not self.room_bytes or self.need_bytes <= self.room_bytes


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The hosts of a run in rank order, and the settings with which all of them would fit."""

    hosts: tuple[HostFit, ...]
    ways: tuple[tuple[tuple[str, ...], int], ...] = ()

    def check(self) -> None:
        """Raise `MemoryPlanError` if a host has too little, naming the nearest settings that fit."""
        crowded = [host for host in self.hosts if not host.fits]
        if not crowded:
            return
        lines = ["the run does not fit in memory; nothing was sent or started:"]
        for host in crowded:
            ranks = f"{host.ranks} ranks of {_mib(host.each.total)}" if host.ranks > 1 else "its rank"
            lines.append(
                f"  {host.name}: {ranks} would take {_mib(host.need_bytes)} while {host.each.phase}, "
                f"and it has {_mib(host.room_bytes)} ({host.what})"
            )
        ways = [f"  {' '.join(f'-o {each}' for each in way)}  ({_mib(size)} a rank)" for way, size in self.ways]
        lines += ["what would fit:", *ways] if ways else [_last_resort(crowded[0])]
        raise MemoryPlanError("\n".join(lines))


def _last_resort(host: HostFit) -> str:
    shorter = f"shorter samples (the longest micro-batch has {sum(host.each.batch)} tokens), "
    fewer = f"fewer slots on {host.name}, " if host.ranks > 1 else ""
    return f"no setting would make it fit: it takes {shorter}{fewer}a smaller or quantised model, or other hosts"


def plan_memory(
    cluster: Cluster, rooms: Mapping[str, Mapping[str, Any]], config: RunConfig, model: Path, data_digest: str, data: Path
) -> MemoryPlan | None:
    """Return the memory plan of a run; None where the model's files or the token store do not say enough.

    ``rooms`` has for each host what `trainer.cluster.room.read_room` said there.
    """
    anatomy, rows = read_anatomy(model), read_rows(model, data_digest, data)
    if anatomy is None or rows is None or not anatomy.linear:
        return None
    return fit(cluster, rooms, config, anatomy, rows)


def fit(
    cluster: Cluster, rooms: Mapping[str, Mapping[str, Any]], config: RunConfig, anatomy: Anatomy, rows: Rows
) -> MemoryPlan:
    """Return the memory plan for a model and rows of known sizes."""

    def place(config: RunConfig) -> tuple[HostFit, ...]:
        on_cpu, on_gpu = (estimate(anatomy, config, rows, cluster.world_size, on_gpu=each) for each in (False, True))
        return tuple(
            HostFit(
                name=host.name,
                ranks=host.slots,
                each=on_gpu if "wired" in str(room.get("what", "")) else on_cpu,
                room_bytes=int(room.get("size_bytes", 0)),
                what=str(room.get("what", "")),
            )
            for host in cluster.hosts
            for room in [rooms.get(host.name, {})]
        )

    hosts = place(config)
    if all(host.fits for host in hosts):
        return MemoryPlan(hosts=hosts)
    ways: list[tuple[tuple[str, ...], int]] = []
    for overrides, other in suggest(anatomy, config):
        placed = place(other) if len(ways) < _MOST_WAYS else ()
        if placed and all(host.fits for host in placed) and not any(set(way) <= set(overrides) for way, _ in ways):
            ways.append((overrides, max(host.each.total for host in placed)))
    return MemoryPlan(hosts=hosts, ways=tuple(ways))


def find_here(model: ModelConfig) -> Path | None:
    """Return the folder of a model that is on this machine already; fetches nothing."""
    if model.source.startswith("bundled:"):
        form = "4bit" if sys.platform == "darwin" else "float32"
        folder = cache_dir() / "models" / f"{model.source.removeprefix('bundled:')}-{form}"
    else:
        with contextlib.suppress(OSError, RuntimeError):
            folder = Path(model.source).expanduser().resolve()
    return folder if (folder / "config.json").is_file() else None


def read_rows(model: Path, data_digest: str, data: Path) -> Rows | None:
    """Return the lengths of a data set's rows from this machine's token store; None while it has none."""
    try:
        folder = cache_dir() / "tokens" / key_store(data_digest, model)
        if read_index(folder) is None:
            return None
        splits = open_store(folder, data)
    except OSError:
        return None
    return Rows(splits["train"].lengths, len(splits["test"]), _longest_prompt(splits["test"])) if len(splits["train"]) else None


def _longest_prompt(rows: TokenStore) -> int:
    """Return the tokens before the first that is learned, of the row that has most of them."""
    looked_at = range(min(len(rows), _PROMPTS_LOOKED_AT))
    return max((int(np.argmax(rows[index].supervised)) for index in looked_at), default=0)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"
