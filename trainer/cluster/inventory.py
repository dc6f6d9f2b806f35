"""Reading an Ansible inventory in YAML without Ansible: which hosts train, in which order, reached how.

Only the plain form is taken (``all.children.cluster.hosts``, without ranges or nested groups), so that Ansible and the
launcher cannot disagree; tests/contracts compares the two.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from trainer.errors import InputError
from trainer.schema import find_problems, join_path, load_schema, show_value, suggest

DEFAULT_INVENTORY = "inventory/hosts.yml"
_CLUSTER = "$.all.children.cluster"
_VARIABLES = (
    "slots",
    "address",
    "thunderbolt_network",
    "thunderbolt_mode",
    "thunderbolt_interface",
    "flotilla_root",
    "open_mpi_provider",
)
_SAME_EVERYWHERE = ("thunderbolt_network", "thunderbolt_mode", "flotilla_root")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine of the cluster: ``slots`` ranks run there.

    ``management`` is how the control machine reaches it, ``fast`` its address on the link that the gradients take.
    """

    name: str
    slots: int
    management: str
    is_local: bool
    fast: str | None = None
    user: str | None = None
    port: int | None = None

    @property
    def address(self) -> str:
        """Where the other hosts reach it: the fast link if there is one."""
        return self.fast or self.management


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The hosts in rank order: the first one, the head, holds rank 0 and starts the others.

    ``network`` is the one that the hosts' addresses lie in, None if that is not known; ``root`` is the folder of ours on
    every host; ``source`` the inventory's file, for messages.
    """

    hosts: tuple[Host, ...]
    network: Network | None = None
    root: PurePosixPath = field(default_factory=lambda: PurePosixPath(default_root()))
    mode: str = "bridge"
    source: str = field(default="", compare=False)

    @property
    def head(self) -> Host:
        """The host that runs mpirun."""
        return self.hosts[0]

    @property
    def world_size(self) -> int:
        """Number of ranks: the sum of all slots."""
        return sum(host.slots for host in self.hosts)

    @property
    def is_local(self) -> bool:
        """Whether all ranks run on this machine, so that nothing needs ssh."""
        return all(host.is_local for host in self.hosts)

    def over_management(self, network: Network | None) -> Cluster:
        """Return the cluster with its traffic on the management addresses, which lie in ``network``."""
        hosts = tuple(dataclasses.replace(host, fast=None) for host in self.hosts)
        return dataclasses.replace(self, hosts=hosts, network=network)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML keeps the last without a word.

    It refuses aliases as well: a few lines of them stand for more than any memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _refuse(f"*{event.anchor} stands for another part of the file; write it out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first_line: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _refuse("<< is not read here; write the keys out", key_node.start_mark)
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise _refuse('a list or table cannot be a key; put "{{ … }}" in quotes', key_node.start_mark)
            if key in first_line:
                raise _refuse(f"{show_value(key)} is listed twice, first on line {first_line[key]}", key_node.start_mark)
            first_line[key] = line
        return super().construct_mapping(node, deep)


def _refuse(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)


def load_inventory(path: Path) -> Cluster:
    """Return the cluster of an inventory file; raises `InputError` with every problem found."""
    table = _read_yaml(path)
    problems = find_problems(table, load_schema("inventory"), str(path))
    if problems:
        raise InputError(problems)
    variables = _merge_variables(table)
    problems = [f"{path}: {text}" for text in (*_find_misspelt(table), *_find_conflicts(variables))]
    if problems:
        raise InputError(problems)
    hosts = tuple(_make_host(name, values) for name, values in variables.items())
    first = next(iter(variables.values()))
    return Cluster(
        hosts=hosts,
        network=_find_network(first, hosts),
        root=PurePosixPath(first.get("flotilla_root") or default_root()),
        mode=first.get("thunderbolt_mode", "bridge"),
        source=str(path),
    )


def default_root() -> str:
    """Return the folder of ours on every host where the inventory names none; the playbooks choose it alike."""
    return "/Users/Shared/flotilla" if sys.platform == "darwin" else "/opt/flotilla"


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        table = yaml.load(text, Loader=_Loader)  # noqa: S506, a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: {', '.join(filter(None, (error.context, error.problem)))}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}:{line}: holds the character U+{error.character:04X}, which YAML does not allow") from error
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if table is None:
        raise InputError(f"{path}: the file is empty; it needs all.children.cluster.hosts")
    return table


def _merge_variables(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each host's variables with Ansible's precedence: all, then the group, then the host."""
    everyone = table["all"].get("vars") or {}
    cluster = table["all"]["children"]["cluster"]
    group = cluster.get("vars") or {}
    return {name: {**everyone, **group, **(own or {})} for name, own in cluster["hosts"].items()}


