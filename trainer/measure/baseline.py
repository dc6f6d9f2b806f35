"""Taking a baseline: the jobs that measure, and what they tell put together."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trainer
from trainer.cluster.errand import Errand, run_errand
from trainer.cluster.inventory import Cluster
from trainer.cluster.launch import Inputs, JobError, Watcher
from trainer.cluster.nodes import Fleet, find_management
from trainer.cluster.outcome import Line
from trainer.cluster.several import find_artifacts
from trainer.cluster.store import Artifact
from trainer.events import Event
from trainer.measure.cost import NOISY_SPREAD, fit_cost
from trainer.measure.figures import summarise_values
from trainer.measure.predict import predict
from trainer.measure.store import VERSION
from trainer.measure.verdict import judge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: the inputs of a run, its model and data as fetched, the hosts, and how the result is called."""

    inputs: Inputs
    model: Path
    fingerprints: Mapping[str, str]
    fleet: Fleet | None
    recipe: str
    is_quick: bool

    @property
    def cluster(self) -> Cluster:
        """The hosts with the addresses that a run would use."""
        return self.fleet.cluster if self.fleet else self.inputs.cluster


def take_baseline(subject: Subject, watcher: Watcher) -> dict[str, Any]:
    """Measure and return the baseline; raises `JobError` if a host is lost meanwhile."""
    heard = _Heard(watcher, _host_names(subject))
    artifacts = find_artifacts(subject.inputs, subject.model, dict(subject.fingerprints)) if subject.fleet else []
    _measure(subject, subject.cluster, ["hosts", "links", "mpi", "ring"], 0, artifacts, heard)
    payload_bytes = heard.of("job")[0]["payload_bytes"]
    if slow := _other_network(subject):
        _measure(subject, slow, ["mpi"], payload_bytes, artifacts, heard)
    return _put_together(subject, heard)


def _measure(
    subject: Subject, cluster: Cluster, what: Sequence[str], payload_bytes: int, artifacts: Sequence[Artifact], heard: _Heard
) -> None:
    quick = ("--quick",) if subject.is_quick else ()
    launch = dataclasses.replace(subject.inputs.config.launch, backend="mpi")
    errand = Errand(
        name="baseline",
        config=dataclasses.replace(subject.inputs.config, launch=launch),
        words=("measure", "--what", ",".join(what), "--payload", str(payload_bytes), *quick),
        model=subject.model,
        data=subject.inputs.data,
        fingerprints=subject.fingerprints,
    )
    outcome = run_errand(errand, cluster, subject.fleet, artifacts, heard)
    if outcome.exit_code:
        raise JobError(outcome)


def _other_network(subject: Subject) -> Cluster | None:
    """Return the cluster on its management network, if that is another than the one that a run uses and is known."""
    if subject.fleet is None or subject.fleet.is_slow or len(subject.cluster.hosts) == 1:
        return None
    network = find_management(subject.fleet.nodes)
    return subject.cluster.over_management(network) if network and network != subject.cluster.network else None


def _host_names(subject: Subject) -> dict[str, str]:
    """Return what the inventory calls the hosts, by what they call themselves."""
    if subject.fleet is None:
        return {socket.gethostname(): subject.cluster.hosts[0].name}
    return {node.host_name: name for name, node in subject.fleet.nodes.items()}


class _Heard:
    """Keeps what ranks measured, under the inventory's names, and passes the rest on."""

    def __init__(self, watcher: Watcher, names: Mapping[str, str]) -> None:
        self._watcher, self._names = watcher, names
        self._measured: list[Event] = []

    def of(self, what: str) -> list[Event]:
        """Return what was measured of one kind, in the order of ranks."""
        found = [event for event in self._measured if event["what"] == what]
        return sorted(found, key=lambda event: event["rank"]) if what == "host" else found

    def on_event(self, event: Event) -> None:
        """Take an event."""
        if event["event"] != "measured":
            self._watcher.on_event(event)
            return
        hosts = [self._name(host) for host in event.get("hosts", ())]
        self._measured.append({**event, "hosts": hosts, "host": self._name(event.get("host_name", ""))})

    def on_line(self, line: Line) -> None:
        """Pass a line on."""
        self._watcher.on_line(line)

    def _name(self, host_name: str) -> str:
        return self._names.get(host_name, host_name)


