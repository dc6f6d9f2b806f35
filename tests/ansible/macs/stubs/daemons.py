"""launchctl, and what a boot does: LaunchDaemons are really run, so that what they set is set."""

from __future__ import annotations

import os
import plistlib
import stat
import subprocess
from pathlib import Path

from .mac import Mac, State, refuse, say
from .network import carry_over, start_network

SSH = "com.openssh.sshd"
FOLDERS = ("/System/Library/LaunchDaemons", "/Library/LaunchDaemons")
PATIENCE_S = 30


def launchctl(mac: Mac, args: list[str]) -> None:
    """Load, unload, run and show LaunchDaemons of the system domain."""
    verb, rest = (args[0], args[1:]) if args else ("help", [])
    if verb in ("print", "print-disabled", "list"):
        _show(mac.state, verb, rest)
        return
    if verb not in VERBS:
        refuse(1, f"Unrecognized subcommand: {verb}")
    if not mac.is_root:
        refuse(*DENIED.get(verb, (1, "Operation not permitted")))
    VERBS[verb](mac, rest)


def boot(mac: Mac, args: list[str]) -> None:
    """Start anew: what is in the preferences holds, what was set for the moment is gone, daemons run."""
    with mac.change() as state:
        state["sysctl"].update(state["sysctl_at_boot"])
        state["launchd"]["loaded"] = {}
        start_network(state)
        carry_over(mac, state)
    for folder in FOLDERS:
        for plist in sorted(mac.path(folder).glob("*.plist")):
            path = f"{folder}/{plist.name}"
            if not _faults(mac, path) and not mac.state["launchd"]["disabled"].get(_read(mac, path)["Label"]):
                _load(mac, path)


def load_plist(mac: Mac, state: State, path: str) -> dict:
    """Note a daemon as loaded; returns its property list."""
    job = _read(mac, path)
    state["launchd"]["loaded"][job["Label"]] = {"path": path, "runs": 0, "status": None}
    return job


def unload(state: State, label: str) -> None:
    """Forget a loaded daemon."""
    state["launchd"]["loaded"].pop(label, None)


def _read(mac: Mac, path: str) -> dict:
    with mac.path(path).open("rb") as file:
        job: dict = plistlib.load(file)
    return job


def _faults(mac: Mac, path: str) -> str:
    """Return why launchd would not take a property list; empty if it would."""
    file = mac.path(path)
    if not file.is_file():
        return "5: Input/output error"
    status = file.stat()
    owner_is_fine = status.st_uid == 0 or bool(mac.root)
    if not owner_is_fine or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "122: Path had bad ownership/permissions"
    try:
        job = _read(mac, path)
    except (plistlib.InvalidFileException, ValueError, OSError):
        return "5: Input/output error"
    return "" if job.get("Label") and (job.get("ProgramArguments") or job.get("Program")) else "5: Input/output error"


def _bootstrap(mac: Mac, rest: list[str]) -> None:
    if len(rest) < 2 or rest[0] != "system":
        refuse(64, "Usage: launchctl bootstrap <domain-target> [service-path, service-path2, ...]")
    for path in rest[1:]:
        fault = _faults(mac, path)
        if not fault:
            label, launchd = _read(mac, path)["Label"], mac.state["launchd"]
            if launchd["disabled"].get(label):
                fault = "119: Service is disabled"
            elif label in launchd["loaded"]:
                fault = "5: Input/output error"
        if fault:
            mac.note(changed=False)
            refuse(int(fault.split(":")[0]), f"Bootstrap failed: {fault}")
        _load(mac, path)


def _load(mac: Mac, path: str) -> None:
    """Load, and run once outside the lock: the program may be one of the stubs."""
    with mac.change() as state:
        job = load_plist(mac, state, path)
    if job.get("RunAtLoad") or job.get("KeepAlive"):
        _run(mac, job)


def _run(mac: Mac, job: dict) -> None:
    argv = list(job.get("ProgramArguments") or [job["Program"]])
    program = str(mac.path(argv[0]))
    argv[0] = program if mac.root and Path(program).exists() else argv[0]
    path = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    own = {key: value for key, value in os.environ.items() if key.startswith("FLOTILLA_MAC")}
    try:
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        status = subprocess.run(argv, env=path | own, timeout=PATIENCE_S, check=False, **silent).returncode
    except (OSError, subprocess.TimeoutExpired):
        status = 78
    with mac.change() as state:
        entry = state["launchd"]["loaded"].get(job["Label"])
        if entry:
            entry.update(runs=entry["runs"] + 1, status=status)


