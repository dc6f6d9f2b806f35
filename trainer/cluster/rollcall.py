"""What `./inv train` asks of a cluster before it starts: who is there and by which link, and the doctor's quick look."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlow

from trainer.cluster.doctor import Finding
from trainer.cluster.doctor import quick as look_quickly
from trainer.cluster.inventory import Cluster
from trainer.cluster.nodes import Fleet, muster
from trainer.errors import ClusterError

PATIENCE_S = 2.0  # for the doctor, once the hosts have answered
# Without these no run comes to its end; whatever else is found is told, and may be meant.
_IN_THE_WAY = frozenset({"environment", "other-environment", "disk-full", "tmp"})
Muster = Callable[[Cluster, bool, Callable[[str], None]], Fleet]
Look = Callable[[Cluster], list[Finding]]


def call_roll(
    cluster: Cluster, allow_slow_link: bool, say: Callable[[str], None], muster: Muster = muster, look: Look = look_quickly
) -> Fleet:
    """Return the fleet that `nodes.muster` returns, while the doctor looks at the same hosts at the same time.

    Raises the `ClusterError` of `muster`, with what the doctor has to say about it; or one of its own, where a host lacks
    what every run needs. Other findings go to ``say``. Whether the fast link will do is for `muster` alone to decide.
    """
    with _Doctor(look, cluster) as doctor:
        try:
            fleet = muster(cluster, allow_slow_link, say)
        except ClusterError as error:
            remedies = _tell(each for each in doctor.findings() if each.severity == "problem")
            raise ClusterError("\n".join([str(error), *remedies])) from error
        found = [each for each in doctor.findings() if not each.is_about_link]
    fatal = [each for each in found if each.check in _IN_THE_WAY]
    if fatal:
        raise ClusterError("\n".join(["nothing was sent or started:", *_tell(fatal)]))
    for line in _tell(found):
        say(line)
    return fleet


class _Doctor:
    """The doctor's look in a thread of its own, which nobody waits for longer than `PATIENCE_S`."""

    def __init__(self, look: Look, cluster: Cluster) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._future: Future[list[Finding]] = self._pool.submit(look, cluster)

    def __enter__(self) -> _Doctor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False)

    def findings(self) -> list[Finding]:
        """Return what was found; nothing if the hosts take too long to tell."""
        try:
            return self._future.result(PATIENCE_S)
        except TooSlow:
            return []


def _tell(findings: Iterable[Finding]) -> list[str]:
    """Return a line for each finding, and below it the way out."""
    lines: dict[str, None] = {}  # what mends several findings is told once
    for finding in findings:
        lines[f"{finding.host}: {finding.title} ({finding.detail})"] = None
        lines |= dict.fromkeys(f"  {way}" for way in (finding.by_hand, finding.remedy) if way)
    return list(lines)
