"""What a launch would do: exact commands and files, from nothing but the arguments."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path, PurePath
from typing import Any

import pytest

from trainer.cluster import plan as plan_module
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.openmpi import OpenMPI
from trainer.cluster.plan import Launch, RunPlan, Tools, make_launch
from trainer.cluster.sessions import name_session
from trainer.config import RunConfig, parse_config
from trainer.fingerprint import hash_model
from trainer.recipe import load_config

RUN = Path("/home/me/flotilla/runs/20260101-120000-pirate")
SESSION = str(name_session(RUN / "plan.json", 1))
LOCAL = Cluster(hosts=(Host(name="this-machine", slots=2, management="localhost", is_local=True),))
PAIR = Cluster(
    hosts=(
        Host(name="studio", slots=3, management="10.0.0.2", is_local=False, user="me", port=2222),
        Host(name="mini", slots=1, management="mini.local", is_local=False),
    )
)
FAST = dataclasses.replace(
    PAIR,
    hosts=tuple(dataclasses.replace(host, fast=f"10.99.0.{n}") for n, host in enumerate(PAIR.hosts, 1)),
    network=ipaddress.ip_network("10.99.0.0/24"),
)
MIXED = Cluster(hosts=(*LOCAL.hosts, PAIR.hosts[1]))

ENVIRONMENT = {
    "MLX_MPI_LIBNAME": "/env/lib/libmpi.so.40",
    "MPI4PY_LIBMPI": "/env/lib/libmpi.so.40",
    "MPI4PY_MPIABI": "openmpi",
    "PYTHONPATH": "/home/me/flotilla",
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
EXPORTS = [word for name, value in ENVIRONMENT.items() for word in ("-x", f"{name}={value}")]


def make_plan(world_size: int, run_dir: Path = RUN, config: RunConfig | None = None) -> RunPlan:
    return RunPlan(
        name="pirate",
        run_dir=run_dir,
        world_size=world_size,
        model_path=Path("/home/me/.cache/flotilla/models/smollm2"),
        data_path=Path("/home/me/flotilla/datasets/pirate"),
        fingerprints={"model": "a" * 64, "data": "b" * 64},
        config=config or RunConfig(),
    )


def make_tools(is_root: bool = False) -> Tools:
    mpi = OpenMPI(mpirun=Path("/env/bin/mpirun"), libmpi=Path("/env/lib/libmpi.so.40"), version="5.0.11")
    return Tools(mpi=mpi, python=Path("/env/bin/python"), project_root=Path("/home/me/flotilla"), is_root=is_root)


@pytest.fixture(autouse=True)
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are those of Linux unless a test says otherwise."""
    monkeypatch.setattr(sys, "platform", "linux")


def launch_on(cluster: Cluster, is_root: bool = False, run_dir: Path = RUN) -> Launch:
    return make_launch(cluster, make_plan(cluster.world_size, run_dir), make_tools(is_root))


QUESTIONLESS = ("--prtemca", "plm_ssh_args", "-o BatchMode=yes -o ConnectTimeout=10")


def expected(
    world_size: int, transports: str, *, root: tuple[str, ...] = (), mac: tuple[str, ...] = (), links: tuple[str, ...] = ()
) -> list[str]:
    command = ["/env/bin/mpirun", *root, "-np", str(world_size), "--hostfile", f"{RUN}/hostfile"]
    command += ["--map-by", "slot", "--bind-to", "none", "--output", "tag", *mac]
    command += ["--prtemca", "prte_tmpdir_base", SESSION, *links]
    command += ["--mca", "pml", "ob1", "--mca", "btl", transports, "--mca", "mpi_yield_when_idle", "1"]
    return [*command, *EXPORTS, "/env/bin/python", "-P", "-m", "trainer", "train", "--plan", f"{RUN}/plan.json"]


