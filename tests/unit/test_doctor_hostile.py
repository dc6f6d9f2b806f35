"""Whatever hosts answer, no judge of the doctor raises: what cannot be read is unknown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from doctor_answers import CLUSTER, HOSTS, PINS, darwin, known, linux, see

from trainer.cluster.doctor.checks import CHECKS
from trainer.cluster.doctor.probe import make_views
from trainer.cluster.doctor.view import Answers, Output, UnknownError

HOSTILE = {
    "empty": "",
    "garbage": "\x00\x1b[2J\ufffd{[)]}%s %d {0} $(rm -rf /)",
    "numbers": "99999999999999999999999 -1 0x 1e999",
    "json list": "[1, [2], {}, null]",
    "json object": '{"packages": 7, "SPThunderboltDataType": {"a": 1}, "mpirun": 3}',
    "deep": "[" * 50_000,
    "huge": "Hardware Port: x\nDevice: " + "a b\n" * 50_000,
}


@pytest.mark.parametrize("machine", [linux, darwin])
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("exit_code", [0, 1, 124, 255])
def test_no_answer_makes_a_judge_fail(machine, kind: str, exit_code: int) -> None:
    """Whatever a host answers, each check ends with a finding, with "unknown" and a reason, or with nothing to say."""
    hostile = dict.fromkeys(machine(2), (exit_code, HOSTILE[kind])) | {"system": machine(2)["system"]}
    findings = see(machine(1), hostile)
    assert all(finding.detail or finding.evidence for finding in findings)
    assert not any("\x1b" in text for finding in findings for pair in finding.evidence for text in pair)


def spoil(text: str) -> Iterator[str]:
    """Yield a text cut off at several places, and its JSON with each part replaced by something else."""
    for part in range(1, 8):
        yield text[: len(text) * part // 8]
    yield text.replace("0", "x")
    try:
        table = json.loads(text)
    except ValueError:
        return
    for path in list(walk(table)):
        for other in (None, 7, -1.5, "x", [], {}, [[]], {"a": []}):
            yield json.dumps(put(json.loads(text), path, other))


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from walk(child, (*path, key))


def put(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """Return ``value`` with ``other`` at ``path``."""
    if not path:
        return other
    value[path[0]] = put(value[path[0]], path[1:], other)
    return value


@pytest.mark.parametrize("machine", [linux, darwin])
def test_no_spoilt_answer_makes_a_judge_raise(machine) -> None:
    """Each judge by itself, on each answer cut off or with other JSON in it: a fault, none, or `UnknownError`."""
    healthy = [{key: Output(command=key, exit_code=c, text=t) for key, (c, t) in machine(number).items()} for number in (1, 2)]
    for key, output in healthy[1].items():
        for text in spoil(output.text) if key != "system" else ():
            spoilt = {**healthy[1], key: dataclasses.replace(output, text=text)}
            answers = [Answers(outputs=outputs, began_at=995, ended_at=1005) for outputs in (healthy[0], spoilt)]
            fleet = make_views(CLUSTER, {host.name: each for host, each in zip(HOSTS, answers, strict=True)}, PINS)
            for check in (check for check in CHECKS if check.needs_host):
                for view in (view for view in fleet.values() if view.system in check.platforms):
                    with suppress(UnknownError):
                        check.judge(view)


@pytest.mark.parametrize("machine", [linux, darwin])
def test_what_was_not_asked_is_unknown(machine) -> None:
    """A host that only told its system has no findings but unknown ones, each with a reason."""
    findings = see(machine(1), {"system": machine(2)["system"]})
    assert known(findings) == []
    assert all(finding.detail and not finding.remedy for finding in findings)
