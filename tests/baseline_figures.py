"""Baselines made up for tests: hosts of a known speed, links of a known bandwidth."""

from __future__ import annotations

from typing import Any

from trainer.config import RunConfig
from trainer.measure.figures import summarise_values
from trainer.measure.link import Line

FAST, SLOW = "10.99.0.0/24", "10.77.0.0/24"
LENGTHS = [[20 + 7 * (n % 23), 8 + 3 * (n % 23)] for n in range(200)]


def make_host(padded_s: float = 0.01, ranks: int = 1, memory_mib: float = 16000.0) -> dict[str, Any]:
    """A host that takes ``padded_s`` for each padded token, half as much for each supervised one, and 5 ms for a step."""
    batches = [
        {
            "rows": 2,
            "padded": padded,
            "tokens": padded,
            "supervised": padded // 2,
            "seconds": 1.25 * padded * padded_s,
            "fixed_s": 0.005,
        }
        for padded in (40, 100, 180, 260, 330)
    ]
    return {
        "system": {"os": "Linux", "cpu": "x", "cores": 1, "memory_mib": memory_mib},
        "software": {},
        "ranks": ranks,
        "threads": 1,
        "inference": {
            "load_s": 1.0,
            "prompt_tokens_per_s": summarise_values([100.0, 101.0, 102.0]),
            "generation_tokens_per_s": summarise_values([10.0, 10.1, 10.2]),
            "peak_memory_mib": 700.0,
        },
        "training": {
            "samples_per_s": 1.0,
            "tokens_per_s": 100.0,
            "supervised_tokens_per_s": 50.0,
            "step_s": summarise_values([1.0, 1.1]),
            "fixed_s": summarise_values([0.005, 0.005]),
            "micro_batches": batches,
            "trunk": {"reason": "speed.trunk_cache is off"},
            "first_epoch_samples_per_s": 1.0,
            "peak_memory_mib": 1500.0,
        },
        "noise": {"spread": 0.0, "is_noisy": False},
    }


def make_sweep(hosts: list[str], network: str, line: Line, payload_bytes: int, backend: str = "mpi") -> dict[str, Any]:
    """An all-reduce measured among ``hosts`` that takes exactly what ``line`` says."""
    sizes = (65536, 1048576, payload_bytes)
    sweep = [{"bytes": size, "seconds": summarise_values([line.all_reduce_s(backend, len(hosts), size)] * 3)} for size in sizes]
    return {"hosts": hosts, "network": network, "backend": backend, "sweep": sweep}


def make_baseline(
    speeds: dict[str, float] | None = None, payload_bytes: int = 10_000_000, steps: int = 50, **changes: Any
) -> dict[str, Any]:
    """Two hosts, alpha and beta, with a fast link (1 GB/s) and a slow one (12.5 MB/s). ``speeds``: seconds a token by host."""
    hosts = {name: make_host(padded_s) for name, padded_s in (speeds or {"alpha": 0.01, "beta": 0.01}).items()}
    names = list(hosts)
    fast, slow = Line(1e-4, 1e-9), Line(1e-3, 8e-8)
    links = [
        {"hosts": names[:2], "network": network, "is_fast": network == FAST, "carried_by": {}, "problem": ""}
        for network in (FAST, SLOW)
    ]
    pairs = [[a, b] for index, a in enumerate(names) for b in names[index + 1 :]]
    return {
        "version": 1,
        "time": 1_764_000_000.0,
        "name": "test",
        "quick": False,
        "inventory": "inventory/pair.yml",
        "recipe": "pirate",
        "config": RunConfig().as_dict(),
        "fingerprints": {"model": "m", "data": "d"},
        "job": {
            "steps": steps,
            "rows": len(LENGTHS),
            "global_batch": 8,
            "micro_batch": 2,
            "seed": 0,
            "trainable": payload_bytes // 4,
            "parameters": 1_000_000,
            "payload_bytes": payload_bytes,
            "lengths": LENGTHS,
            "is_packed": False,
            "trunk_ratio": 0.0,
        },
        "hosts": hosts,
        "links": links if len(names) > 1 else [],
        "all_reduce": [make_sweep(pair, FAST, fast, payload_bytes) for pair in pairs]
        + [make_sweep(pair, SLOW, slow, payload_bytes) for pair in pairs],
        "prediction": [],
        "verdict": {"headline": "", "reasons": [], "choice": "alone"},
        "problems": [],
        **changes,
    }
