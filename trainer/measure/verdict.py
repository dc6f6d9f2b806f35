"""Is it worth it? The questions that decide, answered from a baseline's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

SHORT_S = 600.0  # a run below this is over before several machines have been made one
GAIN = 1.15  # less is within what measurements differ
SETUP_S = 3600.0  # provisioning and cabling, once
_MEMORY_SHARE = 0.75  # of a host's memory, which a run may take (macOS's own limit for the GPU)

Entry = Mapping[str, Any]


def judge(baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"headline", "reasons", "choice"}``; choice is "alone", "together", or "not" at all."""
    entries = [entry for entry in baseline["prediction"] if entry["scaling"] == "strong"]
    alone = next((entry for entry in entries if entry["num_hosts"] == 1), None)
    if alone is None:
        return {"choice": "not", "headline": "Nothing could be measured.", "reasons": [*baseline["problems"]]}
    if crowded := _find_crowded(baseline):
        headline = "Not on these machines: the run does not fit in memory."
        return {"choice": "not", "headline": headline, "reasons": [*crowded, "Take a smaller model, or shorter samples."]}
    owned = [entry for entry in entries if entry["num_hosts"] <= len(baseline["hosts"]) and not entry["is_assumed"]]
    best = max(owned, key=lambda entry: entry["speedup"])
    reasons = [*_tell_routes(owned), *_tell_more(entries, len(baseline["hosts"]), best), *baseline["problems"]]
    choice, headline = _decide(alone, best, owned)
    return {"choice": choice, "headline": headline, "reasons": [_tell_time(alone, best), *reasons]}


def _decide(alone: Entry, best: Entry, owned: Sequence[Entry]) -> tuple[str, str]:
    name, takes = alone["hosts"][0], duration(alone["run_s"])
    others = [entry for entry in owned if entry["num_hosts"] > 1]
    if not others:
        return "alone", f"Train on {name}: it is the only machine, and the run takes {takes}."
    if best["speedup"] < GAIN:
        likeliest = max(others, key=lambda entry: entry["speedup"])
        slower = likeliest["speedup"] < 1
        gain = "is slower" if slower else "brings next to nothing"
        share = f"{likeliest['comm_s'] / likeliest['step_s']:.0%} of it communication"
        why = f"{duration(likeliest['run_s'])} instead of {takes}, {share}"
        return "alone", f"Train on {name} alone: together {gain} ({why})."
    if alone["run_s"] < SHORT_S:
        return "alone", f"Train on {name} alone: the run takes {takes}, too little to be worth several machines."
    return "together", (
        f"Train together on {', '.join(best['hosts'])} over {best['network']} with {best['backend']}: "
        f"{duration(best['run_s'])} instead of {takes}, {best['speedup']:.2f} times as fast."
    )


def _tell_time(alone: Entry, best: Entry) -> str:
    """Does it take hours, and is it done often enough to be worth setting up?"""
    saved = alone["run_s"] - best["run_s"]
    hours = f"Does it take hours? {duration(alone['run_s'])} on {alone['hosts'][0]} alone."
    if best is alone or best["speedup"] < GAIN:
        return hours
    runs = SETUP_S / saved
    often = "the first run pays for it" if runs <= 1 else f"it pays from run {runs + 0.5:.0f} on"
    return f"{hours} Do you do it often? Each run saves {duration(saved)}; if setting up takes an hour, {often}."


def _tell_routes(owned: Sequence[Entry]) -> list[str]:
    """What each link and backend would bring with the machines that are there."""
    best: dict[tuple[str, str], Entry] = {}
    for entry in owned:
        key = (entry["network"], entry["backend"])
        if entry["num_hosts"] > 1 and (key not in best or entry["speedup"] > best[key]["speedup"]):
            best[key] = entry
    return [
        f"{network} with {backend}: {entry['speedup']:.2f} times one machine's speed with {entry['num_hosts']}, "
        f"{entry['comm_s'] / entry['step_s']:.0%} of a step is communication."
        for (network, backend), entry in best.items()
    ]


def _tell_more(entries: Sequence[Entry], num_owned: int, best: Entry) -> list[str]:
    """Do you have the machines? What more of them would bring on the best route."""
    route = [entry for entry in entries if entry["network"] == best["network"] and entry["backend"] == best["backend"]]
    more = [entry for entry in route if entry["num_hosts"] > num_owned]
    if not more or best["num_hosts"] == 1:
        return []
    top = max(more, key=lambda entry: entry["speedup"])
    if top["speedup"] < best["speedup"] * GAIN:
        return [f"Do you have the machines? Yes: more than {best['num_hosts']} like these would bring next to nothing."]
    return [f"Do you have the machines? {top['num_hosts']} like these would be {top['speedup']:.2f} times as fast as one."]


def _find_crowded(baseline: Mapping[str, Any]) -> list[str]:
    """Does it fit? The hosts whose memory the training used up."""
    found = []
    for name, host in baseline["hosts"].items():
        used = (host.get("training") or {}).get("peak_memory_mib", 0.0) * host["ranks"]
        total = (host.get("system") or {}).get("memory_mib") or 0.0
        if total and used > _MEMORY_SHARE * total:
            found.append(f"{name}: training takes {used:.0f} MiB of {total:.0f} MiB.")
    return found


def duration(seconds: float) -> str:
    """Return a span of time as people say it: "42 s", "7 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(int(whole.total_seconds()), 3600)
    return f"{hours} h {rest // 60:02d} min"
