"""Every failure that a Linux host can have is found, named right, and gone after its printed remedy."""

from __future__ import annotations

import shlex
import time

import pytest
from clinic import Case, examine, treat, type_in

from tests.lab.laboratory import LabError, Laboratory

ROOT = "/opt/flotilla"
SUDO = frozenset((("sudo", "alpha"), ("sudo", "beta"), ("sudo", "gamma")))


def sh(host: str, script: str, user: str | None = None):
    """Return the act of running a shell script on a host, as root or as the host's user (``user="own"``)."""

    def act(lab: Laboratory) -> None:
        on, text = lab.host(host), script
        for each in lab.hosts:
            text = text.replace(f"@{each.name}.fast@", each.fast_address).replace(f"@{each.name}.slow@", each.address)
        on.run(["sh", "-ec", text], user=on.user if user else None)

    return act


def replace(host: str, path: str, body: str):
    """Return the act of putting a script in a program's place; the program stays beside it as NAME.real."""
    script = f"[ -e {path}.real ] || mv {path} {path}.real; printf %s {shlex.quote(body)} >{path}; chmod 755 {path}"
    return sh(host, script)


def restore(host: str, path: str):
    """Return the act that undoes `replace`."""
    return sh(host, f"mv -f {path}.real {path}")


def both(*acts):
    """Return the acts one after the other as one."""

    def act(lab: Laboratory) -> None:
        for each in acts:
            each(lab)

    return act


def filter_packets(lab: Laboratory) -> None:
    """Throw away what comes to free ports over the fast link."""
    drop = "tc filter add dev tb0 parent ffff: protocol ip prio 1 u32 match ip dport 49219 0xffff action drop"
    done = lab.host("beta").run(["sh", "-c", f"tc qdisc add dev tb0 ingress && {drop}"], check=False)
    if done.returncode:
        lab.host("beta").run(["tc", "qdisc", "del", "dev", "tb0", "ingress"], check=False)
        raise LabError(f"this kernel has no packet filter for tc: {done.stderr.strip()}")
    stub = "#!/bin/sh\n[ \"$1 $2\" = 'allow from' ] && tc qdisc del dev tb0 ingress\n"
    sh("beta", f"printf %s {shlex.quote(stub)} >/usr/sbin/ufw; chmod 755 /usr/sbin/ufw")(lab)


SLEEPER = "/usr/bin/python3 -c 'import time; time.sleep(900)'"
MACHINE = [
    Case(
        check="disk-full",
        host="alpha",
        make=lambda lab: lab.host("alpha").fill_disk(200),
        hand=lambda lab: lab.host("alpha").free_disk(),
    ),
    Case(check="tmp", host="beta", make=sh("beta", "chmod 0555 /tmp")),
    Case(
        check="no-python",
        host="beta",
        make=both(
            sh("beta", "mv /usr/bin/python3 /usr/bin/python3.away"),
            sh(
                "beta",
                "[ ! -e /usr/bin/apt-get ] || mv /usr/bin/apt-get /usr/bin/apt-get.real; "
                'printf \'#!/bin/sh\\n[ "$*" = "install -y python3 python3-venv" ] && '
                "mv /usr/bin/python3.away /usr/bin/python3\\n' >/usr/bin/apt-get; chmod 755 /usr/bin/apt-get",
            ),
        ),
        stub="apt-get",
    ),
    Case(
        check="orphans",
        host="alpha",
        make=sh("alpha", f"setsid -f {SLEEPER} -m trainer train --plan {ROOT}/runs/old/plan.json >/dev/null 2>&1", "own"),
    ),
    Case(
        check="clock",
        host="gamma",
        make=both(
            lambda lab: lab.host("gamma").shift_clock(300),
            sh(
                "gamma",
                'printf \'#!/bin/sh\\n[ "$*" = "set-ntp true" ] && rm /etc/ld.so.preload\\n\' >/usr/bin/timedatectl; '
                "chmod 755 /usr/bin/timedatectl",
            ),
        ),
        stub="timedatectl",
    ),
    Case(
        check="too-old",
        host="gamma",
        make=replace("gamma", "/usr/bin/getconf", "#!/bin/sh\necho glibc 2.31\n"),
        hand=restore("gamma", "/usr/bin/getconf"),
    ),
]

NOTES = [
    Case(
        check="other-processor",
        host="gamma",
        make=replace("gamma", "/usr/bin/uname", '#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || exec /usr/bin/uname.real "$@"\n'),
        hand=restore("gamma", "/usr/bin/uname"),
        severity="note",
    ),
    Case(
        check="memory",
        host="beta",
        make=sh(
            "beta",
            "printf 'MemTotal: 4000000 kB\\nMemAvailable: 400000 kB\\n' >/run/meminfo; mount --bind /run/meminfo /proc/meminfo",
        ),
        hand=sh("beta", "umount /proc/meminfo"),
        severity="note",
    ),
    Case(
        check="busy",
        host="alpha",
        make=sh(
            "alpha",
            f"""setsid -f sh -c 'bash -c "exec -a {ROOT}/env/bin/mpirun python3 -c \\"import time; time.sleep(900)\\" """
            f"""{ROOT}/runs/now/hostfile"; true' >/dev/null 2>&1; sleep 1""",
            "own",
        ),
        hand=sh("alpha", "pkill -f runs/[n]ow/hostfile"),
        severity="note",
    ),
    Case(
        check="tmpdir",
        host="gamma",
        make=sh("gamma", "echo TMPDIR=/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/ >>/etc/environment"),
        hand=sh("gamma", "sed -i /^TMPDIR/d /etc/environment"),
        severity="note",
    ),
    Case(
        check="other-mpi-on-path",
        host="beta",
        make=sh("beta", "printf '#!/bin/sh\\necho HYDRA build details:\\n' >/usr/bin/mpirun; chmod 755 /usr/bin/mpirun"),
        hand=sh("beta", "rm /usr/bin/mpirun"),
        severity="note",
    ),
]

