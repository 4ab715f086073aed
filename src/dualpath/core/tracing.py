"""Spans of requests, for whoever has installed a sink. Without one nothing is kept, and a look at ``sink()`` is all.

A span's context goes from process to process as a W3C ``traceparent``; "" is that of a request that is not traced.
Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol, TypeAlias

Attributes: TypeAlias = Mapping[str, str | int | float | bool]


class OpenSpan(Protocol):
    """``traceparent`` is "" where the span is not sampled."""

    @property
    def traceparent(self) -> str: ...

    def end(self, end_unix_s: float, attributes: Attributes, error: str | None = None) -> None: ...


class Sink(Protocol):
    """Any thread; must not block."""

    def begin(self, name: str, parent: str, start_unix_s: float, *, is_server: bool = False) -> OpenSpan:
        """``parent``: a traceparent, by whomever. One that cannot be read, or "", begins a trace."""
        ...


current: ContextVar[str] = ContextVar("traceparent", default="")  # of the HTTP request that is being answered
_sink: Sink | None = None


def install(sink: Sink | None) -> None:
    """For this process; None takes it away."""
    global _sink
    _sink = sink


def sink() -> Sink | None:
    return _sink


def add(name: str, parent: str, start_unix_s: float, end_unix_s: float, attributes: Attributes) -> None:
    """A span that is over. Nothing where the parent is not sampled."""
    if _sink is not None and parent:
        _sink.begin(name, parent, start_unix_s).end(end_unix_s, attributes)