def _put_together(subject: Subject, heard: _Heard) -> dict[str, Any]:
    inputs = subject.inputs
    fast = inputs.cluster.network
    job = {key: value for key, value in heard.of("job")[0].items() if key not in _EVENT_KEYS}
    links = [_tell_link(event, str(fast)) for event in heard.of("link")]
    sweeps = [event for event in heard.of("all_reduce") if "sweep" in event]
    failed = [event for event in heard.of("all_reduce") if "problem" in event]
    problems = [f"{' and '.join(link['hosts'])} over {link['network']}: {link['problem']}" for link in links if link["problem"]]
    problems += [f"{' and '.join(each['hosts'])} with {each['backend']}: {each['problem']}" for each in failed]
    if subject.fleet and subject.fleet.is_slow and fast:
        problems.append(f"The fast link {fast} is down, so it was not measured; ./inv doctor says how to mend it.")
    hosts = _tell_hosts(heard.of("host"))
    noisy = {name: host["noise"]["spread"] for name, host in hosts.items() if host["noise"]["is_noisy"]}
    problems += [f"{name} is noisy: the times of equal work differ by {spread:.0%}." for name, spread in noisy.items()]
    baseline: dict[str, Any] = {
        "version": VERSION,
        "flotilla": trainer.__version__,
        "time": time.time(),
        "name": inputs.name,
        "quick": subject.is_quick,
        "inventory": inputs.cluster.source,
        "recipe": subject.recipe,
        "config": inputs.config.as_dict(),
        "fingerprints": dict(subject.fingerprints),
        "job": job,
        "hosts": hosts,
        "links": links,
        "all_reduce": [_tell_sweep(event) for event in sweeps],
        "problems": problems,
    }
    baseline["prediction"] = predict(baseline)
    baseline["verdict"] = judge(baseline)
    return baseline


_EVENT_KEYS = ("event", "rank", "time", "what", "host_name", "host", "hosts")


def _tell_hosts(events: Sequence[Event]) -> dict[str, Any]:
    """Return each host's figures: inference as its first rank saw it, training of all its ranks together."""
    by_host: dict[str, list[Event]] = {}
    for event in events:
        by_host.setdefault(event["host"], []).append(event)
    return {name: _tell_host(own) for name, own in by_host.items()}


def _tell_host(events: Sequence[Event]) -> dict[str, Any]:
    first = events[0]
    batches = [batch for event in events for batch in event["training"]["micro_batches"]]
    seconds = sum(batch["seconds"] + batch["fixed_s"] for batch in batches) / len(events)
    trunk = _tell_trunk([event["training"]["trunk"] for event in events])
    entering_s = trunk.get("token_s", 0.0) * sum(batch["tokens"] for batch in batches) / len(events)
    inference = first["inference"]
    training = {
        "samples_per_s": sum(batch["rows"] for batch in batches) / seconds,
        "tokens_per_s": sum(batch["tokens"] for batch in batches) / seconds,
        "supervised_tokens_per_s": sum(batch["supervised"] for batch in batches) / seconds,
        "step_s": summarise_values([batch["seconds"] + batch["fixed_s"] for batch in batches]),
        "fixed_s": summarise_values([batch["fixed_s"] for batch in batches]),
        "micro_batches": batches,
        "trunk": trunk,
        "first_epoch_samples_per_s": sum(batch["rows"] for batch in batches) / (seconds + entering_s),
        "peak_memory_mib": max(event["training"]["peak_memory_mib"] for event in events),
    }
    spread = fit_cost(training).spread
    return {
        "system": first["system"],
        "software": first["software"],
        "ranks": len(events),
        "threads": first["threads"],
        "inference": {
            **inference,
            "prompt_tokens_per_s": summarise_values(inference["prompt_tokens_per_s"]),
            "generation_tokens_per_s": summarise_values(inference["generation_tokens_per_s"]),
        },
        "training": training,
        "noise": {"spread": spread, "is_noisy": spread > NOISY_SPREAD},
    }


def _tell_trunk(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of the frozen layers of a host: why their output is not kept, or their seconds for a token."""
    if "reason" in told[0]:
        return told[0]
    tokens = sum(each["tokens"] for each in told)
    return {**told[0], "tokens": tokens, "token_s": sum(each["token_s"] * each["tokens"] for each in told) / tokens}


def _tell_link(event: Event, fast: str) -> dict[str, Any]:
    figures = ("latency_s", "up_bytes_per_s", "down_bytes_per_s")
    carried = dict(zip(event["hosts"], event["carried_by"], strict=True))
    return {
        "hosts": event["hosts"],
        "network": event["network"],
        "is_fast": event["network"] == fast,
        "addresses": event["addresses"],
        **{name: summarise_values(event[name]) for name in figures if name in event},
        "carried_by": carried,
        "problem": event.get("problem", ""),
    }


def _tell_sweep(event: Event) -> dict[str, Any]:
    sizes = [{"bytes": each["bytes"], "seconds": summarise_values(each["values"])} for each in event["sweep"]]
    return {"hosts": event["hosts"], "network": event["network"], "backend": event["backend"], "sweep": sizes}
