"""brew. Its state is where Homebrew keeps it: in the Cellar, the links and the receipts below /opt/homebrew."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from .mac import Mac, refuse, say

VERSION = "6.0.18"
PREFIX = "/opt/homebrew"
FILES = "/usr/local/share/flotilla-mac"
ROOT_REFUSAL = """\
Error: Running Homebrew as root is extremely dangerous and no longer supported.
As Homebrew does not drop privileges on installation you would be giving all
build scripts full access to your system."""


def brew(mac: Mac, args: list[str]) -> int:
    """Do what brew would. Not as root, and nothing below a folder that is another's."""
    words = [word for word in args if not word.startswith("-")]
    flags = [word for word in args if word.startswith("-")]
    if args[:1] in (["--version"], ["-v"]):
        say(f"Homebrew {VERSION}")
        return 0
    if args[:1] == ["--prefix"]:
        say(PREFIX + "".join(f"/opt/{name}" for name in words[:1]))
        return 0
    if mac.is_root:
        refuse(1, ROOT_REFUSAL)
    if args[:1] == ["shellenv"]:
        say(f'export HOMEBREW_PREFIX="{PREFIX}";\nexport PATH="{PREFIX}/bin:{PREFIX}/sbin${{PATH+:$PATH}}";')
        return 0
    verb = words[0] if words else "help"
    house = House(mac)
    if verb not in VERBS:
        refuse(1, f"Error: Unknown command: brew {verb}")
    return int(VERBS[verb](house, words[1:], flags) or 0)


class House:
    """The formulae there are, and those that are installed."""

    def __init__(self, mac: Mac) -> None:
        self.mac = mac
        self.formulae: dict[str, dict] = mac.state["formulae"]

    def path(self, relative: str) -> Path:
        """Return a path below Homebrew's prefix."""
        return self.mac.path(f"{PREFIX}/{relative}")

    def find(self, name: str) -> str:
        """Return the formula's own name for a name, an alias, or either with its tap."""
        plain = name.removeprefix("homebrew/core/")
        found = [key for key, about in self.formulae.items() if plain == key or plain in about.get("aliases", ())]
        return found[0] if found else refuse(1, f'Error: No available formula with the name "{name}".')

    def installed(self, name: str) -> str:
        """Return the version that is installed; empty if none is."""
        cellar = self.path(f"Cellar/{name}")
        return max((keg.name for keg in cellar.iterdir()), default="") if cellar.is_dir() else ""

    def linked(self, name: str) -> str | None:
        """Return the version whose files are linked into the prefix."""
        mark = self.path(f"var/homebrew/linked/{name}")
        return mark.readlink().name if mark.is_symlink() else None

    def files(self, name: str) -> dict[str, str]:
        """Return the files of a formula: each from which of ours, or a link with ``->``."""
        return dict(self.formulae[name].get("files", {}))


def _info(house: House, names: list[str], flags: list[str]) -> None:
    chosen = [house.find(name) for name in names] or [name for name in house.formulae if house.installed(name)]
    if "--json=v2" not in flags:
        for name in chosen:
            say(f"==> {name}: stable {house.formulae[name]['version']} (bottled)\n{house.installed(name) or 'Not installed'}")
        return
    say(json.dumps({"formulae": [_describe(house, name) for name in chosen], "casks": []}, separators=(",", ":")))


def _describe(house: House, name: str) -> dict[str, Any]:
    about, version = house.formulae[name], house.installed(name)
    keg = {
        "version": version,
        "used_options": [],
        "built_as_bottle": True,
        "poured_from_bottle": True,
        "time": 1790000000,
        "runtime_dependencies": [],
        "installed_on_request": True,
    }
    return {
        "name": name,
        "full_name": name,
        "tap": "homebrew/core",
        "oldnames": [],
        "aliases": about.get("aliases", []),
        "versions": {"stable": about["version"].split("_")[0], "head": "HEAD", "bottle": True},
        "revision": int(about["version"].partition("_")[2] or 0),
        "keg_only": False,
        "dependencies": about.get("dependencies", []),
        "conflicts_with": about.get("conflicts_with", []),
        "installed": [keg] if version else [],
        "linked_keg": house.linked(name),
        "pinned": False,
        "outdated": bool(version) and version != about["version"],
    }


def _list(house: House, names: list[str], flags: list[str]) -> int:
    """With ``--versions`` what is not installed is passed over, and makes the exit code 1."""
    if not names:
        names = [name for name in house.formulae if house.installed(name)]
    code = 0
    for name in names:
        version = house.installed(house.find(name)) if name in house.formulae or "--versions" not in flags else ""
        if not version and "--versions" not in flags:
            refuse(1, f"Error: No such keg: {PREFIX}/Cellar/{name}")
        if version:
            say(f"{name} {version}" if "--versions" in flags else name)
        code = code if version else 1
    return code


def _install(house: House, names: list[str], flags: list[str]) -> None:
    wanted = [house.find(name) for name in names]
    for name in [name for name in wanted if house.installed(name)]:
        version = house.installed(name)
        sys.stderr.write(f"Warning: {name} {version} is already installed and up-to-date.\n")
    wanted = [name for name in wanted if not house.installed(name)]
    if not wanted:
        return
    _check_writable(house)
    extra = [name for name in _dependencies(house, wanted) if not house.installed(name)]
    _ask(wanted, extra)
    for name in [*extra, *wanted]:
        _check_conflicts(house, name)
    for name in [*extra, *wanted]:
        say(f"==> Pouring {name}--{house.formulae[name]['version']}.arm64_tahoe.bottle.tar.gz")
        _pour(house, name)
    house.mac.note()


