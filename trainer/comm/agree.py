"""Agreement: before the first step all ranks compare what must be the same everywhere."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import trainer
from trainer.comm.group import Comm
from trainer.errors import ClusterError

_PACKAGES = ("mlx", "mlx-lm", "mpi4py", "numpy", "transformers", "tokenizers")


def describe_software() -> dict[str, str]:
    """Return the versions that a rank runs with, our own code's hash among them: name to version."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **versions, "trainer": f"{trainer.__version__}+{_hash_code()}"}


def check_agreement(comm: Comm, facts: Mapping[str, str], planned: Mapping[str, str]) -> None:
    """Compare ``facts`` (what to what value) over all ranks, and with what the control machine ``planned``; a collective.

    Raises `ClusterError` on every rank when they differ, with each difference: what, and who has which value.
    """
    hosts = comm.all_gather((socket.gethostname(), dict(facts)))
    everyone = [(f"rank {rank} on {host}", theirs) for rank, (host, theirs) in enumerate(hosts)]
    everyone.append(("the control machine", dict(planned)))
    names = dict.fromkeys(name for _, theirs in everyone for name in theirs)  # not every rank knows all
    differences = [text for name in names if (text := _find_difference(name, everyone))]
    if differences:
        raise ClusterError(
            "the hosts do not agree; bring them to the same state and start again:\n"
            + "\n".join(f"  {text}" for text in differences)
        )


def _find_difference(name: str, everyone: list[tuple[str, dict[str, str]]]) -> str:
    """Return who has which value of ``name`` if not all who know it have the same, the most common value first."""
    values = [(who, facts[name]) for who, facts in everyone if name in facts]
    counts = Counter(value for _, value in values)
    if len(counts) == 1:
        return ""
    parts = []
    for value, _ in counts.most_common():
        parts.append(f"{value[:20]} ({', '.join(who for who, theirs in values if theirs == value)})")
    return f"{name}: " + " but ".join(parts)


def _hash_code() -> str:
    """Return a short hash of our package's source, so that an edited copy on one host is noticed."""
    digest = hashlib.sha256()
    root = Path(trainer.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
