"""A thread with a queue, for work that would keep the traffic thread from polling: checksums and memory copies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Worker:
    """Runs calls in order. ``then`` gets the exception that ended the call, or None, on the worker's thread."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], None], Callable[[Exception | None], None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()
        self._is_closed = False

    def start(self) -> None:
        self._thread.start()

    def run(self, call: Callable[[], None], then: Callable[[Exception | None], None]) -> bool:
        """Queue a call. False: the worker is closed, and neither ``call`` nor ``then`` will run."""
        with self._lock:
            if not self._is_closed:
                self._queue.put((call, then))
            return not self._is_closed

    def close(self) -> None:
        """Finish what is queued, then end. Waits for the thread."""
        with self._lock:
            self._is_closed = True
            self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            call, then = item
            error: Exception | None = None
            try:
                call()
            except Exception as failure:
                error = failure
            then(error)
            del item, call, then, error  # an idle thread keeps nothing alive
