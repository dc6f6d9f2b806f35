"""What the page of a baseline says: the verdict first, then the figures that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from trainer.measure.verdict import duration
from trainer.report.baseline import show_rate
from trainer.report.baseline_plots import plot_baseline
from trainer.report.markup import Figures, escape_key, join
from trainer.report.settings import compare_config, moment

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page: the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Markup]]


def describe_baseline(baseline: Mapping[str, Any], folder_name: str) -> dict[str, Any]:
    """Return everything that the template of a baseline's page shows."""
    figures = Figures(baseline=baseline)
    return {
        "name": folder_name,
        "began": moment(baseline["time"]),
        "headline": join(baseline["verdict"]["headline"]),
        "reasons": [str(reason) for reason in baseline["verdict"]["reasons"]],
        "plots": {plot.name: plot for plot in plot_baseline(baseline)},
        "hosts": _hosts(baseline, figures),
        "links": tell_links(baseline) if baseline["links"] else None,
        "all_reduces": _all_reduces(baseline, figures) if baseline["all_reduce"] else None,
        "predictions": _predictions(baseline, figures),
        "facts": [*_facts(baseline, figures)],
        "software": _software(baseline["hosts"]),
        "config": compare_config(baseline["config"]),
    }


def tell_links(baseline: Mapping[str, Any]) -> Table:
    """Return the table of links with what was measured of each."""
    figures = Figures(baseline=baseline)
    return Table(
        columns=("", "network", "latency", "up", "down", "carried by"),
        rows=[_link(number, link, figures) for number, link in enumerate(baseline["links"])],
    )


def _link(number: int, link: Mapping[str, Any], figures: Figures) -> list[Markup]:
    name = join(" – ".join(link["hosts"]))
    network = join(link["network"], " (fast)" if link["is_fast"] else "")
    if link["problem"]:
        return [name, network, join(link["problem"]), join(""), join(""), join("")]
    shown = [
        _median(figures, f"links/{number}/latency_s", lambda seconds: f"{seconds * 1e6:,.0f} µs"),
        _median(figures, f"links/{number}/up_bytes_per_s", show_rate),
        _median(figures, f"links/{number}/down_bytes_per_s", show_rate),
    ]
    return [name, network, *shown, join(", ".join(dict.fromkeys(link["carried_by"].values())))]


def _median(figures: Figures, key: str, form: str | Callable[[Any], str]) -> Markup:
    return figures.show(f"{key}/median", form) if figures.has(f"{key}/median") else join("not measured")


def _hosts(baseline: Mapping[str, Any], figures: Figures) -> Table:
    columns = ("", "loading", "prompt", "reply", "training", "samples", "in the first epoch", "memory", "spread")
    return Table(columns=columns, rows=[_host(name, host, figures) for name, host in baseline["hosts"].items()])


def _host(name: str, host: Mapping[str, Any], figures: Figures) -> list[Markup]:
    own = f"hosts/{escape_key(name)}/"

    def show(key: str, form: str | Callable[[Any], str]) -> Markup:
        return figures.show(own + key, form) if figures.has(own + key) else join("–")

    return [
        join(name, " (", figures.count(own + "ranks", "rank"), ", ", figures.count(own + "threads", "thread"), ")"),
        show("inference/load_s", "{:.1f} s"),
        show("inference/prompt_tokens_per_s/median", "{:,.1f} tok/s"),
        show("inference/generation_tokens_per_s/median", "{:,.1f} tok/s"),
        show("training/tokens_per_s", "{:,.0f} tok/s"),
        show("training/samples_per_s", "{:,.2f} /s"),
        show("training/first_epoch_samples_per_s", "{:,.2f} /s"),
        show("training/peak_memory_mib", "{:,.0f} MiB"),
        join(show("noise/spread", "{:.0%}"), " noisy" if host["noise"]["is_noisy"] else ""),
    ]


def _all_reduces(baseline: Mapping[str, Any], figures: Figures) -> Table:
    payload = baseline["job"]["payload_bytes"]
    rows = []
    for number, each in enumerate(baseline["all_reduce"]):
        for position, size in enumerate(each["sweep"]):
            if size["bytes"] == payload:
                key = f"all_reduce/{number}/sweep/{position}/seconds"
                low, high = (figures.show(f"{key}/{end}", _ms) for end in ("low", "high"))
                names = (", ".join(each["hosts"]), each["network"] or "this machine", each["backend"])
                rows.append([*map(join, names), figures.show(f"{key}/median", _ms), join(low, " to ", high)])
    return Table(columns=("", "network", "backend", "time", "quartiles"), rows=rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _predictions(baseline: Mapping[str, Any], figures: Figures) -> Table:
    rows = []
    for number, entry in enumerate(baseline["prediction"]):
        if entry["scaling"] == "strong":
            key = f"prediction/{number}"
            route = f"{entry['network']} with {entry['backend']}" if entry["network"] else "alone"
            rows.append(
                [
                    join("assumed: " if entry["is_assumed"] else "", route),
                    figures.show(f"{key}/num_hosts", "{}"),
                    figures.show(f"{key}/step_s", "{:,.2f} s"),
                    figures.show(f"{key}/comm_s", "{:,.2f} s"),
                    figures.show(f"{key}/wait_s", "{:,.2f} s"),
                    figures.show(f"{key}/speedup", "{:.2f}×"),
                    figures.show(f"{key}/efficiency", "{:.0%}"),
                    figures.show(f"{key}/run_s", duration),
                ]
            )
    columns = ("", "hosts", "step", "all-reduce", "waiting", "speed-up", "efficiency", "run")
    return Table(columns=columns, rows=rows)


def _facts(baseline: Mapping[str, Any], figures: Figures) -> Iterator[tuple[str, Markup]]:
    yield "recipe", join(baseline.get("recipe", "unknown"))
    yield "inventory", join(baseline.get("inventory", "unknown"))
    yield "base model", join((baseline["config"].get("model") or {}).get("source", "unknown"))
    yield "steps", figures.show("job/steps", "{:,}")
    yield "samples", join(figures.show("job/rows", "{:,}"), ", in batches of ", figures.show("job/global_batch", "{:,}"))
    yield "reduced in each step", figures.show("job/payload_bytes", lambda size: f"{size / _MIB:,.1f} MiB")
    yield "measured", join("quickly" if baseline.get("quick") else "in full")


def _software(hosts: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions that the hosts run; where they differ, each of them."""
    found: dict[str, dict[str, None]] = {}
    for host in hosts.values():
        for name, version in (host.get("software") or {}).items():
            found.setdefault(str(name), {})[str(version)] = None
    return {name: ", ".join(versions) for name, versions in found.items()}
