"""Judges of the machine itself: system, disk, memory, clock, processes. All pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from trainer.cluster.doctor.view import DARWIN, Fault, Quote, UnknownError, View, last_line

MIN_DISK_KIB = 1 << 20
MIN_MEMORY_KIB = 1 << 20
MIN_GLIBC = (2, 35)
MIN_MACOS = (14,)
CLOCK_TOLERANCE_S = 60.0


def judge_sudo(view: View) -> Fault | None:
    """Find a sudo that asks for a password."""
    output = view.output("sudo")
    return Fault(shown_by=("sudo",), detail=last_line(output.text)) if output.exit_code else None


def judge_disk(view: View) -> Fault | None:
    """Find a disk with less than 1 GiB left where our folder is."""
    fields = view.text("disk").strip().splitlines()[-1:]
    match = re.search(r"\s\d+\s+-?\d+\s+(-?\d+)\s+\d+%\s+(.*)", fields[0]) if fields else None
    if not match:
        raise UnknownError("df did not answer as it should")
    if (free := int(match[1])) < MIN_DISK_KIB:
        return Fault(shown_by=("disk",), detail=f"{free // 1024} MiB free on {match[2]}")
    return None


def judge_tmp(view: View) -> Fault | None:
    """Find a /tmp where nothing can be written, for another reason than a full disk."""
    output = view.output("tmp")
    return (
        Fault(shown_by=("tmp",), detail=last_line(output.text))
        if output.exit_code and "No space left" not in output.text
        else None
    )


def judge_tmpdir(view: View) -> Fault | None:
    """Find a TMPDIR that is too long for the sockets in Open MPI's session folder."""
    path = view.text("tmpdir").strip()
    return Fault(shown_by=("tmpdir",), detail=f"TMPDIR has {len(path)} characters") if len(path) > 40 else None


def judge_memory(view: View) -> Fault | None:
    """Find a host with hardly any memory left (Linux), or with less than any model needs (a Mac)."""
    text = view.text("memory")
    if view.system == DARWIN:
        match = re.search(r"hw\.memsize:\s*(\d+)", text)
        free = int(match[1]) // 1024 if match else None
        limit = 8 * MIN_MEMORY_KIB - 1
    else:
        match = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
        free, limit = (int(match[1]) if match else None), MIN_MEMORY_KIB
    if free is None:
        raise UnknownError("the memory's size is not told")
    what = "memory" if view.system == DARWIN else "memory left"
    return Fault(shown_by=("memory",), detail=f"{free // 1024} MiB of {what}") if free < limit else None


def judge_age(view: View) -> Fault | None:
    """Find a system that is older than MLX's builds: glibc on Linux, macOS on a Mac."""
    key, pattern, oldest = (
        ("macos", r"ProductVersion:\s*(\d+(?:\.\d+)*)", MIN_MACOS)
        if view.system == DARWIN
        else ("glibc", r"^glibc (\d+\.\d+)", MIN_GLIBC)
    )
    match = re.search(pattern, view.text(key))
    if not match:
        raise UnknownError("its version is not told")
    version = tuple(int(part) for part in match[1].split("."))
    name = "macOS" if view.system == DARWIN else "glibc"
    floor = ".".join(map(str, oldest))
    return Fault(shown_by=(key,), detail=f"{name} {match[1]} is older than {floor}") if version < oldest else None


def judge_clock(view: View) -> Fault | None:
    """Find a clock that is more than a minute off those of the other hosts, this machine's included."""
    offset, others = _clock_offset(view), []
    for other in view.others():
        with suppress(UnknownError):
            others.append(_clock_offset(other))
    offsets = sorted([0.0, *others, offset])
    distance = offset - offsets[(len(offsets) - 1) // 2]
    if abs(distance) <= CLOCK_TOLERANCE_S:
        return None
    set_clock = "sudo sntp -sS time.apple.com" if view.system == DARWIN else "sudo timedatectl set-ntp true"
    detail = f"{abs(distance):.0f} s {'ahead of' if distance > 0 else 'behind'} the others"
    return Fault(shown_by=("clock",), detail=detail, values={"set_clock": set_clock})


def _clock_offset(view: View) -> float:
    """Return how far a host's clock is ahead of ours: 0 for any time between the probe's beginning and its end."""
    match = re.fullmatch(r"(\d{1,15})", view.text("clock").strip())
    if not match:
        raise UnknownError("`date +%s` printed no number")
    told = float(match[1])
    return min(0.0, told + 1 - view.answers.began_at) or max(0.0, told - view.answers.ended_at)


def judge_orphans(view: View) -> Fault | None:
    """Find processes of a run that no mpirun belongs to any more, on any host."""
    alive = {run for each in view.fleet.values() for run in _list_runs(each, only_led=True)}
    orphans = {run: pids for run, pids in _list_runs(view).items() if run not in alive}
    if not orphans:
        return None
    pids = [pid for found in orphans.values() for pid in found]
    detail = f"{len(pids)} of {', '.join(sorted(orphans))}"
    return Fault(quotes=(_show_processes(view, pids),), detail=detail, values={"pids": " ".join(pids)})


def judge_busy(view: View) -> Fault | None:
    """Find a run that is going on."""
    alive = {run for each in view.fleet.values() for run in _list_runs(each, only_led=True)}
    found = _list_runs(view)
    here = sorted(alive & set(found))
    pids = [pid for run in here for pid in found[run]]
    return Fault(quotes=(_show_processes(view, pids),), detail=", ".join(here)) if here else None


def _show_processes(view: View, pids: Sequence[str]) -> Quote:
    lines = view.text("processes").splitlines()
    return view.quote("processes", *(line for line in lines if line.split(None, 1)[:1] and line.split(None, 1)[0] in pids))


def _list_runs(view: View, only_led: bool = False) -> dict[str, list[str]]:
    """Return run name to the processes that mention its folder; ``only_led``: those of an mpirun that somebody waits for."""
    found: dict[str, list[str]] = {}
    if "processes" not in view.answers.outputs:
        return found
    rows = [line.split(None, 2) for line in view.text("processes").splitlines()]
    caretakers = {"1", *(row[0] for row in rows if len(row) == 3 and "systemd --user" in row[2])}
    for pid, parent, command in (row for row in rows if len(row) == 3):
        match = re.search(rf"{re.escape(str(view.cluster.root))}/runs/([\w.+-]+)", command)
        is_rank = match and re.search(r"-m trainer|mpirun|prte", command)
        is_led = re.match(r"\S*/(mpirun|prterun)\b", command) and parent not in caretakers
        if match and is_rank and pid.isdigit() and (is_led or not only_led):
            found.setdefault(match[1], []).append(pid)
    return found


def judge_kind(view: View) -> Fault | None:
    """Find a host with another kind of processor than most."""
    own = _read_machine(view)
    if not own:
        raise UnknownError("`uname -m` did not tell the machine")
    usual = Counter(filter(None, map(_read_machine, view.fleet.values()))).most_common(1)[0][0]  # of equally many, the head's
    return Fault(shown_by=("machine",), detail=f"{own}, not {usual}") if own != usual else None


def _read_machine(view: View) -> str:
    output = view.answers.outputs.get("machine")
    match = re.fullmatch(r"\w{1,32}", output.text.strip()) if output and output.exit_code == 0 else None
    return match[0] if match else ""
