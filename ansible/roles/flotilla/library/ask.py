#!/usr/bin/python
"""A module that asks a host several things in one go: each module that Ansible starts over there costs a third of a second."""

from __future__ import annotations

import shlex
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: ask
short_description: Run commands that change nothing, and return what they say
description: The commands run one after the other, without a shell, also in check mode.
options:
  commands:
    description: The commands, each as a list of words.
    type: list
    elements: list
    required: true
  may_fail:
    description: Programs that may be missing, or end with another exit code than 0; the answer is what they say all the same.
    type: list
    elements: str
    default: []
author: Flotilla
"""
RETURN = """
answers:
  description: What each command has said on its standard output.
  type: list
  elements: str
"""


def main() -> None:
    """Answer Ansible's request: with all answers, or with all that went wrong."""
    options = {
        "commands": {"type": "list", "elements": "list", "required": True},
        "may_fail": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    commands = [[str(word) for word in command] for command in module.params["commands"]]
    told = [ask(module, command) for command in commands]
    answers, problems = [answer for answer, _ in told], [problem for _, problem in told if problem]
    if problems:
        module.fail_json(msg="\n".join(problems), answers=answers)
    module.exit_json(answers=answers)


def ask(module: Any, command: list[str]) -> tuple[str, str]:
    """Return what ``command`` says, without newlines at its end, and what went wrong, if anything did that must not."""
    must_work = command[0] not in module.params["may_fail"]
    try:
        code, said, complained = module.run_command(command, handle_exceptions=False)
    except OSError as error:
        return "", f"{command[0]}: {error.strerror}" if must_work else ""
    problem = f"{shlex.join(command)} ended with {code}: {(complained or said).strip()}" if code and must_work else ""
    return said.rstrip("\r\n"), problem


if __name__ == "__main__":
    main()
