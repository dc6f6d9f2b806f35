"""Ctrl-C and its kin on the control machine. Only the main thread gets signals: in any other one these do nothing.

One that is ignored, as under ``nohup``, stays ignored.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def taken_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handler`` take the interruptions while the block lasts."""
    with _replaced({number: handler for number, now in _current().items() if now not in (signal.SIG_IGN, None)}):
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Do not let one cut short what leaves a mess if it is cut and takes seconds; who takes them by `taken_by` still does."""
    ending = (signal.SIG_DFL, signal.default_int_handler)
    with _replaced({number: signal.SIG_IGN for number, now in _current().items() if now in ending}):
        yield


def _current() -> dict[signal.Signals, Any]:
    is_main = threading.current_thread() is threading.main_thread()
    return {number: signal.getsignal(number) for number in INTERRUPTIONS if is_main}


@contextlib.contextmanager
def _replaced(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
