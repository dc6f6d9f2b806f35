"""Code, model and data on the nodes: folders named after their content, sent once, complete when they are there.

The control machine sends what is missing to the head; the head passes it on to the others over the fast link.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trainer.cluster.call import ask, follow, interpreter, stream_to
from trainer.cluster.cargo import Counting, pack
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.nodes import Fleet
from trainer.cluster.ssh import on_all
from trainer.errors import ClusterError
from trainer.fingerprint import MODEL_SUFFIXES, hash_files
from trainer.paths import PROJECT_ROOT

MIB = 1024 * 1024
_CODE_SUFFIXES = (".py", ".json", ".toml", ".typed")
_NAME_DIGITS = 16
_RELAY_SSH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=5")

Progress = Callable[[str, int, int], None]  # phase, done, total, both in MiB


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Files of ``folder`` that nodes need; ``digest`` is `fingerprint.hash_files` over them, and makes their name."""

    kind: str
    folder: Path
    digest: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its folder in every node's store."""
        return f"{self.kind}-{self.digest[:_NAME_DIGITS]}"

    def describe(self) -> dict[str, Any]:
        """Return what a receiver must know."""
        size = sum((self.folder / name).stat().st_size for name in self.files)
        return {"name": self.name, "digest": self.digest, "files": list(self.files), "size": size}


def find_code() -> Artifact:
    """Return the trainer package itself; its folder in the store is what PYTHONPATH names."""
    package = PROJECT_ROOT / "trainer"
    files = [path for path in package.rglob("*") if path.suffix in _CODE_SUFFIXES and "__pycache__" not in path.parts]
    names = tuple(sorted(path.relative_to(PROJECT_ROOT).as_posix() for path in files if path.is_file()))
    return Artifact(kind="code", folder=PROJECT_ROOT, digest=hash_files(PROJECT_ROOT, names), files=names)


def find_model(folder: Path, digest: str) -> Artifact:
    """Return a model's folder with the fingerprint that is known of it: what `fingerprint.hash_model` counts."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    names = tuple(sorted(path.name for path in files if path.suffix in MODEL_SUFFIXES))
    return Artifact(kind="model", folder=folder, digest=digest, files=names)


def find_data(folder: Path, digest: str, splits: Sequence[str] = ("train", "valid", "test")) -> Artifact:
    """Return a data set's folder with the fingerprint that is known of it."""
    return Artifact(kind="data", folder=folder, digest=digest, files=tuple(f"{split}.jsonl" for split in splits))


def path_of(artifact: Artifact, root: PurePosixPath) -> Path:
    """Return where ``artifact`` is on every node."""
    return Path(root / "store" / artifact.name)


def find_missing(cluster: Cluster, artifacts: Sequence[Artifact]) -> dict[str, list[Artifact]]:
    """Return for each host which artifacts it lacks."""
    request = {"verb": "missing", "store": str(cluster.root / "store"), "names": [each.name for each in artifacts]}
    answers = on_all(cluster.hosts, lambda host: ask(host, cluster.root, request)["missing"])
    return {name: [each for each in artifacts if each.name in missing] for name, missing in answers.items()}


def deliver(fleet: Fleet, artifacts: Sequence[Artifact], progress: Progress) -> dict[str, list[Artifact]]:
    """Bring every host all artifacts; returns what each was sent. Raises `ClusterError` that names who could not take it.

    Whatever goes wrong, a host has an artifact whole or not at all.
    """
    cluster = fleet.cluster
    missing = find_missing(cluster, artifacts)
    if lacking := missing[cluster.head.name]:
        _send(cluster.head, cluster.root, lacking, progress)
    others = {host: missing[host.name] for host in cluster.hosts[1:] if missing[host.name]}
    if others:
        _pass_on(fleet, others, progress)
    return missing


def _send(head: Host, root: PurePosixPath, artifacts: Sequence[Artifact], progress: Progress) -> None:
    described = [each.describe() for each in artifacts]
    total = sum(each["size"] for each in described)
    phase = f"sending {_list_kinds(artifacts)} to {head.name}"
    folders = {each.name: str(each.folder) for each in artifacts}

    def feed(target: IO[bytes]) -> None:
        counted = Counting(target, lambda done: progress(phase, min(done, total) // MIB, total // MIB))
        pack([{**each, "folder": folders[each["name"]]} for each in described], counted)

    stream_to(head, root, {"verb": "receive", "store": str(root / "store"), "artifacts": described}, feed)


def _pass_on(fleet: Fleet, others: Mapping[Host, Sequence[Artifact]], progress: Progress) -> None:
    """Let the head send to the others, from its store, over the addresses of the link that was chosen."""
    root = fleet.cluster.root
    peers: list[dict[str, Any]] = []
    for host, artifacts in others.items():
        command = ["ssh", *_RELAY_SSH, host.address, shlex.join(interpreter(root))]
        peers.append({"host": host.name, "command": command, "artifacts": [each.describe() for each in artifacts]})
    total = sum(artifact["size"] for peer in peers for artifact in peer["artifacts"])
    kinds = _list_kinds([artifact for artifacts in others.values() for artifact in artifacts])
    phase = f"passing {kinds} on to {', '.join(host.name for host in others)}"

    def on_news(news: dict[str, Any]) -> None:
        if "sent" in news:
            progress(phase, min(news["sent"], total) // MIB, total // MIB)

    request = {"verb": "relay", "store": str(root / "store"), "peers": peers}
    answer = follow(fleet.cluster.head, root, request, on_news)
    failed = [f"{name}: {problem}" for name, problem in answer["outcomes"].items() if problem]
    if failed:
        raise ClusterError("\n".join(f"{line} (sent by {fleet.cluster.head.name})" for line in failed))


def _list_kinds(artifacts: Sequence[Artifact]) -> str:
    kinds = list(dict.fromkeys(each.kind for each in artifacts))
    return " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
