"""Inventories: what is read of them, and what is refused before it reaches a command line or a hostfile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.cluster.hostfile import render_open_mpi
from trainer.cluster.inventory import DEFAULT_INVENTORY, Cluster, Host, default_root, load_inventory
from trainer.errors import InputError
from trainer.paths import PROJECT_ROOT

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test of time

HEAD = "all:\n  children:\n    cluster:\n      hosts:\n"
HOSTS = "$.all.children.cluster.hosts"
NOT_A_NAME = "is not a host name (letters, digits, dots and hyphens)"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "hosts.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, *hosts: str) -> Cluster:
    """Load an inventory with these lines below ``hosts``."""
    return load_inventory(write(folder, HEAD + "".join(f"        {line}\n" for line in hosts)))


def refusal(path: Path) -> str:
    """Return what is said about an inventory that must be refused, without the file's own name."""
    with pytest.raises(InputError) as caught:
        load_inventory(path)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(str(path)) for line in lines)
    assert all(line.isprintable() for line in lines)
    return "\n".join(line.removeprefix(str(path)) for line in lines)


def try_to_load(path: Path) -> tuple[Cluster | None, list[str]]:
    """Return the cluster, or None and the lines of the error."""
    try:
        return load_inventory(path), []
    except InputError as error:
        return None, str(error).split("\n")


def refuse_hosts(folder: Path, *hosts: str) -> str:
    return refusal(write(folder, HEAD + "".join(f"        {line}\n" for line in hosts)))


def test_a_host_without_variables_has_one_slot_at_its_name(tmp_path: Path) -> None:
    """A bare name is a remote host with one rank, reached by that name."""
    assert load(tmp_path, "mini:").hosts == (Host(name="mini", slots=1, management="mini", is_local=False),)


def test_every_variable_is_read(tmp_path: Path) -> None:
    """slots, address, user and port arrive; variables for others, of any shape, are left alone."""
    line = "mini: {slots: 2, address: 10.0.0.1, ansible_host: m.local, ansible_user: bob, ansible_port: 2222, x: [1, {y: z}]}"
    assert load(tmp_path, line).hosts == (
        Host(name="mini", slots=2, management="m.local", fast="10.0.0.1", is_local=False, user="bob", port=2222),
    )


@pytest.mark.parametrize(
    ("variables", "address", "is_local"),
    [
        ("{}", "mini", False),
        ("{ansible_host: 10.0.0.2}", "10.0.0.2", False),
        ("{ansible_host: 10.0.0.2, address: 10.0.0.1}", "10.0.0.1", False),
        ("{ansible_connection: local}", "localhost", True),
        ("{ansible_connection: local, address: 10.0.0.1}", "10.0.0.1", True),
        ("{ansible_connection: ssh}", "mini", False),
        ("{address: 'fe80::1'}", "fe80::1", False),
    ],
)
def test_the_address_is_the_most_special_one(tmp_path: Path, variables: str, address: str, is_local: bool) -> None:
    """The fast link's address comes before Ansible's, that before the name; a local host without one is localhost."""
    [host] = load(tmp_path, f"mini: {variables}").hosts
    assert (host.address, host.is_local) == (address, is_local)


def test_the_host_wins_over_the_group_and_the_group_over_all(tmp_path: Path) -> None:
    """Ansible's precedence, variable by variable."""
    path = write(
        tmp_path,
        "all:\n"
        "  vars: {slots: 3, ansible_user: everyone, ansible_port: 1}\n"
        "  children:\n"
        "    cluster:\n"
        "      vars: {slots: 2, ansible_user: group}\n"
        "      hosts:\n"
        "        a: {slots: 1}\n"
        "        b:\n",
    )
    assert load_inventory(path).hosts == (
        Host(name="a", slots=1, management="a", is_local=False, user="group", port=1),
        Host(name="b", slots=2, management="b", is_local=False, user="group", port=1),
    )


def with_group(folder: Path, variables: str, *hosts: str) -> Path:
    """Write an inventory whose group has these variables."""
    lines = "".join(f"        {line}\n" for line in hosts)
    return write(folder, f"all:\n  children:\n    cluster:\n      vars: {variables}\n      hosts:\n{lines}")


