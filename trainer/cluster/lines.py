"""Lines out of streams that arrive in chunks."""

from __future__ import annotations


class LineBuffer:
    """Puts the chunks of one stream together to lines, returned without their newline."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def add(self, chunk: bytes) -> list[bytes]:
        """Return the lines that ``chunk`` completes."""
        *lines, last = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._rest = []
        self._rest.append(last)
        return lines

    def close(self) -> list[bytes]:
        """Return what came after the last newline, if anything did."""
        rest = b"".join(self._rest)
        self._rest = []
        return [rest] if rest else []
