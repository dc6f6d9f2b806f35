"""The probe's script: one text for ``sh -s`` that runs every command of a host, each within its time, and frames what it says.

Nothing need be installed over there, no file is written but one in /tmp to see whether that can be done, and every
command has an absolute path: an ssh session's PATH is short.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainer.cluster.doctor import onhost
from trainer.cluster.doctor.view import BOTH, DARWIN, LINUX
from trainer.cluster.inventory import Cluster, Host

MAX_BYTES = 4_000_000
FROM_NODE = ("mpirun", "libmpi")
MESH_TIMEOUT_S = 3
BUSY_TIMEOUT_S = 5  # with the first try and the pauses between starts it fits into what the item may take
_WITHIN = "-o BatchMode=yes -o ConnectTimeout="
OPTIONS = f"{_WITHIN}{MESH_TIMEOUT_S}"
CONFIG = "ls ~/.ssh/flotilla/config"
NETCAT = "/usr/bin/nc -z -G 2 {address} {port}"
ROUTES = {LINUX: "ip route get {address}; ip route show to match {address}", DARWIN: "/sbin/route -n get {address}"}
COUNTED_BLOCKS = 64  # of 64 KiB: far above what else is said on an idle link within a second


@dataclass(frozen=True, kw_only=True)
class Item:
    """One command of the probe: a shell's text, the systems that have it, and the seconds that it may take.

    ``told`` is what a person would type for the same, where the text is more than that; it may hold the names of
    `FROM_NODE` in capitals.
    """

    key: str
    text: str
    systems: tuple[str, ...] = BOTH
    limit_s: int = 4
    is_quick: bool = False
    is_slow: bool = False
    told: str = ""

    @property
    def shown(self) -> str:
        """The command as evidence."""
        return self.told or self.text.removeprefix("exec ")


_HEAD = """\
mark={mark}
session_path=$PATH; export session_path
LC_ALL=C; LANG=C; PATH=/usr/bin:/bin:/usr/sbin:/sbin; export LC_ALL LANG PATH
if [ -x /usr/bin/sw_vers ]; then system=Darwin; else system=$(uname -s); fi
if [ -x /usr/bin/timeout ]; then
  limit() {{ /usr/bin/timeout -k 1 "$@"; }}
elif [ -x /usr/bin/perl ]; then
  limit() {{ /usr/bin/perl -e '{perl}' "$@"; }}
else
  limit() {{ shift; "$@"; }}
fi
ask() {{ # SYSTEMS KEY SECONDS TEXT
  case " $1 " in *" $system "*) ;; *) return 0 ;; esac
  printf '\\n%s begin %s\\n' "$mark" "$2"
  limit "$3" /bin/sh -c "$4" </dev/null 2>&1
  printf '\\n%s end %s %d\\n' "$mark" "$2" $?
}}
printf '\\n%s begin system\\n%s\\n\\n%s end system 0\\n' "$mark" "$system" "$mark"
"""
_PERL = (  # macOS has no timeout; the command is a process group of its own, so that all of it ends
    "my $s = shift; my $p = fork; if (!$p) { setpgrp; exec @ARGV; exit 127 } "
    "$SIG{ALRM} = sub { kill 9, -$p; exit 124 }; alarm $s; waitpid $p, 0; "
    "exit($? & 127 ? 128 + ($? & 127) : $? >> 8)"
)
# the slow group writes into the pipe while the other is gathered: two at a time without a file
_TAIL = "slow | { quick=$(quick); cat; printf '%s\\n' \"$quick\"; } | head -c " + str(MAX_BYTES) + "\n"


def make_script(cluster: Cluster, host: Host, mark: str, only_quick: bool = False) -> str:
    """Return the script for ``host``; ``mark`` begins the lines that frame an output, and must be none that can be guessed."""
    items = [item for item in list_items(cluster, host) if item.is_quick or not only_quick]
    groups = {name: [item for item in items if item.is_slow == (name == "slow")] for name in ("slow", "quick")}
    functions = "".join(f"{name}() {{\n{''.join(map(_ask, group))}:\n}}\n" for name, group in groups.items())
    return _HEAD.format(mark=shlex.quote(mark), perl=_PERL) + functions + _TAIL


def list_items(cluster: Cluster, host: Host) -> list[Item]:
    """Return the commands for ``host``, in the order in which they run."""
    root, python = str(cluster.root), f"{cluster.root}/env/bin/python"
    return [*_ours(root, python), *_machine(root), *_darwin(), *_ways(cluster, host, root, python)]


def _ask(item: Item) -> str:
    return f"ask {shlex.quote(' '.join(item.systems))} {item.key} {item.limit_s} {shlex.quote(item.text)}\n"


def _ours(root: str, python: str) -> list[Item]:
    """What provisioning made: our folder, the environment, Open MPI."""
    mpirun, libmpi = _from_node(root, "mpirun"), _from_node(root, "libmpi")
    allow = '$([ "$(id -u)" != 0 ] || echo --allow-run-as-root)'
    options = "--prtemca prte_tmpdir_base /tmp -np 1 /bin/hostname"
    alone = f'mpirun={mpirun}; cd /; exec "$mpirun" {allow} {options}'
    load = f"{python} -I -c {shlex.quote(onhost.LIBRARY)}"
    return [
        Item(key="node", text=f"cat {root}/node.json", is_quick=True),
        Item(key="environment", text=f"ls -d {root}/env/complete >/dev/null && readlink {root}/env", is_quick=True),
        Item(key="python", text=f"{python} -I -c {shlex.quote(onhost.VERSIONS)}", limit_s=6, is_slow=True),
        Item(key="mpirun", text=f'mpirun={mpirun}; exec "$mpirun" --version', is_slow=True, told="MPIRUN --version"),
        Item(key="alone", text=alone, limit_s=8, is_slow=True, told=f"cd / && MPIRUN {options}"),
        Item(key="libmpi", text=f'libmpi={libmpi}; exec {load} "$libmpi"', is_slow=True, told=f"{load} LIBMPI"),
        Item(
            key="on_path",
            text="PATH=$session_path; command -v mpirun && mpirun --version 2>&1 | head -n 2",
            told="command -v mpirun && mpirun --version",
        ),
    ]


def _from_node(root: str, name: str) -> str:
    """Return the shell's words for a value of node.json, which is one line that we wrote."""
    return f'$(sed -n \'s/.*"{name}": *"\\([^"]*\\)".*/\\1/p\' {root}/node.json)'