def test_the_group_sets_network_mode_and_root(tmp_path: Path) -> None:
    """What all hosts share is read once; without a network, it is the usual one around the first fast address."""
    hosts = ("a: {address: 10.99.1.1}", "b: {address: 10.99.2.1}")
    cluster = load_inventory(
        with_group(tmp_path, "{thunderbolt_network: 10.99.0.0/16, thunderbolt_mode: cable, flotilla_root: /srv/fleet}", *hosts)
    )
    assert (str(cluster.network), cluster.mode, str(cluster.root)) == ("10.99.0.0/16", "cable", "/srv/fleet")
    plain = load(tmp_path, "a:", "b: {address: 10.99.2.1}")
    assert (str(plain.network), plain.mode, str(plain.root)) == ("10.99.2.0/24", "bridge", default_root())
    assert load(tmp_path, "a:", "b:").network is None
    assert str(load(tmp_path, "a: {address: 'fd00::1'}").network) == "fd00::/64"


def test_the_root_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that every user of the machine can reach, by the same rule as in the playbooks."""
    for platform, root in (("darwin", "/Users/Shared/flotilla"), ("linux", "/opt/flotilla")):
        monkeypatch.setattr("sys.platform", platform)
        assert default_root() == root


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("10.99.0.1/24", "10.99.0.1/24 has host bits set; give the network's own address, such as 10.99.0.0/24"),
        ("10.99.0.0/33", "'10.99.0.0/33' does not appear to be an IPv4 or IPv6 network; give the network's own address"),
    ],
)
def test_a_network_that_is_none(tmp_path: Path, value: str, complaint: str) -> None:
    """A network with an address in it, or of impossible width, is refused at the variable."""
    said = refusal(with_group(tmp_path, f"{{thunderbolt_network: {value}}}", "a: {address: 10.99.0.1}"))
    assert said.startswith(f": $.all.children.cluster.vars.thunderbolt_network: {complaint}")


@pytest.mark.parametrize("variable", ["thunderbolt_network", "flotilla_root", "thunderbolt_interface"])
@pytest.mark.parametrize("value", ["a b", "'; rm -rf /'", "$(id)", "-x", "'a\"b'", "../x", "/opt/../etc", "/", "'/opt/a b'"])
def test_hostile_settings_are_refused(tmp_path: Path, variable: str, value: str) -> None:
    """Nothing that a shell or a path would read as more than a name gets through."""
    assert f"a.{variable}: " in refuse_hosts(tmp_path, f"a: {{{variable}: {value}}}")


def test_one_address_with_two_ports_is_two_machines(tmp_path: Path) -> None:
    """Behind one address there may be several hosts at different ports, each with its own fast address."""
    hosts = [
        f"{name}: {{ansible_host: gate, ansible_port: {port}, address: 10.99.0.{port % 10}}}"
        for name, port in (("a", 2201), ("b", 2202))
    ]
    assert [host.port for host in load(tmp_path, *hosts).hosts] == [2201, 2202]


def test_traffic_over_management(tmp_path: Path) -> None:
    """The slow way round: the same hosts at their management addresses."""
    cluster = load(
        tmp_path, "a: {ansible_host: 10.0.0.1, address: 10.99.0.1}", "b: {ansible_host: b.local, address: 10.99.0.2}"
    )
    slow = cluster.over_management(None)
    assert render_open_mpi(slow) == "10.0.0.1 slots=1\nb.local slots=1\n"
    assert (slow.network, slow.root, slow.world_size) == (None, cluster.root, 2)


def test_hosts_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """Rank 0 is on the first host written down, whatever its name."""
    assert [host.name for host in load(tmp_path, "zeta:", "alpha:", "mid:").hosts] == ["zeta", "alpha", "mid"]


def test_the_world_is_the_sum_of_slots(tmp_path: Path) -> None:
    """World size counts slots; one remote host makes the cluster remote."""
    cluster = load(tmp_path, "a: {slots: 3, ansible_connection: local}", "b: {slots: 2}")
    assert (cluster.world_size, cluster.is_local) == (5, False)
    assert load(tmp_path, "a: {slots: 3, ansible_connection: local}").is_local


@pytest.mark.parametrize("path", sorted((PROJECT_ROOT / "inventory").glob("*.yml")), ids=lambda path: path.stem)
def test_every_shipped_inventory_loads(path: Path) -> None:
    """Each example in inventory/ is valid; the default one needs no other machine."""
    cluster = load_inventory(path)
    assert cluster.is_local or path != PROJECT_ROOT / DEFAULT_INVENTORY


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("all:", "\ufeffall:")], ids=["CRLF", "BOM"])
def test_windows_habits_are_fine(tmp_path: Path, change: tuple[str, str]) -> None:
    """CRLF line ends and a byte order mark change nothing."""
    text = (HEAD + "        mini: {slots: 2}\n").replace(*change)
    assert load_inventory(write(tmp_path, text)).hosts == load(tmp_path, "mini: {slots: 2}").hosts


HOSTILE = [
    "a b",
    "a'b",
    'a"b',
    "a; rm -rf ~",
    "$(id)",
    "`id`",
    "-oProxyCommand=id",
    "-h",
    "a\n",
    "\na",
    "a\tb",
    "a:2",
    "a,b",
    "",
]
HOSTILE += [
    "mini[1:3]",
    "mini[a:c]",
    "a/b",
    "../a",
    "user@host",
    "a.",
    ".a",
    "a\u202eb",
    "ümlaut",
    "x" * 255,
    "a slots=64",
    "a#b",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_host_name_is_refused(tmp_path: Path, name: str) -> None:
    """No name reaches a shell, ssh's options, the hostfile's fields or Ansible's ranges."""
    text = yaml.safe_dump({"all": {"children": {"cluster": {"hosts": {name: {}}}}}}, allow_unicode=True, width=1000)
    said = refusal(write(tmp_path, text))
    assert said.startswith(f': {HOSTS}: the name "')
    assert said.endswith(NOT_A_NAME)


