"""Signals for verbs that start a system: what they find may be Ray's handlers, and what they leave is Python's own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dualpath.cluster.signals import interrupt_on_signals

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def first_signal() -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM inside sets the event; any later one, also behind, raises KeyboardInterrupt."""
    came = threading.Event()

    def on_signal(*_: Any) -> None:
        interrupt_on_signals()
        came.set()

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield came
    finally:
        interrupt_on_signals()