def test_sessions() -> None:
    """Open MPI's folder is short, in /tmp, and no other run's nor that of another start of the same run."""
    plans = [RUN / "plan.json", RUN.with_name("20260101-120000-pirate-2") / "plan.json"]
    names = [str(name_session(plan, attempt)) for plan in plans for attempt in (1, 2, 11)]
    assert len(set(names)) == 6
    assert all(re.fullmatch(r"/tmp/flotilla-[0-9a-f]{8}\.\d+", name) for name in names)


def test_local_command() -> None:
    """Two ranks on this machine talk through shared memory; this is the whole command and its environment."""
    launch = launch_on(LOCAL)
    assert list(launch.argv) == expected(2, "self,sm")
    assert launch.env == ENVIRONMENT


def test_remote_command() -> None:
    """Ranks on two hosts talk over TCP as well; ssh between the hosts asks nobody anything."""
    assert list(launch_on(PAIR).argv) == expected(4, "self,sm,tcp", links=QUESTIONLESS)


def test_both_layers_keep_to_the_fast_network() -> None:
    """With a known network Open MPI's daemons and its ranks use that alone, and the hostfile has the addresses there."""
    launch = launch_on(FAST)
    links = ("--prtemca", "prte_if_include", "10.99.0.0/24", "--mca", "btl_tcp_if_include", "10.99.0.0/24")
    assert list(launch.argv) == expected(4, "self,sm,tcp", links=(*QUESTIONLESS, *links))
    assert launch.files["hostfile"] == "10.99.0.1 slots=3\n10.99.0.2 slots=1\n"


def test_on_nodes() -> None:
    """On nodes everything of ours, caches too, is below one folder, where every rank starts: homes differ from host to host."""
    tools = dataclasses.replace(make_tools(), root=Path("/opt/flotilla"))
    launch = make_launch(FAST, make_plan(4), tools)
    assert launch.argv[launch.argv.index("--wdir") + 1] == "/opt/flotilla"
    assert launch.env == {**ENVIRONMENT, "FLOTILLA_CACHE": "/opt/flotilla/cache"}


def test_one_remote_host_is_enough() -> None:
    """As soon as one host is not this machine there is TCP."""
    assert list(launch_on(MIXED).argv) == expected(3, "self,sm,tcp", links=QUESTIONLESS)


def test_as_root() -> None:
    """Root has to say so to mpirun."""
    assert list(launch_on(LOCAL, is_root=True).argv) == expected(2, "self,sm", root=("--allow-run-as-root",))


def test_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS the daemons on the other hosts stay attached to their ssh."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert list(launch_on(PAIR).argv) == expected(4, "self,sm,tcp", mac=("--leave-session-attached",), links=QUESTIONLESS)


@pytest.mark.parametrize("cluster", [LOCAL, PAIR, MIXED], ids=["local", "pair", "mixed"])
def test_only_absolute_paths(cluster: Cluster) -> None:
    """Whatever in the command or its environment is a path is absolute, so that neither PATH nor the folder matter."""
    launch = launch_on(cluster)
    words = [word.partition("=")[2] or word for word in (*launch.argv, *launch.env.values())]
    assert [word for word in words if "/" in word and not PurePath(word).is_absolute()] == []
    assert [word for word in words if word in ("mpirun", "python", "python3")] == []


def test_hostfile() -> None:
    """The hostfile names each host's address and slots in rank order."""
    assert launch_on(PAIR).files["hostfile"] == "10.0.0.2 slots=3\nmini.local slots=1\n"
    assert launch_on(MIXED).files["hostfile"] == "localhost slots=2\nmini.local slots=1\n"


def test_files() -> None:
    """A run's folder gets hostfile, recipe and plan; recipe and plan hold the same configuration, every key of it."""
    config = load_config("pirate", ["train.seed=7", 'style.markers=["arr", "*in\'", "o\' \\"quoted\\" 🏴"]'])
    launch = make_launch(LOCAL, make_plan(2, config=config), make_tools())
    assert list(launch.files) == ["hostfile", "config.toml", "plan.json"]
    assert parse_config(tomllib.loads(launch.files["config.toml"])) == config
    assert RunPlan.parse(launch.files["plan.json"]).config == config
    assert launch.files["plan.json"] == launch.plan.render()


