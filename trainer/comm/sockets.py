"""Latency and bandwidth of a plain TCP connection between two ranks, on a network that both are on."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

from trainer.comm.group import Comm
from trainer.errors import StalledError
from trainer.interfaces import Counters, count_since, read_counters

_CONNECT_S = 3.0
_SILENCE_S = 15.0
_PINGS = 60
_CHUNK = bytes(1 << 18)
STREAM_S, QUICK_STREAM_S = 1.0, 0.4
_REPEATS = 3


def probe_pair(pair: Comm, addresses: tuple[str, str], stream_s: float) -> dict[str, Any] | None:
    """Return latency (one way) and bandwidth up and down between the two ranks of ``pair``; a collective of both.

    ``addresses`` are theirs on the network in question; "up" is from the first rank to the second. The first rank gets the
    figures, the other None. With a ``problem`` instead where they do not reach each other.
    """
    before = read_counters()
    listener = socket.create_server((addresses[1], 0)) if pair.rank == 1 else None
    port = pair.all_gather(listener.getsockname()[1] if listener else 0)[1]
    try:
        connection = _connect(listener, addresses, port)
        problem = ""
    except OSError as error:
        connection, problem = None, f"{addresses[1]} does not answer {addresses[0]}: {error.strerror or error}"
    problems = [text for text in pair.all_gather(problem) if text]
    figures: dict[str, Any] = {"problem": problems[0]} if problems else {}
    if connection and not problems:
        try:
            with connection:
                figures |= _talk(pair, connection, stream_s)
        except OSError as error:
            reason = error.strerror or error
            raise StalledError(f"the connection from {addresses[0]} to {addresses[1]} broke off: {reason}") from error
    if listener:
        listener.close()
    carried = pair.all_gather(_busiest(before, read_counters()))
    return {**figures, "carried_by": carried} if pair.rank == 0 else None


def _connect(listener: socket.socket | None, addresses: tuple[str, str], port: int) -> socket.socket:
    if listener:
        listener.settimeout(_CONNECT_S + 1)
        connection = listener.accept()[0]
    else:
        connection = socket.create_connection((addresses[1], port), _CONNECT_S, source_address=(addresses[0], 0))
    connection.settimeout(_SILENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _talk(pair: Comm, connection: socket.socket, stream_s: float) -> dict[str, Any]:
    """Ping, then stream one way and the other; both ranks go through the same turns."""
    is_first = pair.rank == 0
    latency = list(_ping(connection)) if is_first else list(_answer(connection))
    up = [_stream(pair, connection, sends=is_first, seconds=stream_s) for _ in range(_REPEATS)]
    down = [_stream(pair, connection, sends=not is_first, seconds=stream_s) for _ in range(_REPEATS)]
    return {"latency_s": latency[10:], "up_bytes_per_s": up, "down_bytes_per_s": down}


def _ping(connection: socket.socket) -> Iterator[float]:
    """Yield half of each round trip's seconds."""
    for _ in range(_PINGS):
        started = time.perf_counter()
        connection.sendall(b"p")
        _receive(connection)
        yield (time.perf_counter() - started) / 2


def _answer(connection: socket.socket) -> Iterator[float]:
    for _ in range(_PINGS):
        _receive(connection)
        connection.sendall(b"p")
        yield 0.0


def _receive(connection: socket.socket) -> None:
    if not connection.recv(1):
        raise ConnectionResetError("the connection ended")


def _stream(pair: Comm, connection: socket.socket, *, sends: bool, seconds: float) -> float:
    """Send as much as goes in ``seconds``, or take it; returns the receiver's bytes per second on both ranks."""
    rates: list[float] = pair.all_gather(_send(connection, seconds) if sends else _take(connection))
    return max(rates)


def _send(connection: socket.socket, seconds: float) -> float:
    """Send zeros, then a byte that is none: it marks the end."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        connection.sendall(_CHUNK)
    connection.sendall(b"\x01")
    return 0.0


def _take(connection: socket.socket) -> float:
    """Return the rate from the first byte to the last."""
    buffer = bytearray(1 << 20)
    total, started, last = 0, 0.0, b"\x00"
    while last != b"\x01":
        count = connection.recv_into(buffer)
        if not count:
            raise ConnectionResetError("the connection ended")
        started = started or time.perf_counter()
        total += count
        last = bytes(buffer[count - 1 : count])
    return total / max(time.perf_counter() - started, 1e-9)


def _busiest(before: Counters, after: Counters) -> str:
    """Return the interface that carried most in between, other than loopback."""
    carried = {name: sum(ways.values()) for name, ways in count_since(before, after).items() if not name.startswith("lo")}
    return max(carried, key=carried.__getitem__, default="") if any(carried.values()) else ""
