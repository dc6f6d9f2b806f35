"""What checks are made of, and what their judges look at: the answers of one host, beside those of all others."""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.cluster.inventory import Cluster, Host
from trainer.interfaces import Interface, find_owner, parse_ifconfig, parse_ip_addr

LINUX, DARWIN = "Linux", "Darwin"
BOTH = (DARWIN, LINUX)
Severity = Literal["problem", "note", "unknown"]
KEY_FILE = "~/.ssh/flotilla/id_ed25519"
KNOWN_HOSTS = "~/.ssh/flotilla/known_hosts"


class UnknownError(Exception):
    """A judge cannot tell; the text says why, and goes behind "unknown, because"."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What one command of the probe said, both streams together, and how it ended; ``command`` is as one would type it."""

    command: str
    exit_code: int
    text: str

    @property
    def is_late(self) -> bool:
        """Whether its time was up."""
        return self.exit_code in (124, 137)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All that the probe of one host brought. ``failure`` is what ssh said where the host could not be reached.

    ``began_at`` and ``ended_at`` are this machine's clock around the probe.
    """

    outputs: Mapping[str, Output] = field(default_factory=dict)
    command: str = ""
    failure: str = ""
    began_at: float = 0.0
    ended_at: float = 0.0


Quote = tuple[str, str]  # a command, and what of its output shows the failure


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a judge found: the outputs that show it, what they mean here, and values for the remedy's template.

    ``quotes`` are a command and what it said, where the part that matters is one of many lines.
    """

    shown_by: tuple[str, ...] = ()
    quotes: tuple[Quote, ...] = ()
    detail: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class View:
    """One host as a judge sees it; ``fleet`` holds the views of all hosts by name, this one included.

    ``pins`` are the versions that the environment's packages have by the lock.
    """

    host: Host
    cluster: Cluster
    answers: Answers
    fleet: Mapping[str, View]
    pins: Mapping[str, str] = field(default_factory=dict)

    @property
    def system(self) -> str:
        """The host's system, ``Darwin`` or ``Linux``; empty if it did not say."""
        output = self.answers.outputs.get("system")
        return output.text.strip() if output else ""

    @property
    def is_reached(self) -> bool:
        """Whether the probe ran there."""
        return not self.answers.failure and bool(self.answers.outputs)

    def output(self, key: str) -> Output:
        """Return what a command said, whatever its exit code; raises `UnknownError` if it was not run or not in time."""
        output = self.answers.outputs.get(key)
        if output is None:
            raise UnknownError("the host could not be asked" if self.answers.failure else "its turn did not come in time")
        if output.is_late:
            raise UnknownError(f"`{shorten(output.command)}` did not answer in time")
        return output

    def text(self, key: str) -> str:
        """Return what a command said; raises `UnknownError` if it failed."""
        output = self.output(key)
        if output.exit_code:
            said = shorten(output.text.strip()) or "nothing"
            raise UnknownError(f"`{shorten(output.command)}` ended with {output.exit_code} and said: {said}")
        return output.text

    def quote(self, key: str, *lines: str) -> Quote:
        """Return a command with these lines of what it said, as evidence."""
        return self.output(key).command, "\n".join(line.strip() for line in lines)

    def json(self, key: str) -> Any:
        """Return the JSON that a command printed; raises `UnknownError` if it is none."""
        text = self.text(key)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnknownError(f"`{shorten(self.output(key).command)}` did not print JSON") from error

    def table(self, key: str) -> dict[str, Any]:
        """Return the JSON object that a command printed; raises `UnknownError` if it is none."""
        value = self.json(key)
        if not isinstance(value, dict):
            raise UnknownError(f"`{shorten(self.output(key).command)}` printed another kind of JSON")
        return value

    def interfaces(self) -> list[Interface]:
        """Return the host's network interfaces; raises `UnknownError` if they cannot be read."""
        text = self.text("interfaces")
        try:
            found = parse_ifconfig(text) if self.system == DARWIN else parse_ip_addr(text)
            for address in (address for interface in found for address in interface.addresses):
                ipaddress.ip_interface(address)
            if not all(isinstance(word, str) for interface in found for word in (interface.name, interface.master)):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UnknownError("the list of its network interfaces is not readable") from error
        if not found:
            raise UnknownError("the list of its network interfaces is empty")
        return found

    def fast_interface(self) -> Interface | None:
        """Return the interface that carries the host's fast address; None if no interface does."""
        return find_owner(self.host.fast, self.interfaces()) if self.host.fast else None

    def others(self) -> list[View]:
        """Return the views of all other hosts, in the inventory's order."""
        return [view for view in self.fleet.values() if view is not self and view.host.name != self.host.name]

    def words(self) -> dict[str, str]:
        """Return the words that every remedy may use."""
        return {
            "inventory": shlex.quote(self.cluster.source or "INVENTORY"),
            "host": self.host.name,
            "management": self.host.management,
            "known_as": f"'[{self.host.management}]:{self.host.port}'"
            if self.host.port not in (None, 22)
            else self.host.management,
            "root": str(self.cluster.root),
            "user": self.host.user or "$(id -un)",
            "become": "" if self._has_free_sudo() else " --ask-become-pass",
        }

    def _has_free_sudo(self) -> bool:
        """Whether no reached host's sudo asks for a password, so that playbooks need none."""
        outputs = [output for view in self.fleet.values() if (output := view.answers.outputs.get("sudo"))]
        return bool(outputs) and all(output.exit_code == 0 for output in outputs)


