"""What healthy and ill hosts answer to the doctor's probe: recorded from real ones, by the key of the command."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping

from trainer.cluster.doctor.judge import judge_all
from trainer.cluster.doctor.probe import make_views, parse
from trainer.cluster.doctor.report import list_findings
from trainer.cluster.doctor.script import list_items
from trainer.cluster.doctor.view import Answers, Finding
from trainer.cluster.inventory import Cluster, Host

PINS = {"mlx": "0.32.4", "mpi4py": "4.1.2"}
NETWORK = ipaddress.ip_network("10.99.0.0/24")
HOSTS = tuple(
    Host(name=name, slots=1, management=f"192.168.1.{n}", fast=f"10.99.0.{n}", is_local=False, user=f"u{n}")
    for n, name in ((1, "mini"), (2, "book"))
)
CLUSTER = Cluster(hosts=HOSTS, network=NETWORK, source="lab.yml")


def link(name: str, address: str, *flags: str) -> dict[str, object]:
    """Return one interface as ``ip -j addr`` shows it."""
    own = [{"family": "inet", "local": address.partition("/")[0], "prefixlen": int(address.partition("/")[2])}]
    return {"ifname": name, "flags": list(flags or ("BROADCAST", "UP", "LOWER_UP")), "operstate": "UP", "addr_info": own}


def counters(sent: int, interface: str) -> str:
    """Return two readings of /proc/net/dev, between which an interface sent so many bytes."""
    head, zeros = "Inter-| Receive | Transmit\n", " 0 0 0 0 0 0 0"
    rows = [{"tb0": 0, "wifi0": 0}, {"tb0": 0, "wifi0": 0, interface: sent}]
    texts = [head + "".join(f"{name}: 0{zeros} {count}{zeros}\n" for name, count in row.items()) for row in rows]
    return "----\n".join(texts)


def python(**changes: object) -> str:
    return json.dumps({"platform": "linux", "machine": "x86_64", "python": "3.11.2", "packages": PINS, **changes})


def linux(number: int) -> dict[str, tuple[int, str]]:
    """Return what a healthy Linux host answers: exit code and text by key."""
    peer = {1: "book", 2: "mini"}[number]
    other = 3 - number
    return {
        "system": (0, "Linux"),
        "node": (0, json.dumps({"mpirun": "/opt/flotilla/env/bin/mpirun", "libmpi": "/l", "open_mpi": "5", "system": "Linux"})),
        "environment": (0, "envs/abc"),
        "python": (0, python()),
        "mpirun": (0, "mpirun (Open MPI) 5.0.11"),
        "alone": (0, "mini"),
        "libmpi": (0, "Open MPI v5.0.11, package: …"),
        "on_path": (127, ""),
        "clock": (0, "1000"),
        "machine": (0, "x86_64"),
        "user": (0, "u1\nu1 sudo"),
        "sudo": (0, ""),
        "disk": (0, "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 264212084 29022388 77368524 28% /"),
        "tmp": (0, ""),
        "tmpdir": (0, ""),
        "processes": (0, "    1     0 /sbin/init\n"),
        "glibc": (0, "glibc 2.36"),
        "memory": (0, "MemTotal: 24684084 kB\nMemAvailable: 23917556 kB\n"),
        "system_python": (0, "3.11"),
        "manager": (0, "/usr/bin/apt-get"),
        "filters": (0, ""),
        "interfaces": (0, json.dumps([link("wifi0", f"192.168.1.{number}/24"), link("tb0", f"10.99.0.{number}/24")])),
        "mesh": (0, f"{peer} 10.99.0.{other} 0 \n{peer} 192.168.1.{other} 0 \n"),
        "connect": (0, json.dumps({peer: {"ssh": "open", "from": "", "other": "ECONNREFUSED"}})),
        "route": (0, f"{peer} 0 10.99.0.{other} dev tb0 src 10.99.0.{number}  | 10.99.0.0/24 dev tb0 proto kernel"),
        "counters": (0, counters(5_000_000, "tb0")),
    }


BRIDGE = """\
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 9000
\tether 36:6a:0f:f5:b0:80
\tinet 10.99.0.{number} netmask 0xffffff00 broadcast 10.99.0.255
\tConfiguration:
\t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0
\tmember: en2 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 11 priority 0 path cost 0
\tstatus: active
"""
PORTS = """
Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 36:7b:bc:d7:59:c0

