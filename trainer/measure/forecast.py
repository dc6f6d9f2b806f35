"""What a stored baseline foretells of a run that is about to start, and how the run then compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.cluster.inventory import Cluster
from trainer.config import RunConfig
from trainer.measure.predict import predict
from trainer.measure.store import find_matching
from trainer.measure.verdict import GAIN, duration


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The predictions of one baseline for a run: on its own hosts, and on the fastest host alone.

    ``kept`` are those where an earlier run has left what the frozen layers put out; None where nothing is kept.
    """

    baseline: Mapping[str, Any]
    own: Mapping[str, Any]
    alone: Mapping[str, Any]
    kept: Forecast | None = None

    def describe(self) -> str:
        """Return the sentences to say before training."""
        takes, name = duration(self.own["run_s"]), self.alone["hosts"][0]
        if self.own["num_hosts"] == 1:
            return f"the baseline predicts {takes} for the steps"
        share = self.own["comm_s"] / self.own["step_s"]
        told = f"the baseline predicts {takes} for the steps, {self.own['speedup']:.2f} times {name}'s speed alone"
        if self.own["speedup"] >= GAIN:
            return told
        lost = "slower than" if self.own["speedup"] < 1 else "hardly faster than"
        return (
            f"{told}: {lost} {name} by itself, which takes {duration(self.alone['run_s'])}. {share:.0%} of each step goes into "
            f"communication over {self.own['network']}; a smaller adapter.rank, a larger train.global_batch or a faster link "
            "would help"
        )

    def compare(self, summary: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return predicted and measured speed-up against the fastest host alone; None if nothing was trained."""
        rate = summary.get("tokens_per_s")
        if not rate:
            return None
        trunk = summary.get("trunk") or {}
        if self.kept and trunk.get("present", 0) * 2 > trunk.get("needed", math.inf):
            return self.kept.compare({"tokens_per_s": rate})
        return {
            "name": self.baseline["name"],
            "time": self.baseline["time"],
            "host_alone": self.alone["hosts"][0],
            "alone_tokens_per_s": self.alone["tokens_per_s"],
            "predicted_tokens_per_s": self.own["tokens_per_s"],
            "predicted_speedup": self.own["speedup"],
            "measured_speedup": rate / self.alone["tokens_per_s"],
        }


def foretell(cluster: Cluster, config: RunConfig, fingerprints: Mapping[str, str]) -> Forecast | None:
    """Return the forecast of a run on ``cluster`` by the newest baseline that fits it; None without one.

    It fits if model, data and adapter are the same, it knows all hosts, and the network and backend were measured.
    """
    names = [host.name for host in cluster.hosts]
    baseline = find_matching(fingerprints, config.as_dict(), set(names))
    if baseline is None:
        return None
    known = {**baseline, "hosts": {name: baseline["hosts"][name] for name in names}}
    if any(known["hosts"][host.name]["ranks"] != host.slots for host in cluster.hosts):
        return None
    forecast = _look_up(known, cluster, config, is_kept=False)
    if forecast and known["job"]["trunk_ratio"]:
        forecast = dataclasses.replace(forecast, kept=_look_up(known, cluster, config, is_kept=True))
    return forecast


def _look_up(baseline: Mapping[str, Any], cluster: Cluster, config: RunConfig, *, is_kept: bool) -> Forecast | None:
    names = [host.name for host in cluster.hosts]
    entries = [entry for entry in predict(baseline, config, is_kept=is_kept) if entry["scaling"] == "strong"]
    network = str(cluster.network or "") if len(names) > 1 else None
    for entry in entries:
        if entry["num_hosts"] != len(names):
            continue
        if network is None or (entry["network"], entry["backend"]) == (network, config.launch.backend):
            return Forecast(baseline=baseline, own=entry, alone=entries[0])
    return None
