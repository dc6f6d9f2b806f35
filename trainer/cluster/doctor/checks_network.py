"""The checks of the ways between hosts."""

from __future__ import annotations

from trainer.cluster.doctor import judge_link, judge_network
from trainer.cluster.doctor.view import BOTH, DARWIN, LINUX, Check, Remedy

_SLOW = "Without it the gradients would go over Wi-Fi, many times slower; a run refuses to start."
_LINK = "`ip -j addr`, or `ifconfig -a`"

NETWORK_CHECKS = (
    Check(
        id="no-address",
        number=15,
        title="The fast address is on no interface",
        platforms=BOTH,
        why=_SLOW,
        looks=_LINK,
        judge=judge_link.judge_address,
        remedy=Remedy(playbook="thunderbolt"),
        is_quick=True,
    ),
    Check(
        id="wrong-subnet",
        number=15,
        title="The fast interface is in another network than the inventory says",
        platforms=BOTH,
        why="The hosts' packets to each other take another way, or none.",
        looks=_LINK,
        judge=judge_link.judge_subnet,
        remedy=Remedy(playbook="thunderbolt"),
        is_quick=True,
    ),
    Check(
        id="link-down",
        title="The fast interface is switched off",
        platforms=BOTH,
        why=_SLOW,
        looks=_LINK,
        judge=judge_link.judge_down,
        remedy=Remedy(playbook="thunderbolt"),
        is_quick=True,
    ),
    Check(
        id="no-carrier",
        title="Nothing is connected to the fast interface",
        platforms=BOTH,
        why=_SLOW,
        looks=_LINK,
        judge=judge_link.judge_carrier,
        remedy=Remedy(by_hand="Plug the fast cable of {host} in, at both ends; see that the machine at the other end is on."),
        is_quick=True,
    ),
    Check(
        id="route",
        number=15,
        title="The route to a peer goes over another interface",
        platforms=BOTH,
        why="A VPN, or a route set by hand, takes the packets away from the fast link.",
        looks="`ip route get PEER`, or `route -n get PEER`, for every fast address",
        judge=judge_link.judge_route,
        remedy=Remedy(command="{undo}", by_hand="If a VPN sets it again, end the VPN."),
    ),
    Check(
        id="mesh",
        number=3,
        title="A node cannot log in to another one without a question",
        platforms=BOTH,
        why="mpirun starts its daemons by ssh from node to node; a question is never answered, and the run hangs.",
        looks="on every host, `ssh -o BatchMode=yes ADDRESS true` for each host's both addresses, its own included",
        judge=judge_network.judge_mesh,
        remedy=Remedy(playbook="ssh_mesh"),
    ),
    Check(
        id="peer",
        title="A node does not reach another one",
        platforms=BOTH,
        why="All ranks talk to all others.",
        looks="the same, where both hosts answer us and their links are up",
        judge=judge_network.judge_peers,
        remedy=Remedy(
            playbook="thunderbolt",
            by_hand="First see that the cables lead where they should, and that no firewall refuses port 22.",
        ),
    ),
    Check(
        id="wrong-link",
        number=17,
        title="Bytes for the fast address leave by another interface",
        platforms=BOTH,
        why="MPI would go the same way: the same job took 274 s over Wi-Fi and 11 s over Thunderbolt.",
        looks="every interface's byte counters, before and after 4 MiB are sent to a peer's fast address",
        judge=judge_link.judge_counters,
        remedy=Remedy(playbook="thunderbolt", by_hand="Mend what else is found about routes and addresses first; end VPNs."),
    ),
    Check(
        id="local-network",
        number=18,
        title="macOS keeps Python off the local network",
        platforms=(DARWIN,),
        why='Since macOS 15 a program needs a permission, unless started from Terminal.app or over ssh: "No route to host".',
        looks="the environment's Python and `nc` connect to every fast address: nc gets through, Python does not",
        judge=judge_network.judge_local_network,
        remedy=Remedy(
            by_hand="Start ./inv from Terminal.app or over ssh, not from another terminal, tmux or an editor; or allow it in "
            "System Settings, Privacy & Security, Local Network."
        ),
    ),
    Check(
        id="packet-filter",
        number=19,
        title="A firewall throws away packets of the fast link",
        platforms=(LINUX,),
        why="ssh gets through, but MPI's connections go to free ports and are never answered.",
        looks="the other hosts connect to a port where nobody listens: a refusal is right, silence is a firewall",
        judge=judge_network.judge_filter,
        remedy=Remedy(command="{allow}"),
    ),
)
