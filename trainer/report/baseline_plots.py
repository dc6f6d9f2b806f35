"""The plots of a baseline: what more hosts would bring, how long all-reduces take, the links, how even the hosts' times are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.report.chart import GREY, NUM_COLOURS, Chart, Plot, Series
from trainer.report.links import plot_network

Entry = Mapping[str, Any]
_SCALINGS = {
    "strong": ("speed-up", "The same batch, sooner", "times as fast as one host"),
    "weak": ("weak-scaling", "A batch that grows with the hosts", "times the samples a second"),
}
_MOST_HOSTS_SHOWN = 8


def plot_baseline(baseline: Mapping[str, Any]) -> list[Plot]:
    """Return the plots that the baseline has the figures for."""
    return [*_plots(baseline)]


def _plots(baseline: Mapping[str, Any]) -> Iterator[Plot]:
    for scaling in _SCALINGS:
        if any(entry["scaling"] == scaling and entry["num_hosts"] > 1 for entry in baseline["prediction"]):
            yield _scaling(baseline["prediction"], scaling)
    if baseline["links"]:
        yield plot_network(baseline)
    if baseline["all_reduce"]:
        yield _sweeps(baseline)
    if baseline["hosts"]:
        yield _micro_batches(baseline["hosts"])


def _scaling(entries: Sequence[Entry], scaling: str) -> Chart:
    name, title, unit = _SCALINGS[scaling]
    routes: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry["scaling"] == scaling and entry["num_hosts"] > 1:
            routes.setdefault((entry["network"], entry["backend"]), []).append(entry)
    most = max(entry["num_hosts"] for found in routes.values() for entry in found)
    series = [Series(label="ideal", points=[(1.0, 1.0), (float(most), float(most))], kind="faint", colour=GREY)]
    for number, ((network, backend), found) in enumerate(routes.items()):
        assumed = found[0]["is_assumed"]
        points = [(1.0, 1.0), *((float(entry["num_hosts"]), float(entry["speedup"])) for entry in found)]
        label = f"{network} (assumed)" if assumed else f"{network} with {backend}"
        series.append(Series(label=label, points=points, kind="dashed" if assumed else "line", colour=number % NUM_COLOURS))
    best = max((entry for found in routes.values() for entry in found), key=lambda entry: float(entry["speedup"]))
    return Chart(
        name=name,
        title=title,
        description=f"At most {best['speedup']:.2f}, with {best['num_hosts']} hosts over {best['network']}.",
        series=series,
        x_label="hosts",
        is_counted=True,
        y_label=unit,
        from_zero=True,
    )


def _sweeps(baseline: Mapping[str, Any]) -> Chart:
    """Of each network and backend the slowest set of hosts, which is the one that holds the others up."""
    slowest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for each in baseline["all_reduce"]:
        key = (each["network"], each["backend"])
        if key not in slowest or _longest_s(each) > _longest_s(slowest[key]):
            slowest[key] = each
    series = [
        Series(
            label=f"{network or 'this machine'} with {backend}: {', '.join(each['hosts'])}",
            points=[(size["bytes"] / 1024, max(size["seconds"]["median"], 1e-9) * 1e3) for size in _by_size(each)],
            kind="dots",
            colour=number % NUM_COLOURS,
        )
        for number, ((network, backend), each) in enumerate(slowest.items())
    ]
    payload = baseline["job"]["payload_bytes"] / (1024 * 1024)
    return Chart(
        name="all-reduce",
        title="All-reduce",
        description=f"Median time by size, each way by its slowest set of hosts; a step of this run reduces {payload:.1f} MiB.",
        series=series,
        x_label="KiB",
        y_label="milliseconds",
        log=True,
    )


def _by_size(each: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(each["sweep"], key=lambda size: int(size["bytes"]))


def _longest_s(each: Mapping[str, Any]) -> float:
    return max(float(size["seconds"]["median"]) for size in each["sweep"])


def _micro_batches(hosts: Mapping[str, Any]) -> Chart:
    series = [
        Series(
            label=name,
            points=sorted((float(batch["padded"]), float(batch["seconds"])) for batch in host["training"]["micro_batches"]),
            kind="scatter",
            colour=number % NUM_COLOURS,
        )
        for number, (name, host) in enumerate([*hosts.items()][:_MOST_HOSTS_SHOWN])
    ]
    return Chart(
        name="micro-batches",
        title="Training",
        description="Seconds of forward and backward pass by size of the micro-batch, padding included; "
        "points that lie on a line are a quiet machine's.",
        series=series,
        x_label="tokens",
        y_label="seconds",
        from_zero=True,
    )
