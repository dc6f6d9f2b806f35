"""A run on several hosts: the same files everywhere, mpirun on the head, nothing left behind, the results brought back."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

from trainer.cluster.call import ask, stream_from
from trainer.cluster.cargo import unpack
from trainer.cluster.hostfile import read_cables
from trainer.cluster.interruptions import undisturbed
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.launch import Attach, Inputs, Watcher, make_folder, make_plan, make_supervisor
from trainer.cluster.nodes import Fleet
from trainer.cluster.openmpi import OpenMPI
from trainer.cluster.outcome import Outcome
from trainer.cluster.plan import Launch, Tools, make_launch
from trainer.cluster.ssh import on_all, ssh_command
from trainer.cluster.store import Artifact, Progress, deliver, find_code, find_data, find_model, path_of
from trainer.errors import ClusterError

_SWEEP_TIMEOUT_S = 20.0
_SILENT_TIMEOUT_S = 4.0  # for a host that has been silent for a while already
_ADAPTER = "adapters.safetensors"
_RESULTS = {f"adapter/{_ADAPTER}", f"checkpoints/last/{_ADAPTER}"}
_STAYING = "checkpoints/step-"  # each host keeps its own


def find_artifacts(inputs: Inputs, model: Path, fingerprints: dict[str, str]) -> list[Artifact]:
    """Return what every host needs for a run."""
    return [find_code(), find_model(model, fingerprints["model"]), find_data(inputs.data, fingerprints["data"])]


def plan_on(fleet: Fleet, inputs: Inputs, model: Path, fingerprints: dict[str, str], runs: Path) -> Launch:
    """Return the launch of a run on ``fleet``, with the paths that things have on its nodes."""
    code, weights, samples = find_artifacts(inputs, model, fingerprints)
    root = fleet.cluster.root
    kept = make_plan(dataclasses.replace(inputs, cluster=fleet.cluster), model, fingerprints, runs)
    kept = dataclasses.replace(kept, network=str(fleet.cluster.network or ""))
    theirs = dataclasses.replace(
        kept,
        run_dir=Path(root / "runs" / kept.run_dir.name),
        resume_from=Path(root / "runs" / kept.resume_from.name) if kept.resume_from else None,
        model_path=path_of(weights, root),
        data_path=path_of(samples, root),
    )
    return make_launch(fleet.cluster, theirs, tools_of(fleet, code), kept, read_cables(fleet.head.cables))


def tools_of(fleet: Fleet, code: Artifact) -> Tools:
    """Return what starts ranks on the nodes."""
    root = fleet.cluster.root
    head = fleet.head
    return Tools(
        mpi=head.mpi,
        python=Path(fleet.python),
        project_root=path_of(code, root),
        is_root=head.is_root,
        root=Path(root),
        is_mac=head.system == "Darwin",
    )


def guess_tools(cluster: Cluster) -> Tools:
    """Return the tools that nodes have when Open MPI is the environment's: for ``--dry-run``, which asks no host."""
    root = Path(cluster.root)
    mpi = OpenMPI(mpirun=root / "env/bin/mpirun", libmpi=root / "env/lib/libmpi.so.40", version="")
    return Tools(
        mpi=mpi, python=root / "env/bin/python", project_root=path_of(find_code(), cluster.root), is_root=False, root=root
    )


def guess_launch(inputs: Inputs, model: Path, fingerprints: dict[str, str], runs: Path) -> Launch:
    """Return the launch as far as it is known without asking any host: tools as `guess_tools` has them, no cables."""
    cluster = inputs.cluster
    kept = dataclasses.replace(make_plan(inputs, model, fingerprints, runs), network=str(cluster.network or ""))
    theirs = dataclasses.replace(kept, run_dir=Path(cluster.root / "runs" / kept.run_dir.name), data_path=model)
    return make_launch(cluster, theirs, guess_tools(cluster), kept)


def send_all(fleet: Fleet, artifacts: list[Artifact], progress: Progress) -> dict[str, dict[str, str]]:
    """Bring every host what it lacks; returns for each host and kind whether it was "present" or has been "sent"."""
    sent = deliver(fleet, artifacts, progress)
    return tell_states(artifacts, sent, "sent")


def send_code(fleet: Fleet, progress: Progress) -> None:
    """Bring every host the trainer package alone."""
    deliver(fleet, [find_code()], progress)


def tell_states(artifacts: list[Artifact], absent: dict[str, list[Artifact]], word: str) -> dict[str, dict[str, str]]:
    """Return for each host and kind "present", or ``word`` for what was absent."""
    return {host: {each.kind: word if each in lacking else "present" for each in artifacts} for host, lacking in absent.items()}


def execute_on(fleet: Fleet, launch: Launch, watcher: Watcher, attach: Attach = lambda _: None) -> Outcome:
    """Make the run's folders, start the ranks and follow them to the end; what they wrote is still on the hosts.

    However it ends, no process of this run is left on any host that still answers.
    """
    make_folder(launch)
    make_ready(fleet.cluster, launch, watcher)
    silent: list[str] = []
    try:
        outcome = start(fleet, launch, watcher, attach)
        silent = [name for name, node in fleet.nodes.items() if node.host_name in outcome.silent]
    finally:
        with undisturbed():
            unreachable = sweep(fleet.cluster, launch, watcher, silent=silent)
    return dataclasses.replace(outcome, unreachable=unreachable)