def _bootout(mac: Mac, rest: list[str]) -> None:
    words = rest[1:] if rest[:1] == ["system"] else rest
    with mac.change() as state:
        for word in words:
            label = _label(state, word)
            if label is None:
                refuse(3, "Boot-out failed: 3: No such process")
            unload(state, label)


def _label(state: State, word: str) -> str | None:
    """Return the loaded label that a service target or a path means."""
    loaded = state["launchd"]["loaded"]
    name = word.removeprefix("system/")
    return next((label for label, entry in loaded.items() if label == name or entry["path"] == word), None)


def _switch(mac: Mac, rest: list[str], is_off: bool) -> None:
    if len(rest) != 1 or not rest[0].startswith("system/"):
        refuse(64, "Usage: launchctl enable | disable <service-target>")
    with mac.change() as state:
        state["launchd"]["disabled"][rest[0].removeprefix("system/")] = is_off


def _kickstart(mac: Mac, rest: list[str]) -> None:
    words = [word for word in rest if not word.startswith("-")]
    entry = mac.state["launchd"]["loaded"].get(words[-1].removeprefix("system/")) if words else None
    if entry is None:
        refuse(113, f'Could not find service "{words[-1].removeprefix("system/") if words else ""}" in domain for system')
    _run(mac, _read(mac, entry["path"]))


def _load_as_of_old(mac: Mac, rest: list[str]) -> None:
    for path in [word for word in rest if not word.startswith("-")]:
        if _faults(mac, path):
            refuse(0, f"Load failed: {_faults(mac, path)}")
        with mac.change() as state:
            label = _read(mac, path)["Label"]
            if "-w" in rest:
                state["launchd"]["disabled"][label] = False
        if label not in mac.state["launchd"]["loaded"]:
            _load(mac, path)


def _unload_as_of_old(mac: Mac, rest: list[str]) -> None:
    with mac.change() as state:
        for path in [word for word in rest if not word.startswith("-")]:
            label = _label(state, path)
            if label is None:
                refuse(0, "Unload failed: 5: Input/output error")
            unload(state, label)
            if "-w" in rest:
                state["launchd"]["disabled"][label] = True


def _show(state: State, verb: str, rest: list[str]) -> None:
    launchd = state["launchd"]
    if verb == "print-disabled":
        rows = "".join(f'\t\t"{label}" => {"disabled" if off else "enabled"}\n' for label, off in launchd["disabled"].items())
        say(f"\n\tdisabled services = {{\n{rows}\t}}")
        return
    if not rest:
        say("PID\tStatus\tLabel")
        for label, entry in launchd["loaded"].items():
            say(f"-\t{entry['status'] or 0}\t{label}")
        return
    label = rest[0].removeprefix("system/")
    entry = launchd["loaded"].get(label)
    if entry is None:
        refuse(113, f'Could not find service "{label}" in domain for system')
    if verb == "list":
        say(f'{{\n\t"LimitLoadToSessionType" = "System";\n\t"Label" = "{label}";')
        say(f'\t"LastExitStatus" = {entry["status"] or 0};\n}};')
        return
    code = "(never exited)" if entry["status"] is None else entry["status"]
    lines = ["active count = 0", f"path = {entry['path']}", "type = LaunchDaemon", "state = not running", ""]
    lines += [f"runs = {entry['runs']}", f"last exit code = {code}"]
    say(f"system/{label} = {{\n" + "".join(f"\t{line}\n" if line else "\n" for line in lines) + "}")


DENIED = {
    "bootstrap": (5, "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors."),
    "bootout": (5, "Boot-out failed: 5: Input/output error\nTry re-running the command as root for richer errors."),
}
VERBS = {
    "bootstrap": _bootstrap,
    "bootout": _bootout,
    "enable": lambda mac, rest: _switch(mac, rest, is_off=False),
    "disable": lambda mac, rest: _switch(mac, rest, is_off=True),
    "kickstart": _kickstart,
    "start": _kickstart,
    "load": _load_as_of_old,
    "unload": _unload_as_of_old,
}
