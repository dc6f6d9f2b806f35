"""What a run told of its latest steps, kept with its checkpoints: who listens may be gone while the ranks go on.

When the control machine is gone the ranks finish their step and write a checkpoint, at a dead connection some steps later.
What they told meanwhile nobody has heard; whoever goes on from that checkpoint tells it again.
"""

from __future__ import annotations

from trainer.events import Event

_KINDS = ("step", "validated", "skipped")
_LARGEST = 512  # events, some 150 KiB: a step that takes milliseconds is told of in vain
_UNHEARD_S = 180.0  # how long a dead connection can stay unnoticed, with room: ssh gives up after a minute


class Diary:
    """The events of the latest steps, the same on every rank but for their times."""

    def __init__(self) -> None:
        self._entries: list[Event] = []

    def note(self, event: Event) -> None:
        """Remember an event if it is about a step."""
        if event["event"] in _KINDS:
            self._entries.append({**event, "rank": 0})
            del self._entries[:-_LARGEST]

    def pages(self) -> list[Event]:
        """Return what a checkpoint of now takes along."""
        return list(self._entries)

    def forget(self, step: int, now: float) -> None:
        """Let go of what was told long before ``now`` (seconds since the epoch), up to ``step``: a checkpoint has it."""
        self._entries = [each for each in self._entries if each["step"] > step or now - each["time"] < _UNHEARD_S]