Hardware Port: Thunderbolt 1
Device: en1
Ethernet Address: 36:7b:bc:d7:59:c0

Hardware Port: Thunderbolt 2
Device: en2
Ethernet Address: 36:7b:bc:d7:59:c4

Hardware Port: Thunderbolt 3
Device: en6
Ethernet Address: 36:7b:bc:d7:59:c8
"""
SERVICES = """\
An asterisk (*) denotes that a network service is disabled.
(1) Wi-Fi
(Hardware Port: Wi-Fi, Device: en0)

(5) Thunderbolt Bridge
(Hardware Port: Thunderbolt Bridge, Device: bridge0)
"""
INFO = "Manual Configuration\nIP address: 10.99.0.{number}\nSubnet mask: 255.255.255.0\nRouter: (null)\n"


def mac_says(host: str, *links: tuple[int, str], speed: str = "80 Gb/s") -> str:
    """Return SPThunderboltDataType of a Mac with three ports; ``links`` say which bus is at the other end (none: a dock)."""
    buses = []
    for number in (1, 2, 3):
        tag = {"receptacle_id_key": str(number), "current_speed_key": "Up to 80 Gb/s"}
        bus: dict[str, object] = {"_name": f"bus_{number}", "domain_uuid_key": f"{host}-{number}", "receptacle_1_tag": tag}
        for peer in (peer for port, peer in links if port == number):
            tag |= {"current_speed_key": speed, "receptacle_status_key": "receptacle_connected"}
            bus["_items"] = [{"_name": "Mac Studio", **({"domain_uuid_key": peer} if peer else {})}]
        buses.append(bus)
    return json.dumps({"SPThunderboltDataType": buses})


def netstat(sent: int, interface: str) -> str:
    """Return two readings of ``netstat -ibn``, between which an interface sent so many bytes."""
    head = "Name Mtu Network Address Ipkts Ierrs Ibytes Opkts Oerrs Obytes Coll\n"
    rows = [dict.fromkeys(("en0", "bridge0"), 0), {"en0": 0, "bridge0": 0, interface: sent}]
    texts = [
        head + "".join(f"{name} 1500 <Link#9> 36:6a:0f:f5:b0:80 1 0 1 5 0 {count} 0\n" for name, count in row.items())
        for row in rows
    ]
    return "----\n".join(texts)


def darwin(number: int) -> dict[str, tuple[int, str]]:
    """Return what a healthy Mac answers."""
    name, peer = (("mini", "book"), ("book", "mini"))[number - 1]
    node = {
        "mpirun": "/opt/homebrew/bin/mpirun",
        "libmpi": "/opt/homebrew/lib/libmpi.dylib",
        "open_mpi": "5",
        "system": "Darwin",
    }
    common = {key: value for key, value in linux(number).items() if key not in ("glibc", "system_python", "manager", "filters")}
    return {
        **common,
        "system": (0, "Darwin"),
        "node": (0, json.dumps(node)),
        "python": (0, python(platform="darwin", machine="arm64")),
        "on_path": (0, "/opt/homebrew/bin/mpirun\nmpirun (Open MPI) 5.0.10"),
        "machine": (0, "arm64"),
        "macos": (0, "ProductName:\t\tmacOS\nProductVersion:\t\t26.6.2\nBuildVersion:\t\t25G83"),
        "tools": (0, "/Library/Developer/CommandLineTools/usr/bin/git"),
        "brew": (0, "drwxrwxr-x  20 u1  admin  640 Nov 20 10:00 /opt/homebrew\n-rwxr-xr-x 1 u1 admin 9 Nov 20 10:00 /x/brew"),
        "brewed": (0, "open-mpi 5.0.10\nprrte 4.1.0_1\npmix 6.0.0\nhwloc 2.12\n"),
        "memory": (0, "hw.memsize: 34359738368"),
        "wired": (0, "iogpu.wired_limit_mb: 27852"),
        "power": (0, "Currently in use:\n standby              0\n sleep                0 (sleep prevented by caffeinate)\n"),
        "firewall": (0, "Firewall is disabled. (State = 0)"),
        "ports": (0, PORTS),
        "services": (0, SERVICES),
        "bridge": (0, INFO.format(number=number)),
        "interfaces": (0, BRIDGE.format(number=number)),
        "thunderbolt": (0, mac_says(name, (2, f"{peer}-2"))),
        "route": (0, f"{peer} 0    route to: 10.99.0.2   interface: bridge0  flags: <UP,DONE>"),
        "nc": (0, f"{peer} 0 \n"),
        "counters": (0, netstat(5_000_000, "bridge0")),
    }


ILL_LINUX = {
    "not-provisioned": {"node": (1, "cat: no such file"), "environment": (2, "")},
    "environment": {"environment": (2, "ls: cannot access")},
    "other-environment": {"environment": (0, "envs/def")},
    "broken-environment": {"python": (1, "Fatal Python error: init_fs_encoding")},
    "version-skew": {"python": (0, python(packages={"mlx": "0.31.0", "mpi4py": "4.1.2"}))},
    "other-open-mpi": {"mpirun": (0, "mpirun (Open MPI) 5.0.9")},
    "no-mpirun": {"mpirun": (127, "sh: not found")},
    "not-open-mpi": {"mpirun": (0, "HYDRA build details:")},
    "other-mpi-on-path": {"on_path": (0, "/usr/bin/mpirun\nHYDRA build details:")},
    "mpirun-crash": {"alone": (139, "Segmentation fault")},
    "mpirun-fails": {"alone": (1, "prterun: cannot find a component")},
    "no-libmpi": {"libmpi": (1, "OSError: /l: cannot open shared object file")},
    "no-python": {"system_python": (1, "ModuleNotFoundError: No module named 'ensurepip'")},
    "too-old": {"glibc": (0, "glibc 2.31")},
    "other-processor": {"machine": (0, "aarch64")},
    "disk-full": {"disk": (0, "Filesystem 1024-blocks Used Available Capacity Mounted on\noverlay 100 100 0 100% /")},
    "tmp": {"tmp": (2, "cannot create /tmp/x: Permission denied")},
    "clock": {"clock": (0, "1300")},
    "memory": {"memory": (0, "MemTotal: 24684084 kB\nMemAvailable: 500000 kB\n")},
    "sudo": {"sudo": (1, "sudo: a password is required")},
    "orphans": {"processes": (0, "77 1 /opt/flotilla/env/bin/python -m trainer train --plan /opt/flotilla/runs/r-1/plan.json")},
    "busy": {"processes": (0, "77 60 /opt/flotilla/env/bin/mpirun --hostfile /opt/flotilla/runs/r-1/hostfile")},
    "tmpdir": {"tmpdir": (0, "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/")},
    "no-address": {"interfaces": (0, json.dumps([link("wifi0", "192.168.1.2/24")]))},
    "wrong-subnet": {"interfaces": (0, json.dumps([link("tb0", "10.99.0.2/16")]))},
    "link-down": {"interfaces": (0, json.dumps([link("tb0", "10.99.0.2/24", "BROADCAST")]))},
    "no-carrier": {"interfaces": (0, json.dumps([link("tb0", "10.99.0.2/24", "UP", "NO-CARRIER")]))},
    "route": {"route": (0, "mini 0 10.99.0.1 dev tun0 src 10.8.0.2 | 10.99.0.1 dev tun0")},
    "mesh": {"mesh": (0, "mini 10.99.0.1 255 u1@10.99.0.1: Permission denied (publickey).")},
    "peer": {"mesh": (0, "mini 192.168.1.1 255 ssh: connect to host 192.168.1.1 port 22: Connection refused")},
    "wrong-link": {"counters": (0, counters(5_000_000, "wifi0"))},
}
ILL_DARWIN = {
    "no-tools": {"tools": (1, "ls: no such file")},
    "no-brew": {"brew": (1, "ls: no such file")},
    "brew-owner": {"brew": (0, "drwxrwxr-x  20 root  admin  640 Nov 20 10:00 /opt/homebrew")},
    "short-path": {"on_path": (127, "")},
    "brew-skew": {"brewed": (0, "open-mpi 5.0.8\nprrte 4.1.0_1")},
    "cable": {"thunderbolt": (0, mac_says("book"))},
    "bridge-service": {"services": (0, SERVICES.replace("(5) Thun", "(*) Thun"))},
    "bridge-address": {"bridge": (0, "DHCP Configuration\nIP address: 169.254.7.7\nSubnet mask: 255.255.0.0")},
    "firewall": {"firewall": (0, "Firewall is enabled. (State = 1)")},
    "sleep": {"power": (0, "Currently in use:\n sleep                10\n")},
    "wired-limit": {"wired": (0, "iogpu.wired_limit_mb: 0")},
    "rosetta": {"python": (0, python(platform="darwin"))},
    "too-old": {"macos": (0, "ProductVersion:\t\t13.6")},
    "memory": {"memory": (0, "hw.memsize: 4294967296")},
    "local-network": {"connect": (0, json.dumps({"mini": {"ssh": "EHOSTUNREACH"}}))},
    "no-carrier": {"interfaces": (0, BRIDGE.format(number=2).replace("status: active", "status: inactive"))},
    "route": {"route": (0, "mini 0    route to: 10.99.0.1   interface: utun3  flags: <UP>")},
    "no-address": {"interfaces": (0, BRIDGE.format(number=9))},
    "wrong-subnet": {"interfaces": (0, BRIDGE.format(number=2).replace("0xffffff00", "0xffff0000"))},
    "link-down": {"interfaces": (0, BRIDGE.format(number=2).replace("<UP,", "<"))},
    "wrong-link": {"counters": (0, netstat(5_000_000, "en0"))},
    "mpirun-crash": {"alone": (134, "Abort trap: 6")},
    **{
        check: ILL_LINUX[check]
        for check in (
            *("sudo", "mesh", "peer", "environment", "other-environment", "broken-environment", "version-skew", "disk-full"),
            *("other-open-mpi", "no-mpirun", "not-open-mpi", "other-mpi-on-path", "mpirun-fails", "no-libmpi", "tmp", "clock"),
            *("orphans", "busy", "tmpdir"),
        )
    },
}
# What ssh says where a host cannot be asked at all, by the check that it belongs to.
SSH = {
    "silent": "ssh: connect to host 192.168.1.2 port 22: Connection timed out",
    "remote-login": "ssh: connect to host 192.168.1.2 port 22: Connection refused",
    "our-key": "u2@192.168.1.2: Permission denied (publickey,password).",
    "unknown-host-key": "No ED25519 host key is known for 192.168.1.2\nHost key verification failed.",
    "changed-host-key": "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
}


def see(
    *machines: Mapping[str, tuple[int, str]], failure: str = "", pins: Mapping[str, str] = PINS, cluster: Cluster = CLUSTER
) -> list[Finding]:
    """Return the findings about hosts that answered so; ``failure`` is ssh's about the second."""
    answers = {}
    for host, machine in zip(cluster.hosts, machines, strict=True):
        said = "".join(f"\n@@ begin {key}\n{text}\n@@ end {key} {code}\n" for key, (code, text) in machine.items())
        outputs = parse(said, "@@", list_items(cluster, host))
        answers[host.name] = Answers(outputs=outputs, command="ssh", began_at=995.0, ended_at=1005.0)
    if failure:
        answers[cluster.hosts[-1].name] = Answers(command="ssh", failure=failure, began_at=995.0, ended_at=1005.0)
    return list_findings(judge_all(make_views(cluster, answers, pins)))


def known(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.host) for finding in findings if finding.severity != "unknown"]
