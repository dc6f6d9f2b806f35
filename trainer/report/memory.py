"""The memory plan as a table: for each host what its ranks will take, and what it has."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from trainer.measure.fit import HostFit, MemoryPlan
from trainer.measure.memory import MIB

_PARTS = ("weights", "adapters", "optimizer", "activations", "caches", "process")


def render_memory(plan: MemoryPlan) -> Table:
    """Return the table that is shown before a launch, in MiB; a host's figures are those of all its ranks together."""
    table = Table(title="memory, MiB", title_justify="left", title_style="bold")
    for number, column in enumerate(("host", *_PARTS, "peak", "has")):
        table.add_column(column, justify="right" if number else "left")
    for host in plan.hosts:
        parts = [f"{host.ranks * getattr(host.each, part) / MIB:,.0f}" for part in _PARTS]
        peak = Text(f"{host.need_bytes / MIB:,.0f}", style="" if host.fits else "bold red")
        table.add_row(f"{host.name} ({host.ranks} × {host.each.phase})", *parts, peak, _room(host))
    return table


def _room(host: HostFit) -> str:
    return f"{host.room_bytes / MIB:,.0f} {host.what}" if host.room_bytes else "not told"
