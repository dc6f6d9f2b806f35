"""Telling what was found: a table and paragraphs for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.cluster.doctor.judge import Result
from trainer.cluster.doctor.view import Finding, Severity, View

_MARKS = {"problem": "[bold red]✗[/]", "note": "[yellow]![/]", "unknown": "[dim]?[/]"}
_ORDER: tuple[Severity, ...] = ("problem", "note", "unknown")


def count_problems(results: Sequence[Result]) -> int:
    """Return how many problems were found: notes and what nobody knows are none."""
    return sum(result.finding is not None and result.finding.severity == "problem" for result in results)


def list_findings(results: Sequence[Result]) -> list[Finding]:
    """Return the findings, problems first, in the table's order."""
    found = [result.finding for result in results if result.finding]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def render_json(fleet: Mapping[str, View], results: Sequence[Result]) -> str:
    """Return everything as JSON: findings, what every check said about every host, and the probe's outputs in full."""
    table = {
        "problems": count_problems(results),
        "findings": [asdict(finding) for finding in list_findings(results)],
        "checks": [{"check": r.check.id, "host": r.host, "result": r.finding.severity if r.finding else "ok"} for r in results],
        "hosts": {
            name: {
                "reached": view.is_reached,
                "failure": view.answers.failure,
                "outputs": {key: asdict(output) for key, output in view.answers.outputs.items()},
            }
            for name, view in fleet.items()
        },
    }
    return json.dumps(table, indent=2, ensure_ascii=False)


def print_report(console: Console, fleet: Mapping[str, View], results: Sequence[Result]) -> None:
    """Print the table, a paragraph for every problem and note, why the rest is not known, and the count."""
    console.print(_make_table(fleet, results))
    findings = list_findings(results)
    for check in dict.fromkeys(each.check for each in findings if each.severity != "unknown"):
        _print_check(console, [each for each in findings if each.check == check and each.severity != "unknown"])
    for reason, hosts in _group_unknown(findings).items():
        console.print(f"\n[dim]?[/] {escape(reason)}: {escape(', '.join(hosts))}", soft_wrap=True)
    console.print(f"\n{_count(results, fleet)}", soft_wrap=True)


def _make_table(fleet: Mapping[str, View], results: Sequence[Result]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in fleet:
        table.add_column(escape(name), justify="center")
    checks = {result.check.id: result.check for result in results}
    said = {(result.check.id, result.host): result.finding for result in results}
    for check in checks.values():
        cells = [_mark(said[check.id, name]) if (check.id, name) in said else "" for name in fleet]
        table.add_row(escape(check.title), *cells)
    return table


def _mark(finding: Finding | None) -> str:
    return _MARKS[finding.severity] if finding else "[green]✓[/]"


def _print_check(console: Console, findings: Sequence[Finding]) -> None:
    """Print what one check found on some hosts; what is the same for all of them is printed once."""
    first, colour = findings[0], "red" if findings[0].severity == "problem" else "yellow"
    hosts = ", ".join(finding.host for finding in findings)
    console.print(f"\n[bold {colour}]{escape(hosts)}: {escape(first.title)}[/]", soft_wrap=True)
    for finding in findings:
        _print_rows(console, f"found on {finding.host}", [finding.detail])
        for command, said in finding.evidence:
            _print_rows(console, f"$ {command}", [said or "(nothing)"])
    _print_rows(console, "why", [first.why])
    _print_rows(console, "by hand", [finding.by_hand for finding in findings])
    _print_rows(console, "remedy", [finding.remedy for finding in findings])


def _print_rows(console: Console, name: str, texts: Sequence[str]) -> None:
    told = [text.replace("\n", "\n      ") for text in dict.fromkeys(texts) if text]
    if told:
        console.print("\n".join([f"  [dim]{escape(name)}[/]", *(f"      {escape(text)}" for text in told)]), soft_wrap=True)


def _group_unknown(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Return the reason of what nobody knows to the hosts and checks that it concerns."""
    groups: dict[tuple[str, str], list[str]] = {}
    for finding in (each for each in findings if each.severity == "unknown"):
        groups.setdefault((finding.host, finding.detail), []).append(finding.title)
    return {f"{host}: unknown, because {detail}": titles for (host, detail), titles in groups.items()}


def _count(results: Sequence[Result], fleet: Mapping[str, View]) -> str:
    counts = {kind: sum(r.finding is not None and r.finding.severity == kind for r in results) for kind in _ORDER}
    problems = "no problem" if not counts["problem"] else _plural(counts["problem"], "problem")
    rest = [_plural(counts["note"], "note"), f"{counts['unknown']} unknown"]
    return f"{problems} on {_plural(len(fleet), 'host')} ({', '.join(rest)})"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