@pytest.mark.parametrize("variable", ["address", "ansible_host"])
@pytest.mark.parametrize(
    "value", [*HOSTILE[:4], "-oProxyCommand=id", "10.0.0.1 slots=64", "10.0.0.1\n", "{{ lookup('x') }}", "[::1]"]
)
def test_a_hostile_address_is_refused(tmp_path: Path, variable: str, value: str) -> None:
    """No address reaches a shell, ssh's options or the hostfile's fields."""
    text = yaml.safe_dump({"all": {"children": {"cluster": {"hosts": {"a": {variable: value}}}}}}, width=1000)
    said = refusal(write(tmp_path, text))
    assert said.startswith(f': {HOSTS}.a.{variable}: "')
    assert said.endswith('" is not an address (an IP address or a host name)')


@pytest.mark.parametrize("value", ["-oProxyCommand=id", "a b", "bob\n", "a;b", "a@b", ""])
def test_a_hostile_user_is_refused(tmp_path: Path, value: str) -> None:
    """A user name has nothing that ssh or a shell would read as more than a name."""
    text = yaml.safe_dump({"all": {"children": {"cluster": {"hosts": {"a": {"ansible_user": value}}}}}}, width=1000)
    said = refusal(write(tmp_path, text))
    assert re.fullmatch(rf': {re.escape(HOSTS)}\.a\.ansible_user: ".*" is not a user name', said)


