"""A configuration as a page shows it: every setting, and which of them is not the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from trainer.config import RunConfig

Setting = tuple[str, str, bool]  # key, value, whether it is not the default


def compare_config(config: Mapping[str, Any]) -> list[tuple[str, Sequence[Setting]]]:
    """Return the settings of a configuration by section."""
    defaults = RunConfig().as_dict()
    return [
        (section, [(key, _plain(value), value != defaults.get(section, {}).get(key)) for key, value in table.items()])
        for section, table in config.items()
        if isinstance(table, dict)
    ]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "none"


def moment(seconds: float) -> str:
    """Return a point in time for people: "25 November 2026, 10:05"."""
    at = datetime.fromtimestamp(seconds).astimezone()
    return f"{at.day} {at:%B %Y, %H:%M}"
