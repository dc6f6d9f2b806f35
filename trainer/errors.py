"""Every error that a person may see, each with the exit code of the process it ends.

An error's text is written for the user: which file or host, what is wrong, what to do. Anything that is not a
``FlotillaError`` is a bug of ours and ends with exit code 70 and a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

EXIT_OK = 0
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class FlotillaError(Exception):
    """Base of all errors with a message for people; ``exit_code`` is what the process ends with."""

    exit_code: ClassVar[int] = EXIT_BUG


class InputError(FlotillaError):
    """Bad input: recipes, inventories, data, options. Carries every problem found, not just the first."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ClusterError(FlotillaError):
    """Hosts disagree, are unreachable, or the world is not the one that the launcher planned."""

    exit_code = 3


class DivergedError(FlotillaError):
    """The loss or the gradient is no longer finite."""

    exit_code = 4


class MemoryPlanError(FlotillaError):
    """The run does not fit in a host's memory."""

    exit_code = 5


class StalledError(FlotillaError):
    """No progress, or a rank was lost; the run may be resumed."""

    exit_code = 75