def on_host(view: View, command: str, is_interactive: bool = True) -> str:
    """Return the line that runs ``command`` (a shell's text) on the host, from the control machine.

    ``is_interactive`` gives it a terminal, for sudo's question.
    """
    if view.host.is_local:
        return command
    port = f" -p {view.host.port}" if view.host.port not in (None, 22) else ""
    user = f"{view.host.user}@" if view.host.user else ""
    terminal = " -t" if is_interactive else ""
    ours = f"-i {KEY_FILE} -o UserKnownHostsFile={KNOWN_HOSTS}"
    return f"ssh{terminal} {ours}{port} {user}{view.host.management} {shlex.quote(command)}"


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """How a failure is mended: ``control`` is run on this machine, then ``command`` on the host, then our playbook with the
    tags ``playbook`` ("all": without tags). ``by_hand`` says what nobody can script. All of them are
    templates, which take the words of `View.words` and of the fault.
    """

    playbook: str = ""
    command: str = ""
    control: str = ""
    by_hand: str = ""
    ask_pass: bool = False

    def render(self, view: View, values: Mapping[str, str]) -> str:
        """Return the command to type on the control machine, or nothing if there is only something to do by hand."""
        words = {**view.words(), **values}
        parts = [self.control.format(**words)] if self.control else []
        parts += [on_host(view, self.command.format(**words))] if self.command else []
        if playbook := self.playbook.format(**words):
            tags = "" if playbook == "all" else f" --tags {playbook}"
            asking = " --ask-pass" if self.ask_pass else ""
            parts.append(f"./inv provision -i {words['inventory']}{tags}{asking}{words['become']}")
        return " && ".join(parts)

    def explain(self, view: View, values: Mapping[str, str]) -> str:
        """Return what is to be done by hand."""
        return self.by_hand.format(**{**view.words(), **values})


Judge = Callable[[View], Fault | None]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One failure: how it is called, why it matters, how it is found, and what mends it.

    ``number`` is that of the table of twenty, where it has one. ``looks`` says what is run, for readers. ``judge`` is pure;
    it raises `UnknownError` where it cannot tell. ``is_quick`` ones are looked at before every training.
    """

    id: str
    title: str
    platforms: tuple[str, ...]
    why: str
    looks: str
    judge: Judge
    remedy: Remedy
    number: int | None = None
    severity: Severity = "problem"
    is_quick: bool = False
    needs_host: bool = True


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One failure on one host, as it is told: with evidence, meaning and remedy. ``unknown`` says why nobody knows."""

    check: str
    number: int | None
    host: str
    title: str
    severity: Severity
    detail: str
    evidence: tuple[tuple[str, str], ...]
    why: str
    remedy: str
    by_hand: str
    is_about_link: bool = False


def shorten(text: str, num_lines: int = 1, width: int = 160) -> str:
    """Return the first lines of ``text``, none longer than ``width``, and nothing that would steer a terminal."""
    lines = text.strip().splitlines()
    kept = ["".join(c if c.isprintable() or c == "\t" else "?" for c in line[: width + 1]) for line in lines[:num_lines]]
    kept = [line if len(line) <= width else f"{line[: width - 1]}…" for line in kept]
    return "\n".join(kept) + ("\n…" if num_lines > 1 and len(lines) > num_lines else "")


def last_line(text: str) -> str:
    """Return the last line of what a command said, which is often the verdict."""
    return shorten((text.strip().splitlines() or [""])[-1].strip())