def start(fleet: Fleet, launch: Launch, watcher: Watcher, attach: Attach = lambda _: None) -> Outcome:
    """Run the launch's command on the head and follow it to the end; ``attach`` is given the supervisor before."""
    head = fleet.cluster.head
    supervisor = make_supervisor(launch, watcher)
    attach(supervisor)
    if head.is_local:
        return supervisor.run(launch.argv, launch.env)
    order = json.dumps({"argv": launch.argv, "env": dict(launch.env)})
    lead = ["/usr/bin/env", f"PYTHONPATH={launch.env['PYTHONPATH']}", str(fleet.python), "-P", "-m", "trainer", "lead"]
    return supervisor.run(ssh_command(head, lead), {}, order)


def sweep(
    cluster: Cluster, launch: Launch, watcher: Watcher, *, remove: bool = False, silent: Collection[str] = ()
) -> dict[str, str]:
    """End on every host what is left of this very run; tells of what it found, and of hosts that do not answer.

    With ``remove`` the run's folder there goes as well. ``silent`` hosts are not waited for as long as others. Returns those
    that did not answer, each with the error.
    """
    unreachable = {}

    def clean(host: Host) -> int:
        try:
            request = {"verb": "sweep", "plan": str(launch.plan.file), "remove": str(launch.plan.run_dir) if remove else ""}
            patience_s = _SILENT_TIMEOUT_S if host.name in silent else _SWEEP_TIMEOUT_S
            ended: int = ask(host, cluster.root, request, patience_s)["ended"]
        except ClusterError as error:
            unreachable[host.name] = str(error)
            return 0
        return ended

    _tell_ended(on_all(cluster.hosts, clean), watcher)
    for error in unreachable.values():
        notice(watcher, f"whether ranks are left there is not known: {error}")
    return unreachable


def _tell_ended(counts: Mapping[str, int], watcher: Watcher) -> None:
    for name, ended in counts.items():
        if ended:
            notice(watcher, f"{name}: ended {ended} {'process' if ended == 1 else 'processes'} that the run had left")


def notice(watcher: Watcher, text: str) -> None:
    """Tell the person who follows the run."""
    watcher.on_event({"event": "notice", "rank": 0, "time": time.time(), "text": text})


def make_ready(cluster: Cluster, launch: Launch, watcher: Watcher) -> None:
    """Put the run's files into its folder on every host, and end what an earlier attempt has left there.

    A host that was frozen, or a control side that was killed, may have left ranks.
    """
    files = {str(launch.plan.run_dir / name): text for name, text in launch.files.items()}
    request = {"verb": "write", "files": files, "plan": str(launch.plan.file) if launch.kept.attempt > 1 else ""}
    _tell_ended(on_all(cluster.hosts, lambda host: ask(host, cluster.root, request)["ended"]), watcher)


def bring_back(
    cluster: Cluster, launch: Launch, watcher: Watcher, unreachable: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Copy what the ranks wrote into this machine's folder of the run, from the first host that has all of it, else some.

    ``cluster`` are the hosts that were there to the end: each has the same, unless its disk was full. Those of ``unreachable``
    did not answer a moment ago, each with the error; they are not asked.
    """
    problems = [f"{name}: not asked for the results: {error}" for name, error in unreachable.items()]
    answering = [host for host in cluster.hosts if host.name not in unreachable]

    def fetch(host: Host, least: set[str]) -> set[str]:
        try:
            return _fetch(host, cluster, launch, least)
        except (ClusterError, OSError, tarfile.TarError) as error:
            problems.append(f"{host.name}: the results could not be brought back: {error}")
            return set()

    poor: dict[Host, set[str]] = {}
    with undisturbed():
        for host in answering:
            if (found := fetch(host, _RESULTS)) == _RESULTS:
                return
            if found:
                poor[host] = found
        if any(fetch(host, found) for host, found in poor.items()):
            return
    for text in problems:
        notice(watcher, text)


def _fetch(host: Host, cluster: Cluster, launch: Launch, least: set[str]) -> set[str]:
    """Fetch the results of one host if they are at ``least`` these of `_RESULTS`, whole or not at all; returns which it has."""
    request = {"verb": "collect", "folder": str(launch.plan.run_dir), "without": [*launch.files], "skip": _STAYING}
    target = launch.kept.run_dir
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=target) as scratch:

        def take(stream: IO[bytes]) -> None:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                unpack(archive, Path(scratch))

        stream_from(host, cluster.root, request, take)
        results = {name for name in _RESULTS if (Path(scratch) / name).is_file()}
        if not results >= least:
            return results
        found = [path for path in Path(scratch).iterdir() if path.name not in ("logs", *launch.files)]
        for path in found:
            _correct_model(path, launch)
            if path.is_dir():
                shutil.rmtree(target / path.name, ignore_errors=True)  # of an earlier attempt
                shutil.move(path, target / path.name)
        return results


def _correct_model(folder: Path, launch: Launch) -> None:
    """Let the adapters in ``folder`` name the model where it is on this machine."""
    for settings in folder.rglob("adapter_config.json"):
        table = json.loads(settings.read_text("utf-8"))
        settings.write_text(json.dumps({**table, "model": str(launch.kept.model_path)}, indent=2) + "\n", "utf-8")
