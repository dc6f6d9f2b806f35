"""What a run will do, decided before anything starts: a pure function of cluster, configuration and tools.

`make_launch` returns the command, its environment and the files of the run's folder; nothing here touches the disk or
the network, so that ``--dry-run`` shows exactly what a launch would do.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.cluster.hostfile import Cables, render_backend, render_open_mpi
from trainer.cluster.inventory import Cluster
from trainer.cluster.openmpi import OpenMPI
from trainer.cluster.sessions import name_session
from trainer.config import RunConfig, parse_config, render_toml

PLAN_VERSION = 1
PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What every rank reads: where model, data and the run's folder are, and what all must agree on.

    ``fingerprints`` maps model and data to the SHA-256 that the control machine saw; ``network`` is the one that carries
    the gradients between hosts, empty where there is only one. ``inventory`` is where the control machine found the hosts.
    ``resume_from`` is the folder of the run whose checkpoint this one goes on from: its own, or another's that it branches off;
    ``attempt`` counts the starts of a run.
    """

    name: str
    run_dir: Path
    world_size: int
    model_path: Path
    data_path: Path
    fingerprints: Mapping[str, str]
    config: RunConfig
    network: str = ""
    inventory: str = ""
    resume_from: Path | None = None
    attempt: int = 1

    @property
    def file(self) -> Path:
        """Where the plan is; every process of the run has this on its command line."""
        return self.run_dir / PLAN_FILE

    def render(self) -> str:
        """Return the plan as JSON, the content of ``plan.json``."""
        table: dict[str, Any] = {
            "version": PLAN_VERSION,
            "name": self.name,
            "run_dir": str(self.run_dir),
            "world_size": self.world_size,
            "model_path": str(self.model_path),
            "data_path": str(self.data_path),
            "fingerprints": dict(self.fingerprints),
            "network": self.network,
            "inventory": self.inventory,
            "resume_from": str(self.resume_from) if self.resume_from else "",
            "attempt": self.attempt,
            "config": self.config.as_dict(),
        }
        return json.dumps(table, indent=2) + "\n"

    @classmethod
    def parse(cls, text: str) -> RunPlan:
        """Return the plan that `render` wrote."""
        table = json.loads(text)
        assert table["version"] == PLAN_VERSION, f"plan.json has version {table['version']}, this trainer {PLAN_VERSION}"
        return cls(
            name=table["name"],
            run_dir=Path(table["run_dir"]),
            world_size=table["world_size"],
            model_path=Path(table["model_path"]),
            data_path=Path(table["data_path"]),
            fingerprints=table["fingerprints"],
            network=table.get("network", ""),
            inventory=table.get("inventory", ""),
            resume_from=Path(table["resume_from"]) if table.get("resume_from") else None,
            attempt=table.get("attempt", 1),
            config=parse_config(table["config"]),
        )


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What starts the ranks, the same on every host by provisioning; all paths absolute.

    ``project_root`` holds the trainer package, ``root`` everything of ours on hosts of a cluster; None on one machine.
    """

    mpi: OpenMPI
    python: Path
    project_root: Path
    is_root: bool
    root: Path | None = None
    is_mac: bool = field(default_factory=lambda: sys.platform == "darwin")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A run ready to start: ``argv`` and ``env`` for the launcher, ``files`` (name to text) for the run's folder.

    ``plan`` is what the ranks read; ``kept`` is the same run as this machine sees it, whose paths differ if the ranks
    run elsewhere.
    """

    plan: RunPlan
    kept: RunPlan
    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]

    def describe(self) -> str:
        """Return what ``--dry-run`` prints: the folder, each file, and the command as a shell would take it."""
        parts = [f"# run folder\n{self.kept.run_dir}\n"]
        if self.kept != self.plan:
            parts.append(f"# run folder on every host\n{self.plan.run_dir}\n")
        parts += [f"# {name}\n{text}" for name, text in self.files.items()]
        parts.append(f"# command\n{shlex.join(self.argv)}\n")
        return "\n".join(parts)


def make_launch(cluster: Cluster, plan: RunPlan, tools: Tools, kept: RunPlan | None = None, cables: Cables = ()) -> Launch:
    """Return the launch of ``plan`` on ``cluster``; ``cables`` are the hosts' own cables, where they are known.

    Raises `ClusterError` if the backend cannot work on this cluster.
    """
    hostfile = plan.run_dir / "hostfile"
    backend_files, backend_env = render_backend(plan.config.launch.backend, cluster, plan.run_dir, cables)
    env = {**rank_environment(tools), **backend_env}
    argv = [
        *mpirun_command(cluster, tools, hostfile, name_session(plan.file, plan.attempt), env),
        *("-P", "-m", "trainer", "train", "--plan", str(plan.file)),
    ]
    files = {
        "hostfile": render_open_mpi(cluster),
        **backend_files,
        "config.toml": render_toml(plan.config),
        PLAN_FILE: plan.render(),
    }
    return Launch(plan=plan, kept=kept or plan, argv=tuple(argv), env=env, files=files)


def mpirun_command(cluster: Cluster, tools: Tools, hostfile: Path, session: Path, env: Mapping[str, str]) -> list[str]:
    """Return the command up to and with the Python interpreter; docs/architecture.md explains every option."""
    transports = "self,sm" if cluster.is_local else "self,sm,tcp"
    return [
        str(tools.mpi.mpirun),
        *(["--allow-run-as-root"] if tools.is_root else []),
        *("-np", str(cluster.world_size), "--hostfile", str(hostfile), "--map-by", "slot", "--bind-to", "none"),
        *("--output", "tag"),
        *(["--wdir", str(tools.root)] if tools.root else []),
        *(["--leave-session-attached"] if tools.is_mac else []),
        *("--prtemca", "prte_tmpdir_base", str(session)),
        *_choose_links(cluster),
        *("--mca", "pml", "ob1", "--mca", "btl", transports, "--mca", "mpi_yield_when_idle", "1"),
        *(word for name, value in env.items() for word in ("-x", f"{name}={value}")),
        str(tools.python),
    ]


def _choose_links(cluster: Cluster) -> list[str]:
    """Return the options that keep both of Open MPI's layers, daemons and ranks, to the cluster's network."""
    if cluster.is_local:
        return []
    questionless = ("--prtemca", "plm_ssh_args", "-o BatchMode=yes -o ConnectTimeout=10")
    if cluster.network is None:
        return [*questionless]
    network = str(cluster.network)
    return [*questionless, "--prtemca", "prte_if_include", network, "--mca", "btl_tcp_if_include", network]


def rank_environment(tools: Tools) -> dict[str, str]:
    """Return the environment variables that every rank gets, on whichever host."""
    library = str(tools.mpi.libmpi)
    return {
        "MLX_MPI_LIBNAME": library,
        "MPI4PY_LIBMPI": library,
        "MPI4PY_MPIABI": "openmpi",
        "PYTHONPATH": str(tools.project_root),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # the control machine fetched everything; a rank never does
        "TOKENIZERS_PARALLELISM": "false",
        **({"FLOTILLA_CACHE": str(tools.root / "cache")} if tools.root else {}),
    }
