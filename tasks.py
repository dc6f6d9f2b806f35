"""The commands that people type: ``./inv TASK``, or ``invoke TASK`` in the environment. No logic lives here."""

from __future__ import annotations

import sys
from pathlib import Path

from invoke import Collection, Context, Exit, task

from tests.lab.tasks import namespace as lab
from trainer.data_tasks import namespace as data

ROOT = Path(__file__).resolve().parent
PYTHON = sys.executable


@task(
    iterable=["override"],
    optional=["resume"],
    help={
        "inventory": "hosts to train on; default inventory/hosts.yml: this machine, two ranks",
        "recipe": "name of a recipe in trainer/recipes or a .toml file; default pirate",
        "override": "section.key=value laid over the recipe; may be given several times",
        "name": "name of the run's folder in runs/; default: the recipe's",
        "dry-run": "print hostfile, plan and command; start and write nothing",
        "allow-slow-link": "train over the hosts' ordinary network if the fast link is not up, instead of refusing",
        "resume": "go on with a run that was interrupted or lost, folder or name; without a value the latest",
        "branch": "with --resume: start a new run from the other's newest checkpoint, with what -o and -r change",
    },
)
def train(
    _: Context,
    inventory: str = "inventory/hosts.yml",
    recipe: str = "pirate",
    override: list[str] | None = None,
    name: str = "",
    dry_run: bool = False,
    allow_slow_link: bool = False,
    resume: str | bool | None = None,
    branch: bool = False,
) -> None:
    """Fine-tune a model on all hosts of an inventory."""
    from trainer.control import Request, at_boundary
    from trainer.control import train as run

    request = Request(inventory, recipe, tuple(override or ()), name, allow_slow_link, resume, branch)
    _end(at_boundary(lambda: run(request, dry_run)))


@task(
    iterable=["override"],
    help={
        "inventory": "hosts to measure; default inventory/hosts.yml: this machine, two ranks",
        "recipe": "name of a recipe in trainer/recipes or a .toml file: the run that is thought of; default pirate",
        "override": "section.key=value laid over the recipe; may be given several times",
        "name": "name of the baseline's folder in baselines/; default: the recipe's",
        "quick": "fewer repeats, in less than 90 seconds",
        "compare": "measure nothing: compare this stored baseline with another; './inv baseline --compare A B' names both",
        "other": "the later of two baselines to compare; default: the latest",
    },
)
def baseline(
    _: Context,
    inventory: str = "inventory/hosts.yml",
    recipe: str = "pirate",
    override: list[str] | None = None,
    name: str = "",
    quick: bool = False,
    compare: str = "",
    other: str = "",
) -> None:
    """Measure hosts and links; tell what more bring."""
    from trainer.control import Request, at_boundary
    from trainer.control import baseline as measure

    request = Request(inventory, recipe, tuple(override or ()), name)
    _end(at_boundary(lambda: measure(request, is_quick=quick, compared=(compare, other))))


@task(
    help={
        "inventory": "hosts to rehearse on; default inventory/hosts.yml: this machine",
        "baseline": "the baseline that tells how long computing takes; default: the latest",
        "hosts": "how many of the hosts take part, such as '2,4,8': one rehearsal each; default: all",
        "steps": "steps of each rehearsal",
        "backend": "what moves the gradients: mpi or ring",
        "slow-link": "use the hosts' ordinary network, not the fast link",
    }
)
def rehearse(
    _: Context,
    inventory: str = "inventory/hosts.yml",
    baseline: str = "",
    hosts: str = "",
    steps: int = 10,
    backend: str = "mpi",
    slow_link: bool = False,
) -> None:
    """Play a run's communication without computing."""
    from trainer.control import at_boundary
    from trainer.control import rehearse as play

    _end(at_boundary(lambda: play(inventory, baseline, hosts, steps=steps, backend=backend, slow_link=slow_link)))


@task(
    help={
        "run": "folder or name of a run or a baseline; default: the latest run; './inv report RUN' means the same",
        "baseline": "the latest baseline, or the one that --run names",
    }
)
def report(_: Context, run: str = "", baseline: bool = False) -> None:
    """Make a page to look at of a run or a baseline."""
    from trainer.control import at_boundary
    from trainer.control import report as describe

    _end(at_boundary(lambda: describe(run, baseline)))


_INVENTORY_HELP = "hosts to act on; default inventory/hosts.yml: this machine"


@task(
    help={
        "inventory": _INVENTORY_HELP,
        "check": "change nothing; show what would be changed",
        "ask-pass": "ask for the hosts' ssh password: the first time, before our key is there",
        "ask-become-pass": "ask for the hosts' sudo password",
        "tags": "only these roles, such as 'ssh_mesh,thunderbolt'",
        "extra": "more options for ansible-playbook, such as '--limit mini -v'",
    }
)
def provision(
    _: Context,
    inventory: str = "inventory/hosts.yml",
    check: bool = False,
    ask_pass: bool = False,
    ask_become_pass: bool = False,
    tags: str = "",
    extra: str = "",
) -> None:
    """Make every host ready to train (ansible/site.yml)."""
    from trainer.cluster.provision import Playbook
    from trainer.control import at_boundary, play

    request = Playbook(
        name="site.yml",
        inventory=inventory,
        check=check,
        ask_pass=ask_pass,
        ask_become_pass=ask_become_pass,
        tags=tags,
        extra=extra,
    )
    _end(at_boundary(lambda: play(request)))