def _find_misspelt(table: Mapping[str, Any]) -> list[str]:
    """Return the variables that are meant to be ours, on all three levels; Ansible's own may have any name."""
    cluster = table["all"]["children"]["cluster"]
    levels = {"$.all.vars": table["all"].get("vars"), f"{_CLUSTER}.vars": cluster.get("vars")}
    levels |= {f"{_CLUSTER}.hosts.{name}": own for name, own in cluster["hosts"].items()}
    problems = []
    for where, values in levels.items():
        for key in values or {}:
            hint = "" if key in _VARIABLES else suggest(key.lower(), _VARIABLES, cutoff=0.8)
            if hint:
                problems.append(f"{join_path(where, [key])}: unknown variable{hint}")
    return problems


def _find_conflicts(variables: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what the schema cannot see: two hosts that are one, addresses that do not belong together."""
    hosts = [_make_host(name, values) for name, values in variables.items()]
    yield from _find_twins(hosts)
    for key in _SAME_EVERYWHERE:
        values = {name: own.get(key) for name, own in variables.items()}
        first, *others = values
        for name in (other for other in others if values[other] != values[first]):
            own, theirs = show_value(values[name]), show_value(values[first])
            yield f"{_CLUSTER}.hosts.{name}.{key}: {own} differs from {first}'s {theirs}; set it once, for all"
    yield from _find_strangers(next(iter(variables.values())), hosts)


def _find_twins(hosts: list[Host]) -> Iterator[str]:
    """Yield the hosts that are an earlier one under another name, and all but the first that are this machine."""
    for index, host in enumerate(hosts):
        shared = [(address, other) for other in hosts[:index] if (address := _shared_address(host, other))]
        for address, other in shared[:1]:
            yield f"{_CLUSTER}.hosts.{host.name}: has the same address {address} as {other.name}"
        if host.is_local and any(other.is_local for other in hosts[:index]) and not shared:
            yield f"{_CLUSTER}.hosts.{host.name}: is this machine, as another host is; give that one more slots instead"


def _shared_address(host: Host, other: Host) -> str:
    """Return an address that leads to both hosts, or nothing. One address with two ports is two machines behind it."""
    if host.management.lower() == other.management.lower() and (host.port or 22) == (other.port or 22):
        return host.management
    theirs = {address.lower() for address in (other.fast, other.management) if address}
    ours = [host.fast] if host.fast else [host.management] if other.fast else []
    if host.management.lower() == other.management.lower():
        theirs.discard(other.management.lower())
    return next((address for address in ours if address.lower() in theirs), "")


def _find_strangers(first: Mapping[str, Any], hosts: Iterable[Host]) -> Iterator[str]:
    """Yield the network that is none, and the fast addresses that lie outside it."""
    try:
        network = _find_network(first, hosts)
    except ValueError as error:
        yield f"{_CLUSTER}.vars.thunderbolt_network: {error}; give the network's own address, such as 10.99.0.0/24"
        return
    given = "thunderbolt_network" in first
    for host in hosts:
        address = _parse_address(host.fast)
        if network and host.fast and (address is None or address not in network):
            where = f"the network {network}" + ("" if given else ", that of the first host; thunderbolt_network can widen it")
            yield f"{_CLUSTER}.hosts.{host.name}.address: {show_value(host.fast)} is not in {where}"


def _find_network(first: Mapping[str, Any], hosts: Iterable[Host]) -> Network | None:
    """Return the network of the fast addresses: as given, or the usual one around the first; None if none is an address."""
    if given := first.get("thunderbolt_network"):
        return ipaddress.ip_network(given)
    addresses = [address for host in hosts if (address := _parse_address(host.fast))]
    width = 24 if addresses and addresses[0].version == 4 else 64
    return ipaddress.ip_network(f"{addresses[0]}/{width}", strict=False) if addresses else None


def _parse_address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text or "")
    except ValueError:
        return None


def _make_host(name: str, values: Mapping[str, Any]) -> Host:
    is_local = values.get("ansible_connection") == "local"
    return Host(
        name=name,
        slots=values.get("slots", 1),
        management=values.get("ansible_host") or ("localhost" if is_local else name),
        is_local=is_local,
        fast=values.get("address"),
        user=values.get("ansible_user"),
        port=values.get("ansible_port"),
    )
