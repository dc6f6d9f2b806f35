"""pyproject.toml, requirements.lock and the package agree, on every platform and Python that is supported."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import trainer

ROOT = Path(__file__).resolve().parents[2]
PLATFORMS = [("darwin", "arm64"), ("linux", "x86_64"), ("linux", "aarch64")]
PYTHONS = ["3.11", "3.12", "3.13"]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


class Entry(NamedTuple):
    """One entry of the lock: what is pinned, and what follows the pin."""

    requirement: Requirement
    options: list[str]


def read_pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_groups() -> dict[str, list[Requirement]]:
    """The requirements of the project itself ("project") and of each dependency group."""
    pyproject = read_pyproject()
    groups = {"project": pyproject["project"]["dependencies"], **pyproject["dependency-groups"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def read_lock() -> list[Entry]:
    """The lock's entries: lines joined at the backslash, comments left out."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    parts = [re.split(r"\s+(?=--)", line.strip()) for line in lines]
    return [Entry(Requirement(pin), options) for pin, *options in parts]


def on(platform: tuple[str, str], python: str) -> dict[str, str]:
    """The marker variables of a machine, as far as they differ between those that are supported."""
    system, machine = platform
    return {
        "sys_platform": system,
        "platform_machine": machine,
        "platform_system": system.capitalize(),
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.5",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": "", **environment})


def pinned(environment: dict[str, str]) -> dict[str, list[str]]:
    """What the lock installs on a machine: name → versions."""
    versions: dict[str, list[str]] = {}
    for requirement, _ in read_lock():
        if applies(requirement, environment):
            [specifier] = requirement.specifier
            versions.setdefault(canonicalize_name(requirement.name), []).append(specifier.version)
    return versions


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS, ids="-".join)
def test_lock_satisfies_pyproject(platform: tuple[str, str], python: str) -> None:
    """Every declared dependency is pinned, once and within its range, wherever it applies."""
    environment = on(platform, python)
    versions = pinned(environment)
    wanted = [requirement for group in read_groups().values() for requirement in group]
    wrong = {
        str(requirement): versions.get(canonicalize_name(requirement.name))
        for requirement in wanted
        if applies(requirement, environment)
        and [requirement.specifier.contains(v) for v in versions.get(canonicalize_name(requirement.name), [])] != [True]
    }
    assert wrong == {}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS, ids="-".join)
def test_one_version_of_each(platform: tuple[str, str], python: str) -> None:
    """No machine is told to install two versions of a package."""
    twice = {name: versions for name, versions in pinned(on(platform, python)).items() if len(versions) > 1}
    assert twice == {}


def test_supported_pythons() -> None:
    """The Pythons tried here are those that pyproject.toml admits."""
    admitted = SpecifierSet(read_pyproject()["project"]["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}.0" in admitted] == PYTHONS


def test_every_entry_is_pinned_and_hashed() -> None:
    """Every entry of the lock has one exact version, one hash or more and nothing else: no address, no other option."""
    for requirement, options in read_lock():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert "*" not in str(requirement.specifier), requirement
        assert requirement.url is None, requirement
        assert options, requirement
        assert [option for option in options if not HASH.fullmatch(option)] == [], requirement


def test_lock_names_no_place() -> None:
    """The lock says what, never from where: that is the machine's own setting."""
    places = re.compile(r"https?:|file:|--(extra-)?index-url|--find-links|--trusted-host")
    text = (ROOT / "requirements.lock").read_text()
    assert [line for line in text.splitlines() if places.search(line)] == []


def test_nodes_need_less() -> None:
    """What a rank needs is apart from what launches, tests and checks: no package is in two groups."""
    names = {group: {canonicalize_name(r.name) for r in wanted} for group, wanted in read_groups().items()}
    for group in ("control", "bundled", "test", "lint"):
        assert names["project"] & names[group] == set(), group


def test_versions_agree() -> None:
    """trainer.__version__ is pyproject.toml's version."""
    assert trainer.__version__ == read_pyproject()["project"]["version"]
