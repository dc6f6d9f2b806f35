"""From views to findings: every check that applies to a host is asked about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainer.cluster.doctor.checks import CHECKS
from trainer.cluster.doctor.view import Check, Fault, Finding, Severity, UnknownError, View, shorten

EVIDENCE_LINES = 4
EVIDENCE_WIDTH = 300
# What an answer that nobody foresaw may raise: it costs one check, never the report.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a check said about a host: nothing wrong, or a finding, which may be that nobody knows."""

    check: Check
    host: str
    finding: Finding | None


def judge_all(fleet: Mapping[str, View], only_quick: bool = False) -> list[Result]:
    """Return the results of all checks on all hosts to which they apply, in the table's order."""
    checks = [check for check in CHECKS if check.is_quick or not only_quick]
    return [
        Result(check=check, host=view.host.name, finding=_judge(check, view))
        for check in checks
        for view in _select(check, fleet)
    ]


def _select(check: Check, fleet: Mapping[str, View]) -> Iterable[View]:
    """Yield the hosts that a check is about: without an answer, only ssh is judged."""
    for view in fleet.values():
        if not check.needs_host or (view.is_reached and view.system in check.platforms and not _is_idle(check, view)):
            yield view


def _is_idle(check: Check, view: View) -> bool:
    """Whether a check has nothing to say by the inventory: one host has no peers, a checkout needs no provisioning."""
    if view.cluster.is_local:
        return check.id in _ONLY_PROVISIONED
    if check.id in _ONLY_BRIDGE and view.cluster.mode != "bridge":
        return True
    return check.id in _ONLY_FAST and not view.host.fast


_ONLY_BRIDGE = {"bridge-service", "bridge-address", "wrong-subnet"}
_ONLY_FAST = {
    *("cable", "loop", "local-network", "packet-filter", "wrong-link", "route"),
    *("no-address", "link-down", "no-carrier", *_ONLY_BRIDGE),
}
_ONLY_PROVISIONED = {
    *("not-provisioned", "environment", "other-environment", "broken-environment", "version-skew", "other-open-mpi"),
    *("no-mpirun", "not-open-mpi", "mpirun-crash", "mpirun-fails", "no-libmpi", "rosetta", "mesh", "peer", "sudo"),
    *_ONLY_FAST,
}


def _judge(check: Check, view: View) -> Finding | None:
    try:
        fault = check.judge(view)
    except UnknownError as error:
        return _tell(check, view, Fault(detail=str(error)), "unknown")
    except _UNREADABLE as error:
        return _tell(check, view, Fault(detail=f"its answers cannot be read ({type(error).__name__})"), "unknown")
    return _tell(check, view, fault, check.severity) if fault else None


def _tell(check: Check, view: View, fault: Fault, severity: Severity) -> Finding:
    is_known = severity != "unknown"
    outputs = [view.answers.outputs[key] for key in fault.shown_by if key in view.answers.outputs]
    quotes = [*fault.quotes, *((output.command, output.text) for output in outputs)]
    if not check.needs_host and is_known:
        quotes = [(view.answers.command, view.answers.failure)]
    return Finding(
        check=check.id,
        number=check.number,
        host=view.host.name,
        title=check.title,
        severity=severity,
        detail=fault.detail,
        evidence=tuple((command, shorten(said, EVIDENCE_LINES, EVIDENCE_WIDTH)) for command, said in quotes),
        why=check.why,
        remedy=check.remedy.render(view, fault.values) if is_known else "",
        by_hand=check.remedy.explain(view, fault.values) if is_known else "",
        is_about_link=check.id in _ONLY_FAST,
    )
