"""Jobs of ranks that are no run: a check of the links, a baseline, a rehearsal. Nothing of them is kept."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.cluster.hostfile import read_cables
from trainer.cluster.inventory import Cluster
from trainer.cluster.launch import Watcher, execute, local_tools
from trainer.cluster.nodes import Fleet
from trainer.cluster.outcome import Outcome
from trainer.cluster.plan import Launch, RunPlan, make_launch
from trainer.cluster.several import make_ready, start, sweep, tools_of
from trainer.cluster.store import Artifact, path_of
from trainer.config import RunConfig

_NOWHERE = Path("/nonexistent")  # no model, no data: nothing is trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Errand:
    """What the ranks do: ``words`` of `trainer.cli` after ``--plan``, with the ``files`` (name to text) beside the plan."""

    name: str
    config: RunConfig
    words: Sequence[str]
    model: Path = _NOWHERE
    data: Path = _NOWHERE
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def plan(self, cluster: Cluster, run_dir: Path) -> RunPlan:
        """Return the plan as this machine sees it."""
        return RunPlan(
            name=self.name,
            run_dir=run_dir,
            world_size=cluster.world_size,
            model_path=self.model,
            data_path=self.data,
            fingerprints=self.fingerprints,
            config=self.config,
            network="" if cluster.is_local else str(cluster.network or ""),
        )

    def send(self, launch: Launch) -> Launch:
        """Return ``launch`` with this errand as what the ranks do."""
        verb, *rest = self.words
        argv = [verb if word == "train" else word for word in launch.argv]
        return dataclasses.replace(launch, argv=(*argv, *rest), files={**launch.files, **self.files})


def run_errand(
    errand: Errand, cluster: Cluster, fleet: Fleet | None, artifacts: Sequence[Artifact], watcher: Watcher
) -> Outcome:
    """Start the ranks of ``cluster`` and follow them to the end.

    ``fleet`` has the nodes of its hosts, None if all ranks are on this machine. The ``artifacts`` (code first, then model and
    data if they are needed) are there already.
    """
    with tempfile.TemporaryDirectory(prefix="flotilla-") as scratch:
        kept = errand.plan(cluster, Path(scratch) / f"{errand.name}-{os.getpid()}")
        if fleet is None:
            return execute(errand.send(make_launch(cluster, kept, local_tools())), watcher)
        return _run_on(errand, dataclasses.replace(fleet, cluster=cluster), artifacts, kept, watcher)


def _run_on(errand: Errand, fleet: Fleet, artifacts: Sequence[Artifact], kept: RunPlan, watcher: Watcher) -> Outcome:
    """Run on the hosts' own copies; nothing is left running there, and no folder."""
    cluster = fleet.cluster
    theirs = dataclasses.replace(kept, run_dir=Path(cluster.root / "runs" / kept.run_dir.name))
    if len(artifacts) > 1:
        _, model, data = artifacts
        theirs = dataclasses.replace(theirs, model_path=path_of(model, cluster.root), data_path=path_of(data, cluster.root))
    cables = read_cables(fleet.head.cables)
    launch = errand.send(make_launch(cluster, theirs, tools_of(fleet, artifacts[0]), kept, cables))
    make_ready(cluster, launch, watcher)
    try:
        return start(fleet, launch, watcher)
    finally:
        sweep(cluster, launch, watcher, remove=True)
