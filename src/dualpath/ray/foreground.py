"""Signals for verbs that start a system: what they find may be Ray's handlers, and what they leave is Python's own."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dualpath.cluster.signals import SAME_WISH_S, interrupt_on_signals

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def first_signal() -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM inside sets the event; the next wish, also behind, raises KeyboardInterrupt."""
    came = threading.Event()
    first_s = 0.0

    def on_signal(*_: Any) -> None:
        nonlocal first_s
        if not came.is_set():
            first_s = time.monotonic()
            came.set()
        elif time.monotonic() - first_s >= SAME_WISH_S:
            raise KeyboardInterrupt

    _on_both(on_signal)
    try:
        yield came
    finally:
        if not came.is_set():
            interrupt_on_signals()


@contextmanager
def one_more_signal() -> Iterator[None]:
    """For cleaning up: inside, the first signal that is a wish of its own raises KeyboardInterrupt, and no later one
    does anything, so that what is done about the first comes to its end."""
    from_s = time.monotonic() + SAME_WISH_S
    has_come = False

    def on_signal(*_: Any) -> None:
        nonlocal has_come
        if not has_come and time.monotonic() >= from_s:
            has_come = True
            raise KeyboardInterrupt

    _on_both(on_signal)
    try:
        yield
    finally:
        interrupt_on_signals()


def _on_both(handler: Callable[..., None]) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)
