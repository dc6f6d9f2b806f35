"""Every failure that a Linux host can have is found, named right, and gone after its printed remedy."""

from __future__ import annotations

import shlex
import time

import pytest

from tests.lab.clinic import Case, examine, treat
from tests.lab.laboratory import Laboratory

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
    """Let what a free port of beta answers go nowhere, as a firewall does; a stub of ufw takes that back."""
    stub = "#!/bin/sh\n[ \"$1 $2\" = 'allow from' ] && ip rule del pref 10 && rm $0\n"
    rule = "ip rule add pref 10 ipproto tcp sport 49219 blackhole"
    sh("beta", f"{rule}; printf %s {shlex.quote(stub)} >/usr/sbin/ufw; chmod 755 /usr/sbin/ufw")(lab)


STOP_SSHD = "kill $(cat /run/sshd.pid)"
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
            f"""{ROOT}/runs/now/hostfile" & echo $! >/tmp/busy.pid; wait' >/dev/null 2>&1; sleep 1""",
            "own",
        ),
        hand=sh("alpha", "kill $(cat /tmp/busy.pid)"),
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

ENV = f"{ROOT}/env"
MADE = [
    Case(
        check="version-skew",
        host="alpha",
        make=sh("alpha", f"sed -i 's/^Version: .*/Version: 0.1/' {ENV}/lib/python3*/site-packages/mlx-[0-9]*/METADATA"),
    ),
    Case(
        check="mpirun-crash",
        host="alpha",
        make=replace(
            "alpha", f"{ENV}/bin/mpirun", '#!/bin/sh\n[ "$1" = --version ] && exec $0.real --version\nkill -SEGV $$\n'
        ),
    ),
    Case(
        check="no-libmpi",
        host="beta",
        make=sh("beta", f"echo no library >{ENV}/lib/libmpi.so.40.x; mv {ENV}/lib/libmpi.so.40.x {ENV}/lib/libmpi.so.40"),
    ),
    Case(
        check="not-open-mpi",
        host="beta",
        make=replace("beta", f"{ENV}/bin/mpirun", "#!/bin/sh\necho HYDRA build details:\n"),
    ),
    Case(check="broken-environment", host="gamma", make=sh("gamma", f"ln -sfn /bin/false {ENV}/bin/python")),
    Case(check="no-mpirun", host="gamma", make=sh("gamma", f"rm {ENV}/bin/mpirun")),
]

OTHER = [
    Case(
        check="other-environment",
        host="alpha",
        make=sh("alpha", f"cd {ROOT}; ln -s $(basename $(readlink env)) envs/other; ln -sfn envs/other env"),
    ),
    Case(
        check="mpirun-fails",
        host="beta",
        make=replace(
            "beta",
            f"{ENV}/bin/mpirun",
            '#!/bin/sh\n[ "$1" = --version ] && exec $0.real --version\necho a component is missing; exit 1\n',
        ),
    ),
    Case(
        check="other-open-mpi",
        host="gamma",
        make=replace(
            "gamma",
            f"{ENV}/bin/mpirun",
            '#!/bin/sh\n[ "$1" = --version ] && echo \'mpirun (Open MPI) 4.1.0\' && exit\nexec $0.real "$@"\n',
        ),
    ),
]

BARE = [
    Case(check="environment", host="alpha", make=sh("alpha", f"rm {ENV}/complete")),
    Case(check="not-provisioned", host="beta", make=sh("beta", f"rm {ROOT}/node.json")),
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
    Case(check="mesh", host="alpha", make=sh("gamma", "sed -i /flotilla:alpha/d ~cleo/.ssh/authorized_keys")),
]

FAR = [
    Case(
        check="peer",
        host="gamma",
        make=sh("gamma", "ip route add unreachable @alpha.slow@/32"),
        hand=sh("gamma", "ip route del unreachable @alpha.slow@/32"),
    ),
    Case(check="peer", host="alpha", make=lambda _: None, hand=lambda _: None),  # the way back
    Case(check="packet-filter", host="beta", make=filter_packets, stub="ufw"),
]

REACH = [
    Case(
        check="remote-login",
        host="beta",
        make=sh("beta", STOP_SSHD),
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
            f"{STOP_SSHD}; /usr/sbin/sshd",
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
        pytest.param(MADE, (), id="made"),
        pytest.param(OTHER, (), id="other"),
        pytest.param(BARE, (), id="bare"),
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
    notes = [Case(check=check, host=host, make=lambda _: None, severity="note") for check, host in sorted(SUDO)]
    try:
        treat(provisioned_lab, notes, frozenset())
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
