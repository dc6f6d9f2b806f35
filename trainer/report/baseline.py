"""What a person sees of a baseline in the terminal: hosts, links, what more hosts would bring, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainer.measure.compare import Change
from trainer.measure.figures import Stat, median_of
from trainer.measure.rehearsal import Rehearsed
from trainer.measure.verdict import duration

_MIB = 1024 * 1024
_SHOWN, _SHOWN_ASSUMED = (1, 2, 3, 4, 8), (2, 4)  # numbers of hosts


def render_baseline(baseline: Mapping[str, Any]) -> Group:
    """Return everything that `./inv baseline` prints."""
    return Group(*_parts(baseline))


def _parts(baseline: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _hosts(baseline["hosts"])
    for name, host in baseline["hosts"].items():
        if trunk := describe_trunk(host["training"]):
            yield Text(f"{name}: {trunk}", style="dim")
    if baseline["links"]:
        yield _links(baseline["links"])
    if baseline["all_reduce"]:
        yield _all_reduces(baseline)
    yield _predictions(baseline["prediction"])
    yield Text(baseline["verdict"]["headline"], style="bold")
    for reason in baseline["verdict"]["reasons"]:
        yield Text(f"- {reason}")


def describe_trunk(training: Mapping[str, Any]) -> str:
    """Return a sentence on the frozen layers whose output is kept; empty where it is not."""
    trunk = training["trunk"]
    if "token_s" not in trunk:
        return ""
    return (
        f"{trunk['layers']} frozen layers take {trunk['token_s'] * 1e3:.1f} ms a token, once for each sample; "
        f"the first epoch runs at {training['first_epoch_samples_per_s']:.2f} samples/s, the others as above"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _hosts(hosts: Mapping[str, Any]) -> Table:
    table = _table(
        "hosts", "", "load", "prompt tok/s", "generation tok/s", "memory", "training samples/s", "tok/s", "memory", "spread"
    )
    for name, host in hosts.items():
        inference, training = host["inference"], host["training"]
        table.add_row(
            f"{name} ({host['ranks']} x {host['threads']} threads)",
            f"{inference['load_s']:.1f} s",
            show(inference["prompt_tokens_per_s"]),
            show(inference["generation_tokens_per_s"]),
            f"{inference['peak_memory_mib']:.0f} MiB",
            f"{training['samples_per_s']:.2f}",
            f"{training['tokens_per_s']:.0f}",
            f"{training['peak_memory_mib']:.0f} MiB",
            f"{host['noise']['spread']:.0%}{' noisy' if host['noise']['is_noisy'] else ''}",
        )
    return table


def _links(links: list[dict[str, Any]]) -> Table:
    table = _table("links", "", "network", "latency", "up", "down", "carried by")
    for link in links:
        name = f"{link['hosts'][0]} - {link['hosts'][1]}"
        if link["problem"]:
            table.add_row(name, link["network"], link["problem"])
            continue
        table.add_row(
            name,
            link["network"] + (" (fast)" if link["is_fast"] else ""),
            f"{median_of(link['latency_s']) * 1e6:.0f} µs",
            show_rate(median_of(link["up_bytes_per_s"])),
            show_rate(median_of(link["down_bytes_per_s"])),
            ", ".join(dict.fromkeys(link["carried_by"].values())),
        )
    return table


def _all_reduces(baseline: Mapping[str, Any]) -> Table:
    payload = baseline["job"]["payload_bytes"]
    table = _table(f"all-reduce of one step's {payload / _MIB:.1f} MiB", "", "network", "backend", "time", "quartiles")
    for each in baseline["all_reduce"]:
        stat = next(size["seconds"] for size in each["sweep"] if size["bytes"] == payload)
        quartiles = f"{stat['low'] * 1e3:.1f} to {stat['high'] * 1e3:.1f} ms"
        network = each["network"] or "this machine"
        table.add_row(" ".join(each["hosts"]), network, each["backend"], f"{stat['median'] * 1e3:.1f} ms", quartiles)
    return table


def _predictions(entries: list[dict[str, Any]]) -> Table:
    table = _table(
        "prediction, the same global batch", "", "hosts", "step", "waiting", "communication", "times as fast", "each", "run"
    )
    for entry in entries:
        shown = _SHOWN_ASSUMED if entry["is_assumed"] else _SHOWN
        if entry["scaling"] == "strong" and entry["num_hosts"] in shown:
            assumed = " (assumed)" if entry["is_assumed"] else ""
            table.add_row(
                f"{entry['network']} {entry['backend']}{assumed}" if entry["network"] else "alone",
                str(entry["num_hosts"]),
                f"{entry['step_s']:.2f} s",
                f"{entry['wait_s'] / entry['step_s']:.0%}",
                f"{entry['comm_s'] / entry['step_s']:.0%}",
                f"{entry['speedup']:.2f}",
                f"{entry['efficiency']:.0%}",
                duration(entry["run_s"]),
            )
    return table


def render_changes(changes: list[Change]) -> Table:
    """Return the table of two baselines, what certainly got slower first."""
    table = _table("before and after; speed above 1 is faster", "", "before", "after", "speed", "")
    for change in sorted(changes, key=lambda change: (not change.is_certain, change.ratio)):
        word = ("slower" if change.ratio < 1 else "faster") if change.is_certain else "within the noise"
        table.add_row(change.what, f"{change.before:.4g}", f"{change.after:.4g}", f"{change.ratio:.2f}", word)
    return table


def render_rehearsals(rehearsed: list[Rehearsed]) -> Table:
    """Return the table of rehearsals next to their predictions."""
    table = _table("rehearsal", "hosts", "backend", "step", "predicted", "off by", "communication", "predicted")
    for each in rehearsed:
        table.add_row(
            str(each.num_hosts),
            each.backend,
            f"{each.step_s:.3f} s",
            f"{each.predicted_step_s:.3f} s",
            f"{each.error:+.1%}",
            f"{each.comm_s * 1e3:.1f} ms",
            f"{each.predicted_comm_s * 1e3:.1f} ms",
        )
    return table


def show(stat: Stat) -> str:
    """Return a median with its quartiles: "12.1 (11.9 to 12.2)"."""
    return f"{stat['median']:.1f} ({stat['low']:.1f} to {stat['high']:.1f})"


def show_rate(bytes_per_s: float) -> str:
    """Return a bandwidth in bits per second, as links are sold."""
    bits = bytes_per_s * 8
    return f"{bits / 1e9:.1f} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.0f} Mbit/s"