def _machine(root: str) -> list[Item]:
    """What the machine is and how it does."""
    manager = "for m in apt-get dnf zypper pacman; do command -v $m && exit; done; exit 1"
    touch = 'f=/tmp/.flotilla-doctor.$$; echo x >"$f" && rm "$f"'
    disk = " || ".join(f"df -Pk {folder}" for folder in (root, *PurePosixPath(root).parents))
    return [
        Item(key="clock", text="date +%s", is_quick=True),
        Item(key="machine", text="uname -m"),
        Item(key="user", text="id -un; id -Gn"),
        Item(key="sudo", text="exec /usr/bin/sudo -n true", is_quick=True),
        Item(key="disk", text=disk, is_quick=True),
        Item(key="tmp", text=touch, is_quick=True),
        Item(key="tmpdir", text='echo "$TMPDIR"'),
        Item(key="processes", text="exec ps -axww -o pid= -o ppid= -o command=", is_quick=True),
        Item(key="glibc", text="getconf GNU_LIBC_VERSION", systems=(LINUX,)),
        Item(key="memory", text="cat /proc/meminfo", systems=(LINUX,)),
        Item(key="system_python", text=f"/usr/bin/python3 -I -c {shlex.quote(onhost.VENV)}", systems=(LINUX,)),
        Item(key="manager", text=manager, systems=(LINUX,)),
        Item(key="filters", text="ls /usr/sbin/ufw /usr/bin/firewall-cmd 2>/dev/null; :", systems=(LINUX,)),
        Item(key="interfaces", text="exec ip -j addr", systems=(LINUX,), is_quick=True),
    ]


def _darwin() -> list[Item]:
    """What only a Mac has."""
    brew, service = "/opt/homebrew/bin/brew", '"Thunderbolt Bridge"'
    setup, packages = "exec /usr/sbin/networksetup", "open-mpi prrte pmix hwloc mpich"
    versions = f"HOMEBREW_NO_AUTO_UPDATE=1 HOMEBREW_NO_ANALYTICS=1 {brew} list --versions {packages}"
    profile = "/usr/sbin/system_profiler SPThunderboltDataType -json"
    texts = {
        "macos": ("exec /usr/bin/sw_vers", False),
        "tools": ("ls /Library/Developer/CommandLineTools/usr/bin/git", False),
        "brew": (f"ls -ld /opt/homebrew {brew}", False),
        "brewed": (f"{versions} 2>/dev/null; :", False),
        "memory": ("exec /usr/sbin/sysctl hw.memsize", False),
        "wired": ("exec /usr/sbin/sysctl iogpu.wired_limit_mb", False),
        "power": ("exec /usr/bin/pmset -g", True),
        "firewall": ("exec /usr/libexec/ApplicationFirewall/socketfilterfw --getglobalstate", True),
        "ports": (f"{setup} -listallhardwareports", False),
        "services": (f"{setup} -listnetworkserviceorder", True),
        "bridge": (f"{setup} -getinfo {service}", True),
        "interfaces": ("exec /sbin/ifconfig -a", True),
        "thunderbolt": (f"{profile} 2>/dev/null", False),
    }
    told = {"brewed": versions, "thunderbolt": profile}
    return [
        Item(key=key, text=text, systems=(DARWIN,), limit_s=8, is_quick=quick, told=told.get(key, ""))
        for key, (text, quick) in texts.items()
    ]