@pytest.mark.parametrize("recipe", ["pirate", "pirate-mistral"])
def test_plan_round_trip(recipe: str) -> None:
    """A rank reads from plan.json exactly the plan that the launcher had."""
    plan = make_plan(3, Path("/Volumes/My Disk/runs/ü 'quoted' \"x\""), load_config(recipe))
    assert RunPlan.parse(plan.render()) == plan
    assert RunPlan.parse(plan.render()).render() == plan.render()


def test_plan_of_another_version() -> None:
    """A plan of another version is refused, with both versions."""
    table = {**json.loads(make_plan(2).render()), "version": 2}
    with pytest.raises(AssertionError) as failure:
        RunPlan.parse(json.dumps(table))
    assert str(failure.value) == "plan.json has version 2, this trainer 1"


def test_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal arguments give equal launches, and nothing is looked up: no file, no variable, no program."""

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("make_launch looked something up")

    first = launch_on(PAIR)
    monkeypatch.setattr("builtins.open", forbidden)
    monkeypatch.setattr("os.stat", forbidden)
    monkeypatch.setattr("os.getcwd", forbidden)
    monkeypatch.setattr("os.environ", None)
    monkeypatch.setattr("subprocess.Popen", forbidden)
    monkeypatch.setattr("socket.gethostname", forbidden)
    second = launch_on(PAIR)
    monkeypatch.undo()
    assert second == first


def test_frozen() -> None:
    """A plan and a launch cannot be changed once they are made."""
    launch = launch_on(LOCAL)
    for thing, name in ((launch, "argv"), (launch.plan, "run_dir"), (make_tools(), "python")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, None)


@pytest.mark.parametrize("run_dir", [RUN, Path("/Volumes/My Disk/it's $HOME/runs/a & b"), Path("/ü/*")], ids=str)
def test_describe(run_dir: Path) -> None:
    """A dry run shows the folder, each file in full, and a command that a shell takes apart into the same words."""
    launch = launch_on(PAIR, run_dir=run_dir)
    sections = {}
    for section in launch.describe().removeprefix("# ").split("\n# "):
        title, _, text = section.partition("\n")
        sections[title] = text.removesuffix("\n") if title != "command" else text
    assert list(sections) == ["run folder", "hostfile", "config.toml", "plan.json", "command"]
    assert sections["run folder"] == str(run_dir)
    assert {name: sections[name] + "\n" for name in launch.files} == launch.files
    command = sections["command"]
    assert command.endswith("\n")
    assert command.count("\n") == 1
    assert tuple(shlex.split(command)) == launch.argv


def test_fingerprint(tmp_path: Path) -> None:
    """A model's fingerprint changes with its weights, settings, tokenizer and code, and with nothing else in the folder."""
    for name in ("model.safetensors", "config.json", "chat_template.jinja", "tokenizer.model", "merges.txt", "modeling.py"):
        (tmp_path / name).write_text("x")
    seen = {hash_model(tmp_path)}
    for name in ("._model.safetensors", ".gitattributes", ".cache.json", "README.md"):
        (tmp_path / name).write_text("whatever macOS and others leave behind")
    (tmp_path / "more.json").mkdir()
    assert {hash_model(tmp_path)} == seen
    for path in sorted(tmp_path.glob("[!.]*[!d]")):
        if path.is_file():
            path.write_text("y")
            seen.add(hash_model(tmp_path))
    assert len(seen) == 7


def test_no_machine_in_the_source() -> None:
    """The plan itself brings no path along; where Open MPI's sessions are is `trainer.cluster.sessions`'s to say."""
    source = Path(plan_module.__file__).read_text("utf-8")
    assert [part for part in source.split('"') if part.startswith("/")] == []
