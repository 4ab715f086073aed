"""What the gateway needs of the cluster behind it: start a request, stream its tokens, say how things are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from dualpath.core.ids import RequestId
from dualpath.core.request import Request, RequestRecord, TokenEvent
from dualpath.core.stats import ClusterStats


class Backend(Protocol):
    """Implemented by the scheduler's service. All of it is called on the gateway's event loop and must not block it."""

    model_name: str
    max_context_tokens: int  # prompt + generated tokens that can be served

    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...

    def problems(self) -> tuple[str, ...]:
        """What an operator should know although requests are served, one line each, for everybody to see."""
        ...

    def generate(self, request: Request) -> AsyncIterator[TokenEvent]:
        """The request's tokens as they are made. The event with a ``finish_reason`` is the last one.

        Raises InvalidRequestError, OverloadedError or another DualPathError, at the call or from the iterator. The
        gateway reads a finished request's iterator to its end and otherwise closes it (``aclose``, or cancellation of
        the pending ``__anext__``), which cancels the request everywhere and may be awaited.
        """
        ...

    def record(self, request_id: RequestId) -> RequestRecord | None:
        """The record of a running or recent request; None if it is unknown or forgotten."""
        ...

    def recent(self, limit: int) -> list[RequestRecord]:
        """At most ``limit`` records, newest first, running ones included."""
        ...

    async def stats(self) -> ClusterStats: ...

    def on_finished(self, callback: Callable[[RequestRecord], None]) -> None:
        """Have ``callback`` called once per request, at its end, whatever its outcome."""
        ...
