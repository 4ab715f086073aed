"""What an engine did for a request, kept until its order says under which trace; without a sink nothing is kept.

Reservations and reads come before the order that carries the trace. Any thread adds; the event loop emits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dualpath.core import tracing
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.core.runtime import Clock

_MAX_REQUESTS = 10_000  # whose order never came


@dataclass(frozen=True, slots=True)
class _Span:
    name: str
    start_s: float
    end_s: float
    attributes: dict[str, Any]


class EngineSpans:
    def __init__(self, engine_id: EngineId, node_id: NodeId, role: Role, runtime: Clock) -> None:
        self._own = {"dualpath.engine": engine_id, "dualpath.node": node_id, "dualpath.role": role.value}
        self._runtime = runtime
        self._kept: dict[RequestId, list[_Span]] = {}

    @property
    def is_on(self) -> bool:
        return tracing.sink() is not None

    def add(self, request_id: RequestId, name: str, start_s: float, end_s: float, **attributes: Any) -> None:
        """Seconds are the runtime's."""
        if not self.is_on:
            return
        if request_id not in self._kept and len(self._kept) >= _MAX_REQUESTS:
            self._kept.pop(next(iter(self._kept)))
        self._kept.setdefault(request_id, []).append(_Span(name, start_s, end_s, attributes))

    @contextmanager
    def around(self, request_id: RequestId, name: str) -> Iterator[dict[str, Any]]:
        """A span around the block; what is put into the dictionary are its attributes."""
        attributes: dict[str, Any] = {}
        start_s = self._runtime.now_s()
        try:
            yield attributes
        except BaseException as error:
            attributes["error.type"] = type(error).__name__
            raise
        finally:
            self.add(request_id, name, start_s, self._runtime.now_s(), **attributes)

    def emit(self, request_id: RequestId, traceparent: str) -> None:
        """All that was kept of the request, where it is traced; it is forgotten."""
        kept = self._kept.pop(request_id, ())
        if not kept or not traceparent:
            return
        to_unix_s = self._runtime.unix_s() - self._runtime.now_s()
        for span in kept:
            attributes = self._own | {f"dualpath.{name}": value for name, value in span.attributes.items()}
            tracing.add(span.name, traceparent, to_unix_s + span.start_s, to_unix_s + span.end_s, attributes)

    def forget(self, request_id: RequestId) -> None:
        self._kept.pop(request_id, None)
