"""Reading an Ansible inventory in YAML without Ansible: which hosts train, in which order, reached how.

Only the plain form is taken (``all.children.cluster.hosts``, without ranges or nested groups), so that Ansible and the
launcher cannot disagree; tests/contracts compares the two.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import InputError
from trainer.schema import find_problems, join_path, load_schema, show_value, suggest

DEFAULT_INVENTORY = "inventory/hosts.yml"
_CLUSTER = "$.all.children.cluster"


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine of the cluster. ``address`` is where the gradients go, ``slots`` how many ranks run there."""

    name: str
    slots: int
    address: str
    is_local: bool
    user: str | None = None
    port: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The hosts in rank order: the first one holds rank 0."""

    hosts: tuple[Host, ...]

    @property
    def world_size(self) -> int:
        """Number of ranks: the sum of all slots."""
        return sum(host.slots for host in self.hosts)

    @property
    def is_local(self) -> bool:
        """Whether all ranks run on this machine, so that nothing needs ssh."""
        return all(host.is_local for host in self.hosts)


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
    return Cluster(hosts=tuple(_make_host(name, values) for name, values in variables.items()))


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
            hint = "" if key in ("slots", "address") else suggest(key.lower(), ("slots", "address"), cutoff=0.8)
            if hint:
                problems.append(f"{join_path(where, [key])}: unknown variable{hint}")
    return problems


def _find_conflicts(variables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what the schema cannot see: two hosts at one address."""
    problems = []
    owners: dict[str, str] = {}
    for name, values in variables.items():
        address = _make_host(name, values).address
        if owner := owners.get(address.lower()):
            problems.append(f"{_CLUSTER}.hosts.{name}: has the same address {address} as {owner}")
        owners.setdefault(address.lower(), name)
    return problems


def _make_host(name: str, values: Mapping[str, Any]) -> Host:
    is_local = values.get("ansible_connection") == "local"
    fallback = "localhost" if is_local else name
    return Host(
        name=name,
        slots=values.get("slots", 1),
        address=values.get("address") or values.get("ansible_host") or fallback,
        is_local=is_local,
        user=values.get("ansible_user"),
        port=values.get("ansible_port"),
    )
