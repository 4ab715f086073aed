"""Which engines are there: the one place that knows. Others read it, and are told when an engine goes or comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeAlias

from dualpath.core.ids import EngineId

_log = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[EngineId], object]


class Membership:
    """Event loop only. Listeners are called in the order in which they were added; none may raise.

    A *lost* engine does not answer: it may be running and moving bytes all the same. The process of one that is *gone*
    has ended.
    """

    def __init__(self, engine_ids: Iterable[EngineId]) -> None:
        self.engine_ids = tuple(engine_ids)
        self._lost: dict[EngineId, None] = {}
        self.epoch = 0  # how often an engine was lost or came back
        self.on_lost: list[Listener] = []
        self.on_gone: list[Listener] = []
        self.on_back: list[Listener] = []

    def is_lost(self, engine_id: EngineId) -> bool:
        return engine_id in self._lost

    @property
    def num_lost(self) -> int:
        return len(self._lost)

    @property
    def there(self) -> list[EngineId]:
        return [engine_id for engine_id in self.engine_ids if engine_id not in self._lost]

    def mark_lost(self, engine_id: EngineId, reason: Exception) -> None:
        """Idempotent."""
        if engine_id not in self._lost:
            _log.error("engine %s is lost: %r", engine_id, reason)
            self._lost[engine_id] = None
            self.epoch += 1
            _tell(self.on_lost, engine_id)

    def mark_gone(self, engine_id: EngineId) -> None:
        """Of a lost engine; as often as somebody sees it."""
        _tell(self.on_gone, engine_id)

    def mark_back(self, engine_id: EngineId) -> None:
        """Idempotent."""
        if engine_id in self._lost:
            _log.info("engine %s is back", engine_id)
            del self._lost[engine_id]
            self.epoch += 1
            _tell(self.on_back, engine_id)


def _tell(listeners: Iterable[Listener], engine_id: EngineId) -> None:
    for listener in listeners:
        listener(engine_id)