def stock(mac: Mac, names: list[str]) -> None:
    """Install formulae with all they need, without a word: this is how the Mac was."""
    house = House(mac)
    for name in [*_dependencies(house, names), *names]:
        _pour(house, name)


def _dependencies(house: House, names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        for one in house.formulae[name].get("dependencies", []):
            found += [new for new in (*_dependencies(house, [one]), one) if new not in found and new not in names]
    return found


def _ask(wanted: list[str], extra: list[str]) -> None:
    """Homebrew 6 asks before it brings more than was named."""
    if not extra or os.environ.get("HOMEBREW_NO_ASK"):
        return
    say(f"==> Would install {len(wanted) + len(extra)} formulae:\n{' '.join([*wanted, *extra])}")
    say("==> Do you want to proceed with the installation? [y/n]")
    if sys.stdin is None or not sys.stdin.readline().lower().startswith("y"):
        refuse(1, "")


def _check_writable(house: House) -> None:
    bad = [f"{PREFIX}/{name}" for name in ("", "Cellar", "bin") if not os.access(house.path(name), os.W_OK)]
    if bad and not house.mac.root:
        listed = "\n".join(path.rstrip("/") for path in bad)
        refuse(1, f"Error: The following directories are not writable by your user:\n{listed}\n")


def _check_conflicts(house: House, name: str) -> None:
    for other in house.formulae[name].get("conflicts_with", []):
        if other in house.formulae and house.linked(other):
            refuse(
                1,
                f"Error: Cannot install {name} because conflicting formulae are installed.\n  {other}: because both install MPI"
                f" compiler wrappers\n\nPlease `brew unlink {other}` before continuing.",
            )


def _pour(house: House, name: str) -> None:
    version = house.formulae[name]["version"]
    keg = house.path(f"Cellar/{name}/{version}")
    keg.mkdir(parents=True)
    for path, source in house.files(name).items():
        file = keg / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if source.startswith("->"):
            file.symlink_to(source[2:])
        else:
            text = house.mac.path(f"{FILES}/{source}").read_text()
            file.write_text(text.replace("@VERSION@", version.split("_")[0]))
            file.chmod(0o755)
    (keg / "INSTALL_RECEIPT.json").write_text(json.dumps({"poured_from_bottle": True, "source": {"tap": "homebrew/core"}}))
    _link(house, name)


def _link(house: House, name: str) -> int:
    """Link a keg's files into the prefix, by relative links as Homebrew does; returns how many."""
    keg = house.path(f"Cellar/{name}/{house.installed(name)}")
    places = {f"var/homebrew/linked/{name}": keg, f"opt/{name}": keg, **{file: keg / file for file in house.files(name)}}
    for place, target in places.items():
        link = house.path(place)
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.exists() and not link.is_symlink():
            refuse(1, f"Error: Could not symlink {place}\nTarget {PREFIX}/{place}\nalready exists.")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))
    return len(places)


def _link_and_say(house: House, names: list[str], flags: list[str]) -> None:
    for name in map(house.find, names):
        if not house.installed(name):
            refuse(1, f"Error: No such keg: {PREFIX}/Cellar/{name}")
        say(f"Linking {PREFIX}/Cellar/{name}/{house.installed(name)}... {_link(house, name)} symlinks created.")
    house.mac.note()


def _unlink(house: House, names: list[str], flags: list[str]) -> None:
    for name in map(house.find, names):
        places = [f"var/homebrew/linked/{name}", *house.files(name)]
        links = [house.path(place) for place in places if house.path(place).is_symlink()]
        ours = [link for link in links if f"Cellar/{name}/" in str(link.readlink())]
        for link in ours:
            link.unlink()
        say(f"Unlinking {PREFIX}/Cellar/{name}/{house.installed(name)}... {len(ours)} symlinks removed.")
    house.mac.note()


def _uninstall(house: House, names: list[str], flags: list[str]) -> None:
    for name in map(house.find, names):
        version = house.installed(name)
        if not version:
            refuse(1, f"Error: No such keg: {PREFIX}/Cellar/{name}")
        _unlink(house, [name], flags)
        house.path(f"opt/{name}").unlink(missing_ok=True)
        shutil.rmtree(house.path(f"Cellar/{name}"))
        say(f"Uninstalling {PREFIX}/Cellar/{name}/{version}...")


def _upgrade(house: House, names: list[str], flags: list[str]) -> None:
    chosen = [house.find(name) for name in names] or list(house.formulae)
    for name in [name for name in chosen if _describe(house, name)["outdated"]]:
        _check_writable(house)
        old = house.installed(name)
        _unlink(house, [name], flags)
        shutil.rmtree(house.path(f"Cellar/{name}"))
        say(f"==> Upgrading {name}\n  {old} -> {house.formulae[name]['version']}")
        _pour(house, name)


def _outdated(house: House, names: list[str], flags: list[str]) -> None:
    for name in [name for name in house.formulae if _describe(house, name)["outdated"]]:
        say(name)


VERBS = {
    "info": _info,
    "list": _list,
    "ls": _list,
    "install": _install,
    "upgrade": _upgrade,
    "uninstall": _uninstall,
    "remove": _uninstall,
    "link": _link_and_say,
    "unlink": _unlink,
    "outdated": _outdated,
    "update": lambda house, names, flags: say("Already up-to-date."),
    "doctor": lambda house, names, flags: say("Your system is ready to brew."),
}