LINKS = [
    Case(check="no-address", host="gamma", make=sh("gamma", "ip address flush dev tb0")),
    Case(
        check="wrong-subnet",
        host="beta",
        make=sh("beta", "ip address flush dev tb0; ip address add @beta.fast@/16 dev tb0"),
    ),
    Case(check="link-down", host="alpha", make=sh("alpha", "ip link set tb0 down")),
]

WAYS = [
    Case(
        check="no-carrier",
        host="beta",
        make=lambda lab: lab.cut("beta", "fast"),
        hand=lambda lab: lab.mend("beta", "fast"),
    ),
    Case(check="route", host="gamma", make=sh("gamma", "ip route add @alpha.fast@/32 via @alpha.slow@ dev wifi0")),
    Case(check="wrong-link", host="gamma", make=lambda _: None),
    Case(check="mesh", host="gamma", make=sh("alpha", "sed -i /flotilla:gamma/d ~ann/.ssh/authorized_keys")),
]

FAR = [
    Case(
        check="peer",
        host="gamma",
        make=sh("gamma", "ip route add unreachable @alpha.slow@/32"),
        hand=sh("gamma", "ip route del unreachable @alpha.slow@/32"),
    ),
    Case(check="packet-filter", host="beta", make=filter_packets, stub="ufw"),
]

REACH = [
    Case(
        check="remote-login",
        host="beta",
        make=sh("beta", "pkill -x sshd"),
        hand=sh("beta", "/usr/sbin/sshd"),
    ),
    Case(
        check="silent",
        host="gamma",
        make=lambda lab: lab.host("gamma").stop(),
        hand=lambda lab: lab.host("gamma").cont(),
    ),
]

KEYS = [
    Case(
        check="changed-host-key",
        host="beta",
        make=sh(
            "beta",
            "rm /etc/ssh/ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; "
            "pkill -x sshd; /usr/sbin/sshd",
        ),
    ),
    Case(check="our-key", host="alpha", make=sh("alpha", "sed -i /flotilla:control/d ~ann/.ssh/authorized_keys")),
    Case(
        check="unknown-host-key",
        host="gamma",
        make=lambda lab: lab.control(
            ["ssh-keygen", "-R", lab.host("gamma").address, "-f", str(lab.folder / "control-ssh/flotilla/known_hosts")]
        ),
    ),
]


@pytest.mark.parametrize(
    ("cases", "also"),
    [
        pytest.param(MACHINE, (), id="machine"),
        pytest.param(NOTES, (), id="notes"),
        pytest.param(LINKS, (), id="links"),
        pytest.param(WAYS, (), id="ways"),
        pytest.param(FAR, (), id="far"),
        pytest.param(REACH, (), id="reach"),
        pytest.param(KEYS, ("mesh",), id="keys"),
    ],
)
def test_a_failure_is_found_named_and_mended(provisioned_lab: Laboratory, cases: list[Case], also: tuple[str, ...]) -> None:
    """Each failure is found on its host under its name, nothing else is, and after the remedies nothing is left."""
    print()
    treat(provisioned_lab, cases, SUDO, also)


def test_the_note_about_sudo_can_be_mended(provisioned_lab: Laboratory) -> None:
    """The command that the note prints makes sudo free, and the doctor without any finding."""
    told = examine(provisioned_lab)
    for finding in told["findings"]:
        code, said = type_in(provisioned_lab, finding["remedy"])
        assert code == 0, said
    try:
        assert examine(provisioned_lab)["findings"] == []
    finally:
        for host in provisioned_lab.hosts:
            host.run(["sh", "-c", "rm -f /etc/sudoers.d/zz-*-flotilla"])


def test_the_doctor_takes_less_than_20_seconds_whatever_hosts_do(provisioned_lab: Laboratory) -> None:
    """With one host that hangs and one that is switched off the answer comes in time, and tells of the rest."""
    hangs, off, _ = provisioned_lab.hosts
    hangs.stop()
    provisioned_lab.cut(off, "slow")
    began = time.monotonic()
    try:
        told = examine(provisioned_lab)
    finally:
        hangs.cont()
        provisioned_lab.mend(off, "slow")
    assert time.monotonic() - began < 25  # ./inv itself takes a part
    silent = {finding["host"] for finding in told["findings"] if finding["check"] == "silent"}
    assert silent == {hangs.name, off.name}