@pytest.mark.parametrize(
    ("hosts", "complaint"),
    [
        (["mini: {slots: 0}"], f": {HOSTS}.mini.slots: 0 is below the minimum 1"),
        (["mini: {slots: -1}"], f": {HOSTS}.mini.slots: -1 is below the minimum 1"),
        (["mini: {slots: 65}"], f": {HOSTS}.mini.slots: 65 is above the maximum 64"),
        (["mini: {slots: two}"], f': {HOSTS}.mini.slots: "two" is not a whole number'),
        (["mini: {slots: '2'}"], f': {HOSTS}.mini.slots: "2" is not a whole number'),
        (["mini: {slots: 2.0}"], f": {HOSTS}.mini.slots: 2.0 is not a whole number"),
        (["mini: {slots: .nan}"], f": {HOSTS}.mini.slots: NaN is not a whole number"),
        (["mini: {slots: yes}"], f": {HOSTS}.mini.slots: true is not a whole number"),
        (["mini: {slots: }"], f": {HOSTS}.mini.slots: null is not a whole number"),
        (["mini: {slots: {2024-01-01: 1}}"], f": {HOSTS}.mini.slots: {{datetime.date(2024, 1, 1): 1}} is not a whole number"),
        (["mini: {address: 10}"], f": {HOSTS}.mini.address: 10 is not a text"),
        (["mini: {ansible_port: 22.0}"], f": {HOSTS}.mini.ansible_port: 22.0 is not a whole number"),
        (["mini: {ansible_port: 70000}"], f": {HOSTS}.mini.ansible_port: 70000 is above the maximum 65535"),
        (["mini: {ansible_connection: docker}"], f': {HOSTS}.mini.ansible_connection: "docker" is not one of local, ssh'),
        (["mini: 3"], f": {HOSTS}.mini: 3 is not a table of keys and values or nothing"),
        (["mini: [slots]"], f': {HOSTS}.mini: ["slots"] is not a table of keys and values or nothing'),
        (["mini: {1: 2}"], f": {HOSTS}.mini: the name 1 is not a text"),
        (["123:"], f": {HOSTS}: the name 123 is not a text"),
        (["yes:"], f": {HOSTS}: the name true is not a text"),
        (["mini: {slot: 2}"], f": {HOSTS}.mini.slot: unknown variable; did you mean slots?"),
        (["mini: {SLOTS: 2}"], f": {HOSTS}.mini.SLOTS: unknown variable; did you mean slots?"),
        (["mini: {adress: x}"], f": {HOSTS}.mini.adress: unknown variable; did you mean address?"),
        (['mini: {"slo\\nts": 2}'], f': {HOSTS}.mini."slo\\nts": unknown variable; did you mean slots?'),
        (["a: {address: h}", "b: {ansible_host: h}"], f": {HOSTS}.b: has the same address h as a"),
        (["a: {address: H}", "b: {address: h}"], f": {HOSTS}.b: has the same address h as a"),
        (["a: {ansible_connection: local}", "localhost:"], f": {HOSTS}.localhost: has the same address localhost as a"),
        (["a: {ansible_host: h}", "b: {ansible_host: H}"], f": {HOSTS}.b: has the same address H as a"),
        (["a: {ansible_host: h, ansible_port: 22}", "b: {ansible_host: h}"], f": {HOSTS}.b: has the same address h as a"),
        (
            ["a: {address: 10.99.0.1}", "b: {address: 10.99.0.1}", "c: {address: 10.99.0.1}"],
            f": {HOSTS}.b: has the same address 10.99.0.1 as a\n: {HOSTS}.c: has the same address 10.99.0.1 as a",
        ),
        (
            ["a: {ansible_connection: local, ansible_host: a}", "b: {ansible_connection: local, ansible_host: b}"],
            f": {HOSTS}.b: is this machine, as another host is; give that one more slots instead",
        ),
        (
            ["a: {address: 10.99.0.1}", "b: {address: 10.98.0.2}", "c: {address: mini.local}"],
            (
                f': {HOSTS}.b.address: "10.98.0.2" is not in the network 10.99.0.0/24, '
                "that of the first host; thunderbolt_network can widen it\n"
                f': {HOSTS}.c.address: "mini.local" is not in the network 10.99.0.0/24, '
                "that of the first host; thunderbolt_network can widen it"
            ),
        ),
        (
            ["a: {flotilla_root: /opt/a}", "b: {flotilla_root: /opt/b}", "c:"],
            (
                f': {HOSTS}.b.flotilla_root: "/opt/b" differs from a\'s "/opt/a"; set it once, for all\n'
                f': {HOSTS}.c.flotilla_root: null differs from a\'s "/opt/a"; set it once, for all'
            ),
        ),
        (["a: {thunderbolt_mode: both}"], f': {HOSTS}.a.thunderbolt_mode: "both" is not one of bridge, cable'),
        (
            ["a: {open_mpi_provider: brew}"],
            f': {HOSTS}.a.open_mpi_provider: "brew" is not one of homebrew, wheel; did you mean homebrew?',
        ),
        (["a: {thunderbolt_net: x}"], f": {HOSTS}.a.thunderbolt_net: unknown variable; did you mean thunderbolt_network?"),
        (["a: {flotila_root: x}"], f": {HOSTS}.a.flotila_root: unknown variable; did you mean flotilla_root?"),
        (["a:", "b:", "a:"], ':7: "a" is listed twice, first on line 5'),
        (["a:", "'a': {slots: 2}"], ':6: "a" is listed twice, first on line 5'),
        (["a: {slots: 1, slots: 2}"], ':5: "slots" is listed twice, first on line 5'),
        (["a: {x: {y: 1, y: 2}}"], ':5: "y" is listed twice, first on line 5'),
        (["mini: {ansible_host: {{ host }} }"], ':5: a list or table cannot be a key; put "{{ … }}" in quotes'),
        (["? [a, b]", ": 1"], ':5: a list or table cannot be a key; put "{{ … }}" in quotes'),
        (["a: &x {slots: 2}", "b: *x"], ":6: *x stands for another part of the file; write it out"),
        (["a: {slots: &x [*x]}"], ":5: *x stands for another part of the file; write it out"),
        (["a: {<<: {slots: 2}}"], ":5: << is not read here; write the keys out"),
        (["a: *nothing"], ":5: *nothing stands for another part of the file; write it out"),
        (["\tmini:"], ":5: while scanning for the next token, found character '\\t' that cannot start any token"),
        (["mini: {slots: 2"], ":6: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'"),
        (["mini: {x: \x00}"], ":5: holds the character U+0000, which YAML does not allow"),
        (["mini: {x: \x1b[2J}"], ":5: holds the character U+001B, which YAML does not allow"),
        (["mini: {x: 2024-13-45}"], ": not valid YAML: month must be in 1..12"),
        (["mini: {x: " + "[" * 3000 + "]" * 3000 + "}"], ": is nested too deeply"),
    ],
)
def test_bad_hosts_are_refused(tmp_path: Path, hosts: list[str], complaint: str) -> None:
    """The error names the line, or the path in the file and the value, and the rule."""
    assert refuse_hosts(tmp_path, *hosts) == complaint


