"""Fixtures of the laboratory: tests that need it skip, with what is missing, where it cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.laboratory import LabHost, Laboratory
from tests.lab.shipyard import Shipyard
from trainer.paths import PROJECT_ROOT, cache_dir

PLAYBOOKS = PROJECT_ROOT / "ansible"
PROVISION_TIMEOUT_S = 580


def play(lab: Laboratory, playbook: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a playbook on a laboratory's hosts, with the passwords that its users have."""
    passwords = ("--connection-password-file", str(lab.password_file), "--become-password-file", str(lab.password_file))
    program = Path(sys.prefix) / "bin" / "ansible-playbook"
    command = [str(program), "-i", str(lab.inventory), *passwords, playbook, *options]
    own = {"ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"), "FLOTILLA_CACHE": str(cache_dir())}
    played = lab.control(command, cwd=PLAYBOOKS, env=own, check=False, timeout=PROVISION_TIMEOUT_S)
    assert not check or played.returncode == 0, played.stdout[-5000:] + played.stderr[-2000:]
    return played


@pytest.fixture(scope="session")
def provisioned_lab() -> Iterator[Laboratory]:
    """Yield three hosts that site.yml has made a cluster, without the bundled model and data, and take them down after.

    ``FLOTILLA_LAB`` names a laboratory that is up and provisioned already, to be used and left as it is.
    """
    if lacking := Laboratory.missing():
        pytest.skip(f"the laboratory needs: {', '.join(lacking)}")
    if kept := os.environ.get("FLOTILLA_LAB"):
        yield Laboratory.attach(kept)
        return
    with Laboratory.up(num_hosts=3, name=f"t{os.getpid()}") as lab:
        play(lab, "site.yml", "--skip-tags", "artifacts")
        yield lab


@pytest.fixture(scope="module")
def yard(provisioned_lab: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Shipyard:
    """Return what starts runs of a tiny model on the provisioned hosts."""
    return Shipyard(provisioned_lab, tmp_path_factory.mktemp("yard"))


@pytest.fixture
def cut_off(yard: Shipyard) -> Iterator[LabHost]:
    """Yield a host whose fast cable is pulled; it is put back afterwards."""
    host = yard.lab.hosts[1]
    yard.lab.cut(host, "fast")
    yield host
    yard.lab.mend(host, "fast")
