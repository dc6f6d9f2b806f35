"""Judges of what must hold before a host can be asked anything: our ssh arrives, and is let in."""

from __future__ import annotations

from trainer.cluster.doctor.view import Fault, View, last_line

_CLOSED = ("Connection refused",)
_DENIED = ("Permission denied", "Too many authentication failures")
_CHANGED = ("REMOTE HOST IDENTIFICATION HAS CHANGED",)
_UNPINNED = ("Host key verification failed", "host key is known for", "key fingerprint is")


def judge_port(view: View) -> Fault | None:
    """Find a host that is there but has no sshd: "connection refused"."""
    return _find(view, "port")


def judge_key(view: View) -> Fault | None:
    """Find a host that would let us in by password only."""
    return _find(view, "key")


def judge_changed_key(view: View) -> Fault | None:
    """Find a host whose host key is another one than was pinned."""
    return _find(view, "changed")


def judge_unpinned_key(view: View) -> Fault | None:
    """Find a host whose host key was never seen."""
    return _find(view, "unpinned")


def judge_silence(view: View) -> Fault | None:
    """Find a host that does not answer, or that nothing leads to."""
    return _find(view, "silence")


def classify(failure: str) -> str:
    """Return which of the judges above a failure of ssh belongs to; empty for none."""
    kinds = {"changed": _CHANGED, "unpinned": _UNPINNED, "key": _DENIED, "port": _CLOSED}
    found = (kind for kind, signs in kinds.items() if any(sign in failure for sign in signs))
    return next(found, "silence") if failure else ""


def _find(view: View, kind: str) -> Fault | None:
    failure = view.answers.failure
    return Fault(detail=last_line(failure)) if classify(failure) == kind else None