@task(help={"inventory": _INVENTORY_HELP, "extra": "more options for ansible-playbook"})
def verify(_: Context, inventory: str = "inventory/hosts.yml", extra: str = "") -> None:
    """Prove that the ranks meet over the fast link."""
    from trainer.cluster.provision import Playbook
    from trainer.control import at_boundary, play

    _end(at_boundary(lambda: play(Playbook(name="verify.yml", inventory=inventory, extra=extra))))


@task(
    help={
        "inventory": _INVENTORY_HELP,
        "check": "change nothing; show what would be changed",
        "ask-become-pass": "ask for the hosts' sudo password",
        "extra": "more options for ansible-playbook",
    }
)
def teardown(
    _: Context,
    inventory: str = "inventory/hosts.yml",
    check: bool = False,
    ask_become_pass: bool = False,
    extra: str = "",
) -> None:
    """Undo provision on every host (ansible/teardown.yml)."""
    from trainer.cluster.provision import Playbook
    from trainer.control import at_boundary, play

    request = Playbook(name="teardown.yml", inventory=inventory, check=check, ask_become_pass=ask_become_pass, extra=extra)
    _end(at_boundary(lambda: play(request)))


@task(help={"inventory": _INVENTORY_HELP, "json": "print all that was found as JSON"})
def doctor(_: Context, inventory: str = "inventory/hosts.yml", json: bool = False) -> None:
    """Say what is wrong on which host, and the remedy."""
    from trainer.control import at_boundary
    from trainer.control import doctor as examine

    _end(at_boundary(lambda: examine(inventory, as_json=json)))


@task(help={"inventory": "ask these hosts as well what they are busy with, whoever has started it"})
def status(_: Context, inventory: str = "") -> None:
    """Show the runs that are going on, from any terminal."""
    from trainer.control import at_boundary
    from trainer.control import status as look

    _end(at_boundary(lambda: look(inventory)))


@task(
    help={
        "run": "name of the run to stop; default: all that are going on from here",
        "inventory": "end on these hosts also ranks that nobody leads any more",
        "now": "do not wait for the step that is under way",
    }
)
def stop(_: Context, run: str = "", inventory: str = "", now: bool = False) -> None:
    """Stop a run cleanly, from any terminal."""
    from trainer.control import at_boundary
    from trainer.control import stop as end

    _end(at_boundary(lambda: end(run, inventory, now=now)))


@task(
    iterable=["prompt"],
    help={
        "run": "folder or name of a run; default: the latest",
        "prompt": "answer this and end, instead of a conversation; may be given several times",
        "base": "talk to the run's base model, without the adapter",
        "model": "talk to the model in this folder instead of a run's",
        "system": "a system message to begin with",
        "max-tokens": "longest answer, in tokens",
        "temperature": "0 always takes the likeliest word; higher is livelier",
    },
)
def chat(
    _: Context,
    run: str = "",
    prompt: list[str] | None = None,
    base: bool = False,
    model: str = "",
    system: str = "",
    max_tokens: int = 512,
    temperature: str = "0",
) -> None:
    """Talk to a trained model, or to its base."""
    from trainer.control import at_boundary
    from trainer.control import chat as talk

    _end(
        at_boundary(
            lambda: talk(
                run,
                base=base,
                model=model,
                prompts=prompt or [],
                system=system,
                max_tokens=max_tokens,
                temperature=temperature,
            )
        )
    )


@task(help={"run": "folder or name of a run; default: the latest", "out": "folder to write; default: fused/ in the run's"})
def fuse(_: Context, run: str = "", out: str = "") -> None:
    """Make one model of a run's base model and adapter."""
    from trainer.control import at_boundary
    from trainer.control import fuse as merge

    _end(at_boundary(lambda: merge(run, out)))


@task(help={"args": "options for pytest, such as '-k inventory -x'; default: the whole suite"})
def test(context: Context, args: str = "") -> None:
    """Run the test suite, two files at a time."""
    lanes = "-n 2 --dist loadfile --no-loadscope-reorder"  # most of a playbook's time is waiting
    with context.cd(str(ROOT)):
        _end(context.run(f"{PYTHON} -m pytest {lanes} {args}", warn=True, pty=sys.stdout.isatty()))


@task(help={"args": "options, such as '--steps 20 --layers 8 -1 --plot bars.png'; '--help' lists them"})
def bench(context: Context, args: str = "") -> None:
    """Compare speed and memory with mlx_lm.lora."""
    with context.cd(str(ROOT)):
        _end(context.run(f"{PYTHON} -m tests.benchmarks.peers {args}", warn=True, pty=sys.stdout.isatty()))


@task
def lint(context: Context) -> None:
    """Check style, types, imports, YAML and playbooks."""
    commands = (
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "lint-imports",
        "yamllint --strict .",
        "ansible-lint --offline --strict ansible",
    )
    with context.cd(str(ROOT)):
        failed = [c for c in commands if not context.run(f"{Path(PYTHON).parent}/{c}", warn=True)]
    if failed:
        raise Exit(f"failed: {', '.join(failed)}", 1)


def _end(code: object) -> None:
    """End the process with an exit code, or with that of a command's result."""
    raise Exit(code=int(getattr(code, "exited", code) or 0))  # type: ignore[call-overload]


namespace = Collection(
    *(train, status, stop, baseline, rehearse, report, chat, fuse, provision, verify, teardown, doctor, test, bench, lint),
    data=data,
    lab=lab,
)