def _ways(cluster: Cluster, host: Host, root: str, python: str) -> list[Item]:
    """The ways from this host to all: ssh between the nodes, and the fast link."""
    del root
    peers = _rotate(cluster.hosts, host)
    fast = [(peer.name, str(peer.fast), peer.port or 22) for peer in peers if peer.fast and peer is not host]
    mesh = _mesh([(peer.name, address) for peer in peers for address in dict.fromkeys((peer.management, peer.fast)) if address])
    items = [Item(key="mesh", text=mesh, limit_s=11)]  # beside the slow ones: with a host that hangs it takes as long as they
    if fast and host.fast:
        words = " ".join(f"{name} {address} {port}" for name, address, port in fast)
        connect = f"p={python}; [ -x $p ] || p=/usr/bin/python3; exec $p -I -c {shlex.quote(onhost.CONNECT)} {words}"
        items.append(Item(key="connect", text=connect, limit_s=6, is_slow=True))
        items.append(Item(key="nc", text=_each(fast, NETCAT), systems=(DARWIN,), is_slow=True))
        marked = {**ROUTES, LINUX: ROUTES[LINUX] + ' | sed "s/^/| /"'}
        items += [Item(key="route", text=_each(fast, text), systems=(system,)) for system, text in marked.items()]
        counters = {LINUX: "cat /proc/net/dev", DARWIN: "/usr/sbin/netstat -ibn"}
        items += [_count(fast[0][1], text, system) for system, text in counters.items()]
    return items


def _rotate(hosts: tuple[Host, ...], host: Host) -> list[Host]:
    """Return all hosts, this one last: everyone begins elsewhere, since sshd turns a crowd at the door away."""
    start = [each.name for each in hosts].index(host.name) + 1
    return [*hosts[start:], *hosts[:start]]


def _mesh(ways: Iterable[tuple[str, str]]) -> str:
    """Return the shell's text that logs in everywhere at nearly the same time, and prints a line for each way.

    Of more than ten logins that begin at once sshd drops some by chance (MaxStartups), so a dropped one is tried again.
    So is, with more patience, one that was accepted but not greeted in time: that is a busy host, not a lost one.
    """
    busy = f'*"banner exchange"*) [ $patience = {MESH_TIMEOUT_S} ] || break; patience={BUSY_TIMEOUT_S} ;;'
    dropped = f'case "$said" in {busy} *"reset by"*|*"closed by"*) sleep $pause ;; *) break ;; esac'
    attempt = f'said=$(ssh -n {_WITHIN}$patience "$2" true 2>&1); code=$?'
    login = f"patience={MESH_TIMEOUT_S}; for pause in 1 2 0; do {attempt}; {dropped}; done"
    one = f'{login}; printf "%s %s %d %s\\n" "$1" "$2" $code "$(printf %s "$said" | tr "\\n\\r" "  ")"'
    starts = "".join(f"try {name} {address} & sleep 0.1\n" for name, address in ways)
    return f"{CONFIG} >/dev/null || exit 1\ntry() {{ {one}; }}\n{starts}wait"


def _each(ways: Iterable[tuple[str, str, int]], command: str) -> str:
    """Return the shell's text that runs a command for every way, all at once, a line ``NAME EXIT-CODE WHAT IT SAID`` each."""
    one = 'said=$({command} 2>&1); printf "{name} %d %s\\n" $? "$(printf %s "$said" | tr "\\n\\t" "  ")"'
    texts = [(name, command.format(address=address, port=port)) for name, address, port in ways]
    return "".join(f"( {one.format(command=text, name=name)} ) &\n" for name, text in texts) + "wait"


def _count(address: str, counters: str, system: str) -> Item:
    """Return the item that sends some bytes to a fast address, between two readings of all interfaces' counters."""
    login = f"ssh {OPTIONS} -o Compression=no {address} 'cat >/dev/null'"
    send = f"dd if=/dev/zero bs=65536 count={COUNTED_BLOCKS} 2>/dev/null | {login}"
    text = f"{CONFIG} >/dev/null || exit 1\n{counters}; echo ----; {send} || exit 1; {counters}"
    return Item(key="counters", text=text, systems=(system,), limit_s=8, is_slow=True, told=f"{counters}; {send}; {counters}")