@pytest.mark.parametrize(
    ("tag", "full"),
    [
        ("!!python/object/apply:os.system ['touch pwned']", "tag:yaml.org,2002:python/object/apply:os.system"),
        ("!!python/object:trainer.errors.InputError {}", "tag:yaml.org,2002:python/object:trainer.errors.InputError"),
        ("!!python/name:os.system x", "tag:yaml.org,2002:python/name:os.system"),
        ("!vault x", "!vault"),
        ("!unsafe x", "!unsafe"),
    ],
)
def test_tags_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, full: str) -> None:
    """A tag that asks for a Python object, or for Ansible's own, is refused and nothing is run."""
    monkeypatch.chdir(tmp_path)
    assert refuse_hosts(tmp_path, f"mini: {{x: {tag}}}") == f":5: could not determine a constructor for the tag '{full}'"
    assert [path.name for path in tmp_path.iterdir()] == ["hosts.yml"]


def test_a_few_lines_that_stand_for_gigabytes_are_refused(tmp_path: Path) -> None:
    """The billion laughs end at the first alias, before anything is shown or copied."""
    laughs = ["l0: &l0 ha"] + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 30)]
    text = "\n".join([*laughs, HEAD + "        mini: {slots: *l29}"])
    assert refusal(write(tmp_path, text)) == ":2: *l0 stands for another part of the file; write it out"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", ": the file is empty; it needs all.children.cluster.hosts"),
        (b"# nothing\n---\n", ": the file is empty; it needs all.children.cluster.hosts"),
        (b"- mini\n", ': $: ["mini"] is not a table of keys and values'),
        (b"[cluster]\nmini slots=2\n", ":2: expected '<document start>', but found '<scalar>'"),
        (b"mini\n", ': $: "mini" is not a table of keys and values'),
        (b"\xff\xfea\x00", ":1: is not UTF-8 text; save the file as UTF-8"),
        (b"all:\n  vars: {x: \xe4}\n", ":2: is not UTF-8 text; save the file as UTF-8"),
        (b"all: {}\n---\nall: {}\n", ":2: expected a single document in the stream, but found another document"),
        (b"al: {}\n", ": $.all: is missing\n: $.al: unknown key; did you mean all?"),
        (b"all:\n", ": $.all: null is not a table of keys and values"),
        (b"all: {hosts: {a: }}\n", ": $.all.children: is missing\n: $.all.hosts: unknown key"),
        (
            b"all: {children: {clutser: {}}}\n",
            ": $.all.children.cluster: is missing\n: $.all.children.clutser: unknown key; did you mean cluster?",
        ),
        (b"all: {children: {cluster: {hosts: }}}\n", f": {HOSTS}: null is not a table of keys and values"),
        (b"all: {children: {cluster: {hosts: {}}}}\n", f": {HOSTS}: {{}} is empty"),
        (b"all: {children: {cluster: {hosts: [a, b]}}}\n", f': {HOSTS}: ["a", "b"] is not a table of keys and values'),
        (b"all: {children: {cluster: {hosts: {a: }, children: {x: }}}}\n", ": $.all.children.cluster.children: unknown key"),
        (
            b"all: {vars: {slot: 2}, children: {cluster: {vars: {adress: x}, hosts: {a: {slotz: 1}, b: }}}}\n",
            (
                ": $.all.vars.slot: unknown variable; did you mean slots?\n"
                ": $.all.children.cluster.vars.adress: unknown variable; did you mean address?\n"
                f": {HOSTS}.a.slotz: unknown variable; did you mean slots?"
            ),
        ),
        (
            b"all: {children: {cluster: {hosts: {b: {slots: 0, address: 1}, a: {slots: x}, -c: }}}}\n",
            (
                f': {HOSTS}: the name "-c" {NOT_A_NAME}\n'
                f': {HOSTS}.a.slots: "x" is not a whole number\n'
                f": {HOSTS}.b.address: 1 is not a text\n"
                f": {HOSTS}.b.slots: 0 is below the minimum 1"
            ),
        ),
    ],
)
def test_a_file_of_the_wrong_shape_is_refused(tmp_path: Path, text: bytes, complaint: str) -> None:
    """All problems come at once, each with its path; a group that is not there is asked for by name."""
    assert refusal(write(tmp_path, text)) == complaint


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file and a folder in its place are named."""
    assert refusal(tmp_path / "no.yml") == ": cannot be read: No such file or directory"
    assert refusal(tmp_path) == ": cannot be read: Is a directory"


def test_the_hostfile_lists_addresses_and_slots_in_rank_order(tmp_path: Path) -> None:
    """Open MPI gets the fast link's address and always a number of slots."""
    cluster = load(tmp_path, "z: {slots: 2, address: 10.0.0.9}", "a: {ansible_host: a.local}", "m:")
    assert render_open_mpi(cluster) == "10.0.0.9 slots=2\na.local slots=1\nm slots=1\n"


@patient
@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_whatever_is_accepted_makes_one_plain_hostfile_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, address: str, user: str
) -> None:
    """Any texts as name, address and user are refused, or they are words that no shell, ssh or hostfile misreads."""
    variables = {"address": address, "ansible_user": user}
    text = yaml.safe_dump({"all": {"children": {"cluster": {"hosts": {name: variables}}}}}, allow_unicode=True)
    path = tmp_path_factory.getbasetemp() / "any.yml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    cluster, said = try_to_load(path)
    assert all(line.startswith(str(path)) and line.isprintable() for line in said)
    if cluster is None:
        return
    assert re.fullmatch(r"[A-Za-z0-9:][A-Za-z0-9._:-]* slots=1\n", render_open_mpi(cluster))
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cluster.hosts[0].name)
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9._-]*", cluster.hosts[0].user or "")


@patient
@given(st.binary(max_size=200))
def test_any_bytes_are_a_cluster_or_an_error_for_people(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    """No file ends in anything but a cluster or an `InputError`."""
    path = tmp_path_factory.getbasetemp() / "noise.yml"
    path.write_bytes(HEAD.encode() + noise)
    cluster, said = try_to_load(path)
    assert cluster.world_size > 0 if cluster else said[0].startswith(str(path))
