"""From a Mac's power settings to the commands that bring them to what is wanted, or back to what they were.

Settings are kept apart for mains and battery, as macOS keeps them, so that teardown gives each back its own value.
Pure functions: a Mac that needs nothing gets an empty list of steps, and check mode knows what a run would do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

PMSET = "/usr/bin/pmset"
SYSCTL = "/usr/sbin/sysctl"
FLAGS = {"AC Power": "-c", "Battery Power": "-b", "UPS Power": "-u"}
Table = dict[str, Any]


def read_power(custom: str, live: str, wired_limit: str) -> Table:
    """Return a Mac's state of ``pmset -g custom``, ``pmset -g`` and ``sysctl -n iogpu.wired_limit_mb`` in MiB."""
    profiles: dict[str, dict[str, int]] = {}
    for line in custom.splitlines():
        if title := re.match(r"^(\S.*):\s*$", line):
            settings = profiles.setdefault(title[1], {})
        elif (pair := re.match(r"^\s+(\S.*?)\s+(\d+)(\s|$)", line)) and profiles:
            settings[pair[1]] = int(pair[2])
    disabled = re.search(r"^\s*SleepDisabled\s+(\d+)", live, re.MULTILINE)
    return {
        "profiles": profiles,
        "sleep_disabled": int(disabled[1]) if disabled else 0,
        "wired_limit_mb": int(wired_limit.strip() or 0),
    }


def find_steps(now: Mapping[str, Any], settings: Mapping[str, int], lid_awake: bool, wired_limit_mb: int) -> list[Table]:
    """Return the commands that lead from ``now`` to ``settings``; a setting that this Mac does not have is left out.

    ``lid_awake`` counts for laptops only. ``wired_limit_mb`` in MiB; 0 leaves the limit as it is.
    """
    wanted = {title: {key: settings[key] for key in settings if key in profile} for title, profile in now["profiles"].items()}
    keeps_awake = int(lid_awake and "Battery Power" in now["profiles"]) or now["sleep_disabled"]
    return _lead(now, wanted, keeps_awake, wired_limit_mb or now["wired_limit_mb"])


def find_steps_back(now: Mapping[str, Any], before: Mapping[str, Any], keys: Iterable[str]) -> list[Table]:
    """Return the commands that give the settings named in ``keys``, and the limit, the values that they had ``before``."""
    names = set(keys)
    wanted = {
        title: {key: value for key, value in profile.items() if key in names} for title, profile in before["profiles"].items()
    }
    return _lead(now, wanted, before["sleep_disabled"], before["wired_limit_mb"])


def _lead(now: Mapping[str, Any], wanted: Mapping[str, Mapping[str, int]], sleep_disabled: int, limit_mb: int) -> list[Table]:
    steps = []
    for title, settings in wanted.items():
        current = now["profiles"].get(title, {})
        for key, value in settings.items():
            if title in FLAGS and current.get(key, int(value)) != int(value):
                what = f"{title}: {key} {current[key]} -> {value}"
                steps.append({"what": what, "argv": [PMSET, FLAGS[title], key, str(value)]})
    if now["sleep_disabled"] != sleep_disabled:
        what = f"SleepDisabled {now['sleep_disabled']} -> {sleep_disabled}"
        steps.append({"what": what, "argv": [PMSET, "-a", "disablesleep", str(sleep_disabled)]})
    if now["wired_limit_mb"] != limit_mb:
        what = f"iogpu.wired_limit_mb {now['wired_limit_mb']} -> {limit_mb}"
        steps.append({"what": what, "argv": [SYSCTL, f"iogpu.wired_limit_mb={limit_mb}"]})
    return steps


class FilterModule:
    """Filters of the role."""

    def filters(self) -> Table:
        """Return the filters by name."""
        return {"power_read": read_power, "power_steps": find_steps, "power_steps_back": find_steps_back}
