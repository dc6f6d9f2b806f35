"""How long an all-reduce takes among N ranks: measured where it was measured, else from what pairs of hosts showed.

A pair's times over several sizes give two numbers, the latency of a message and the seconds of a byte. From them follow,
with N ranks and S bytes (Thakur, Rabenseifner and Gropp, 2005):

- ring: ``2 (N-1) latency + 2 (N-1)/N S byte``
- Open MPI's choice for long vectors, Rabenseifner's: ``2 log2(P) latency + 2 (P-1)/P S byte`` with P the largest power of two
  up to N; where N is none, the others first hand their vector over and get it back: ``3 latency + 2 S byte`` more.

Both are ``2 latency + S byte`` for a pair. The slowest pair of those that take part decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Sweep = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Line:
    """Latency of a message and seconds of a byte between two hosts."""

    latency_s: float
    byte_s: float

    def all_reduce_s(self, backend: str, num_ranks: int, size_bytes: int) -> float:
        """Return the seconds of an all-reduce of ``size_bytes`` among ``num_ranks`` ranks."""
        if num_ranks < 2:
            return 0.0
        if backend == "ring":
            rounds, share = 2.0 * (num_ranks - 1), 2.0 * (num_ranks - 1) / num_ranks
        else:
            power = 2 ** int(math.log2(num_ranks))
            odd = power != num_ranks
            rounds = 2.0 * math.log2(power) + 3.0 * odd
            share = 2.0 * (power - 1) / power + 2.0 * odd
        return rounds * self.latency_s + share * size_bytes * self.byte_s


def fit_line(sweep: Sweep) -> Line:
    """Return the line through the medians of a pair's ``sweep`` (at least one size), by relative error."""
    sizes = np.array([each["bytes"] for each in sweep], dtype=float)
    seconds = np.array([max(each["seconds"]["median"], 1e-9) for each in sweep])
    if len(sizes) == 1:
        return Line(0.0, float(seconds[0] / sizes[0]))
    table = np.stack([np.full(len(sizes), 2.0), sizes], axis=1) / seconds[:, None]
    latency, byte = np.linalg.lstsq(table, np.ones(len(sizes)), rcond=None)[0]
    if latency < 0 or byte < 0:  # noise: the largest size tells the bandwidth, the smallest the latency
        latency, byte = seconds.min() / 2, seconds[sizes.argmax()] / sizes.max()
    return Line(float(latency), float(byte))


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way for the gradients: a network and a backend, with all sweeps that were made of it by sets of hosts."""

    network: str
    backend: str
    is_fast: bool
    sweeps: Mapping[frozenset[str], Sweep]

    def all_reduce_s(self, hosts: Sequence[str], num_ranks: int, size_bytes: int) -> float | None:
        """Return the seconds of an all-reduce; None if nothing was measured that tells.

        ``hosts`` names those that take part; names that were not measured stand for hosts like the measured ones.
        """
        chosen = frozenset(hosts)
        if chosen in self.sweeps and (seconds := _look_up(self.sweeps[chosen], size_bytes)):
            return seconds
        pairs = [sweep for pair, sweep in self.sweeps.items() if len(pair) == 2 and pair <= chosen]
        pairs = pairs or [sweep for pair, sweep in self.sweeps.items() if len(pair) == 2]
        if not pairs:
            return None
        return max(fit_line(sweep).all_reduce_s(self.backend, num_ranks, size_bytes) for sweep in pairs)


def _look_up(sweep: Sweep, size_bytes: int) -> float | None:
    """Return the measured median of the very size, a few bytes more or less."""
    near = [each for each in sweep if abs(each["bytes"] - size_bytes) <= 0.01 * size_bytes]
    return float(near[0]["seconds"]["median"]) if near else None


def _assume(name: str, latency_s: float, bytes_per_s: float) -> Route:
    line = [{"bytes": size, "seconds": {"median": 2 * latency_s + size / bytes_per_s}} for size in (4096, 1 << 24)]
    return Route(network=name, backend="mpi", is_fast=False, sweeps={frozenset({"", name}): line})


# What such links usually carry, for the question what they would bring; not measured, and told as such.
ASSUMED = (
    _assume("Wi-Fi, 300 Mbit/s", 3e-3, 300e6 / 8),
    _assume("Ethernet, 1 Gbit/s", 2e-4, 940e6 / 8),
    _assume("Thunderbolt, 20 Gbit/s", 1e-4, 20e9 / 8),
)


def list_routes(baseline: Mapping[str, Any]) -> list[Route]:
    """Return the routes of a baseline, the fast network first."""
    fast = {link["network"] for link in baseline["links"] if link["is_fast"]}
    sweeps: dict[tuple[str, str], dict[frozenset[str], Sweep]] = {}
    for each in baseline["all_reduce"]:
        sweeps.setdefault((each["network"], each["backend"]), {})[frozenset(each["hosts"])] = each["sweep"]
    routes = [
        Route(network=network, backend=backend, is_fast=network in fast, sweeps=found)
        for (network, backend), found in sweeps.items()
    ]
    return sorted(routes, key=lambda route: not route.is_fast)
