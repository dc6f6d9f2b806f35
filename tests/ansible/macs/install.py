"""Putting a simulated Mac into the upper folder of a laboratory's host, or into any empty folder for a test of the stubs."""

from __future__ import annotations

import atexit
import functools
import json
import os
import plistlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.ansible.macs.models import MacState
from tests.ansible.macs.stubs.brew import FILES, PREFIX, stock
from tests.ansible.macs.stubs.developer import LINK, TOOLS, install_tools
from tests.ansible.macs.stubs.mac import CALLS, STATE, Mac
from tests.ansible.macs.stubs.main import COMMANDS
from tests.ansible.macs.stubs.preferences import NETWORK, write_network

HERE = Path(__file__).parent
LIBRARY = "/usr/local/lib/flotilla-mac"
LAUNCHER = f"""\
#!/usr/bin/python3 -IBS
import os
import sys

sys.path.insert(0, os.environ.get("FLOTILLA_MAC_ROOT", "") + "{LIBRARY}")
from stubs.main import main

sys.exit(main(sys.argv))
"""
RC_LOCAL = f"#!/bin/sh\n{LIBRARY}/boot\n"
SSH_PLIST = {"Label": "com.openssh.sshd", "ProgramArguments": ["/usr/libexec/sshd-keygen-wrapper"]}
RDMA_TOOLS = ("/usr/bin/ibv_devices", "/usr/bin/ibv_devinfo", "/usr/bin/rdma_ctl")
BREW_FOLDERS = ("bin", "etc", "include", "lib", "sbin", "share", "var", "opt", "Cellar", "var/homebrew/linked")


def hook(states: Sequence[MacState]) -> Callable[[Path, Any], None]:
    """Return what `Laboratory.up` takes as ``mac``: every host becomes the state of its name."""
    by_name = {state.name: state for state in states}
    return lambda upper, host: install(upper, by_name[host.name])


def install(upper: Path, state: MacState) -> None:
    """Write stubs, state and what this Mac has installed into ``upper``, which is the root of a host or lies over one.

    Homebrew belongs to the host's own user, the one with a home in ``upper``. The stubs are at the real commands' paths.
    """
    _copy_library(upper)
    for path in COMMANDS:
        if path != f"{PREFIX}/bin/brew" and not (path in RDMA_TOOLS and not _has_rdma(state)):
            _write(upper, path, LAUNCHER, 0o755)
    _write(upper, "/etc/rc.local", RC_LOCAL, 0o755)
    _write(upper, STATE, json.dumps(state.data, indent=1), 0o644)
    _write(upper, CALLS, "", 0o666)
    _write(upper, "/System/Library/LaunchDaemons/ssh.plist", plistlib.dumps(SSH_PLIST).decode(), 0o644)
    for folder in ("/Library/LaunchDaemons", "/Library/Developer", "/Users/Shared", str(Path(NETWORK).parent)):
        _place(upper, folder).mkdir(parents=True, exist_ok=True)
    _place(upper, "/Users/Shared").chmod(0o1777)
    mac = _InFolder(upper)
    write_network(mac, state.data)
    if state.tools:
        install_tools(mac)
        _place(upper, LINK).symlink_to(TOOLS)
    if state.brew is not None:
        _install_brew(upper, mac, state.brew)


def read_state(root: Path) -> dict[str, Any]:
    """Return the state as the stubs have it now, of a host's root."""
    content: dict[str, Any] = json.loads(_place(root, STATE).read_text())
    return content


def read_calls(root: Path) -> list[dict[str, Any]]:
    """Return every call that was meant to change something, in order: ``argv``, ``uid``, ``changed``."""
    return [json.loads(line) for line in _place(root, CALLS).read_text().splitlines()]


def program(root: Path, command: str) -> Path:
    """Return where a stub lies in a folder, whose /sbin may be /usr/sbin as on this machine."""
    return _place(root, command)


class _InFolder(Mac):
    """A Mac that does not run yet."""

    def __init__(self, upper: Path) -> None:
        super().__init__(["install"])
        self.root, self.uid = str(upper), 0

    def note(self, changed: bool = True) -> None:
        """Note nothing: this is how the Mac was."""


def _has_rdma(state: MacState) -> bool:
    return tuple(map(int, state.data["macos"]["version"].split("."))) >= (26, 2)


def _place(root: Path, path: str) -> Path:
    """Return the path below ``root``, with the links of this machine's root followed (/sbin is /usr/sbin)."""
    top, _, rest = path.lstrip("/").partition("/")
    real = Path(f"/{top}").resolve() if Path(f"/{top}").is_symlink() else Path(f"/{top}")
    return root / real.relative_to("/") / rest


def _write(root: Path, path: str, text: str, mode: int) -> None:
    place = _place(root, path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


def _copy_library(upper: Path) -> None:
    library = _place(upper, LIBRARY)
    shutil.copytree(_compile_stubs(), library / "stubs")
    share = _place(upper, FILES)
    shutil.copytree(HERE / "files", share)
    (share / "brew-install.sh").rename(share / "install.sh")
    _write(upper, f"{FILES}/brew", LAUNCHER, 0o755)


@functools.cache
def _compile_stubs() -> Path:
    """Return a folder of the stubs compiled for the hosts' Python: otherwise every call compiles them."""
    folder = Path(tempfile.mkdtemp(prefix="flotilla-stubs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(HERE / "stubs", folder / "stubs", ignore=shutil.ignore_patterns("__pycache__"))
    compiling = ["/usr/bin/python3", "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(folder)]
    subprocess.run(compiling, check=True)
    return folder / "stubs"


def _install_brew(upper: Path, mac: Mac, names: Sequence[str]) -> None:
    for folder in BREW_FOLDERS:
        _place(upper, f"{PREFIX}/{folder}").mkdir(parents=True, exist_ok=True)
    shutil.copy(_place(upper, f"{FILES}/brew"), _place(upper, f"{PREFIX}/bin/brew"))
    stock(mac, list(names))
    owner = _find_user(upper)
    for place in [_place(upper, PREFIX), *_place(upper, PREFIX).rglob("*")] if owner else []:
        os.chown(place, *owner, follow_symlinks=False)


def _find_user(upper: Path) -> tuple[int, int] | None:
    """Return user and group of the first ordinary user that the host has."""
    passwd = upper / "etc" / "passwd"
    for line in passwd.read_text().splitlines() if passwd.exists() else []:
        name, _, uid, gid, *_ = line.split(":")
        if 1000 < int(uid) < 60000 and (upper / "home" / name).is_dir():
            return int(uid), int(gid)
    return None
