"""SIGINT and SIGTERM while a testbed is made or removed: both undo what was begun, and nothing disturbs that."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupted_by_signals() -> AbstractContextManager[None]:
    """Both raise KeyboardInterrupt."""
    return _handled_by(signal.default_int_handler)


def undisturbed() -> AbstractContextManager[None]:
    """An impatient second Ctrl-C must not leave half a testbed; it takes seconds."""
    return _handled_by(signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """They come when this is over: a step that was begun has ended then, and what it made can be removed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
