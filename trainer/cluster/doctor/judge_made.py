"""Judges of what provisioning made: our folder, the Python environment, Open MPI. All pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from trainer.cluster.doctor.view import Fault, Output, UnknownError, View, last_line

_NO_ROOM = ("No space left", "Read-only file system")
_BREW = "/opt/homebrew/bin/brew"
_FORMULAE = "open-mpi prrte pmix"
_REINSTALL = "rm -f {root}/env/complete"


def judge_provisioned(view: View) -> Fault | None:
    """Find a host without node.json, or with one that is not ours."""
    if view.cluster.is_local:
        return None
    has_environment = view.output("environment").exit_code == 0
    tags = {"tags": "node_env,open_mpi" if has_environment else "all"}
    if view.output("node").exit_code:
        return Fault(shown_by=("node",), detail=f"there is no {view.cluster.root}/node.json", values=tags)
    try:
        read_node(view)
    except UnknownError as error:
        return Fault(shown_by=("node",), detail=str(error), values=tags)
    return None


def read_node(view: View) -> dict[str, Any]:
    """Return what node.json holds; raises `UnknownError` if the host is not provisioned."""
    if view.output("node").exit_code:
        raise UnknownError("the host is not provisioned")
    node = view.table("node")
    if lacking := [key for key in ("mpirun", "libmpi", "open_mpi", "system") if not isinstance(node.get(key), str)]:
        raise UnknownError(f"node.json lacks {', '.join(lacking)}")
    return node


def judge_environment(view: View) -> Fault | None:
    """Find a host whose Python environment is missing or was not finished."""
    read_node(view)
    if view.output("environment").exit_code:
        return Fault(shown_by=("environment",), detail=f"{view.cluster.root}/env is missing, or its installation was cut short")
    return None


def judge_same_environment(view: View) -> Fault | None:
    """Find an environment that was made from another lock than most hosts'."""
    read_node(view)
    own, usual = view.text("environment").strip(), _usual(view, "environment", lambda text: text.strip())
    return Fault(shown_by=("environment",), detail=f"{own}, not {usual}") if own != usual else None


def judge_same_mpi(view: View) -> Fault | None:
    """Find an Open MPI of another version than most hosts'."""
    node, own = read_node(view), _read_version(view.text("mpirun"))
    if not own:
        raise UnknownError(f"{node['mpirun']} is not Open MPI's")
    usual = _usual(view, "mpirun", _read_version)
    if own == usual:
        return None
    mend = _mend(view, "mpirun")["upgrade"]
    return Fault(shown_by=("mpirun",), detail=f"{own}, not {usual}", values={"mend": mend})


def _usual(view: View, key: str, read: Callable[[str], str]) -> str:
    """Return what most hosts have; of equally many, what the head has."""
    outputs = [each.answers.outputs[key] for each in view.fleet.values() if key in each.answers.outputs]
    values = [value for output in outputs if output.exit_code == 0 and (value := read(output.text))]
    return Counter(values).most_common(1)[0][0]


def _read_version(text: str) -> str:
    match = re.search(r"Open MPI\) (\S+)", text)
    return match[1] if match else ""


def judge_interpreter(view: View) -> Fault | None:
    """Find an environment that claims to be complete, whose Python does not run."""
    read_node(view)
    if view.output("environment").exit_code:
        raise UnknownError("there is no environment")
    base = view.answers.outputs.get("system_python")
    if base and base.exit_code:
        raise UnknownError("the Python that it was made from is missing")
    if view.output("python").exit_code:
        return Fault(shown_by=("python",), detail=f"{view.cluster.root}/env/bin/python does not run")
    return None


def read_python(view: View) -> dict[str, Any]:
    """Return what the environment's Python says about itself; raises `UnknownError` without one."""
    read_node(view)
    answer = view.table("python")
    if not isinstance(answer.get("packages"), dict):
        raise UnknownError("the environment's Python did not tell its packages")
    return answer


def judge_packages(view: View) -> Fault | None:
    """Find packages whose version is not that of the lock: somebody installed into the environment."""
    packages = read_python(view)["packages"]
    wrong = [
        f"{name} {packages[name] or 'missing'} instead of {version}"
        for name, version in view.pins.items()
        if name in packages and packages[name] != version
    ]
    return Fault(shown_by=("python",), detail=", ".join(wrong)) if wrong else None


