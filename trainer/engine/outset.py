"""What the ranks settle before anything is loaded: each host is theirs, and all have the same software, plan and files."""

from __future__ import annotations

import hashlib
import os
import socket
import time

from trainer.cluster.lock import HOST_LOCK, Lock, find_holder
from trainer.cluster.plan import RunPlan
from trainer.comm.agree import check_agreement, describe_software
from trainer.comm.group import Comm
from trainer.data.formats import SPLITS
from trainer.errors import ClusterError
from trainer.fingerprint import hash_files, hash_model

_LOCK_PATIENCE_S = 3.0  # for ranks of an earlier attempt that are about to be gone


def agree_on(plan: RunPlan, comm: Comm) -> dict[str, str]:
    """Return the software's versions after all ranks agree on them, the plan, and what lies at its paths; a collective."""
    seen = {"data": hash_files(plan.data_path, [f"{split}.jsonl" for split in SPLITS])}
    if comm.is_first_on_host:  # the ranks of one host read the same files
        seen["model"] = hash_model(plan.model_path)
    software = describe_software()
    facts = {"configuration": hashlib.sha256(plan.render().encode()).hexdigest(), **software, **seen}
    check_agreement(comm, facts, plan.fingerprints)
    return software


def claim_host(plan: RunPlan, comm: Comm) -> Lock:
    """Take hold of each host for the run, on its first rank; a collective. Raises `ClusterError` if one is taken.

    The control machine has its own lock; this one stands for ranks that another machine has started, or nobody leads any more.
    """
    lock = Lock(plan.run_dir.parent / HOST_LOCK)
    problem, host = "", socket.gethostname()
    about = {"run": str(plan.run_dir), "pid": os.getpid(), "host": host, "since": time.time()}
    if comm.is_first_on_host and not lock.take(about, _LOCK_PATIENCE_S):
        holder = find_holder(lock.path) or {}
        problem = f"{host} is busy with the run {holder.get('run', '?')} (process {holder.get('pid', '?')}); ./inv stop ends it"
    if problems := [each for each in comm.all_gather(problem) if each]:
        raise ClusterError("\n".join(problems))
    return lock
