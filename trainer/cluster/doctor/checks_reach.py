"""The checks of how a host is reached, which come before all others."""

from __future__ import annotations

from trainer.cluster.doctor import judge_reach
from trainer.cluster.doctor.view import BOTH, Check, Remedy

_TRY = "`ssh -o BatchMode=yes HOST sh -s`, what ssh says where it fails"
_ENTER = "Everything is done over ssh: without it the host cannot be provisioned, nor train."

REACH_CHECKS = (
    Check(
        id="silent",
        title="The host does not answer",
        platforms=BOTH,
        why=_ENTER,
        looks=_TRY,
        judge=judge_reach.judge_silence,
        remedy=Remedy(
            by_hand="See that {host} is on, awake and in this network, and that its ansible_host, {management}, is right."
        ),
        is_quick=True,
        needs_host=False,
    ),
    Check(
        id="remote-login",
        number=2,
        title="Remote Login is off: port 22 is closed",
        platforms=BOTH,
        why=_ENTER,
        looks=_TRY,
        judge=judge_reach.judge_port,
        remedy=Remedy(
            by_hand="On {host} itself: System Settings, General, Sharing, Remote Login on, and in its (i) full disk access for "
            "remote users. On Linux: sudo systemctl enable --now ssh"
        ),
        is_quick=True,
        needs_host=False,
    ),
    Check(
        id="changed-host-key",
        title="The host's key is another one than was pinned",
        platforms=BOTH,
        why="Either the machine was set up anew, or somebody else answers at its address. Do not go on before you know which.",
        looks=_TRY,
        judge=judge_reach.judge_changed_key,
        remedy=Remedy(
            control="ssh-keygen -R {known_as} -f ~/.ssh/flotilla/known_hosts",
            playbook="ssh_mesh",
            ask_pass=True,
            by_hand="Only if you know why {host} has a new key.",
        ),
        is_quick=True,
        needs_host=False,
    ),
    Check(
        id="our-key",
        number=3,
        title="Our key is not authorised: only a password would let us in",
        platforms=BOTH,
        why="Launcher and doctor never type passwords; ranks could not be started.",
        looks=_TRY,
        judge=judge_reach.judge_key,
        remedy=Remedy(playbook="ssh_mesh", ask_pass=True),
        is_quick=True,
        needs_host=False,
    ),
    Check(
        id="unknown-host-key",
        number=3,
        title="The host's key is not pinned yet",
        platforms=BOTH,
        why="ssh would ask whether to trust it, and nobody is there to answer.",
        looks=_TRY,
        judge=judge_reach.judge_unpinned_key,
        remedy=Remedy(playbook="ssh_mesh", ask_pass=True),
        is_quick=True,
        needs_host=False,
    ),
)