def judge_rosetta(view: View) -> Fault | None:
    """Find an x86 Python on a Mac, which runs under Rosetta and cannot load MLX."""
    answer = read_python(view)
    if answer.get("platform") == "darwin" and answer.get("machine") != "arm64":
        return Fault(shown_by=("python", "machine"), detail=f"the environment's Python is built for {answer.get('machine')}")
    return None


def judge_mpirun(view: View) -> Fault | None:
    """Find an mpirun that is not where node.json says, or does not run."""
    read_node(view)
    output = view.output("mpirun")
    return Fault(shown_by=("mpirun",), detail=_how(output), values=_mend(view, "mpirun")) if output.exit_code else None


def judge_not_open_mpi(view: View) -> Fault | None:
    """Find another MPI in the place of Open MPI."""
    read_node(view)
    if "Open MPI" in view.text("mpirun"):
        return None
    relink = f"{_BREW} unlink mpich; {_BREW} link --overwrite open-mpi"
    values = {"relink": relink if _is_brewed(view, "mpirun") else _REINSTALL.format(root=view.cluster.root)}
    return Fault(shown_by=("mpirun",), detail="this mpirun is not Open MPI's", values=values)


def judge_other_mpi(view: View) -> Fault | None:
    """Find another MPI first on the PATH: harmless for us, a trap for what is typed by hand."""
    text = view.output("on_path").text
    path = next((line for line in text.splitlines() if line.startswith("/")), "")
    if not path or re.search(r"Open MPI|OpenRTE|prterun", text):
        return None
    return Fault(shown_by=("on_path",), detail=f"{path} is not Open MPI's", values={"path": path})


def judge_crash(view: View) -> Fault | None:
    """Find an mpirun that ends by a signal with a single process."""
    return _judge_alone(view, crashed=True)


def judge_alone(view: View) -> Fault | None:
    """Find an mpirun that cannot even start one process here."""
    return _judge_alone(view, crashed=False)


def _judge_alone(view: View, crashed: bool) -> Fault | None:
    node, output = read_node(view), view.output("alone")
    if view.output("mpirun").exit_code or "Open MPI" not in view.text("mpirun"):
        raise UnknownError(f"{node['mpirun']} is not an Open MPI that runs")
    if any(sign in output.text for sign in _NO_ROOM) or view.output("tmp").exit_code:
        raise UnknownError("nothing can be written to /tmp")
    if output.exit_code == 0 or (output.exit_code >= 128) != crashed:
        return None
    return Fault(shown_by=("alone",), detail=_how(output), values=_mend(view, "mpirun"))


def judge_library(view: View) -> Fault | None:
    """Find a libmpi that cannot be loaded, or that is not Open MPI's: every rank would be alone."""
    read_node(view)
    if view.output("environment").exit_code or view.output("python").exit_code:
        raise UnknownError("there is no Python to load it with")
    output = view.output("libmpi")
    if output.exit_code:
        return Fault(shown_by=("libmpi",), detail=f"cannot be loaded: {last_line(output.text)}", values=_mend(view, "libmpi"))
    if "Open MPI" not in output.text:
        return Fault(shown_by=("libmpi",), detail="is not Open MPI's", values=_mend(view, "libmpi"))
    return None


def _mend(view: View, what: str) -> dict[str, str]:
    """Return the words that put back what the environment or Homebrew owns."""
    if _is_brewed(view, what):
        return {"mend": f"{_BREW} reinstall open-mpi prrte", "upgrade": f"{_BREW} upgrade {_FORMULAE}"}
    again = _REINSTALL.format(root=view.cluster.root)
    return {"mend": again, "upgrade": again}


def _is_brewed(view: View, what: str) -> bool:
    return not PurePosixPath(read_node(view)[what]).is_relative_to(view.cluster.root)


def _how(output: Output) -> str:
    if output.exit_code >= 128:
        return f"ended by signal {output.exit_code - 128}"
    return f"ended with exit code {output.exit_code}: {last_line(output.text) or 'without a word'}"
