"""What the gateway needs of the cluster behind it: start a request, stream its tokens, say how things are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Protocol

from dualpath.core.ids import RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.request import RecordAnswer, RecordQuery, Request, RequestRecord, TokenEvent
from dualpath.core.stats import ClusterStats


class ServerControl(Protocol):
    """The server as a whole, for those who may change it: ``scheduler.control``."""

    find: Callable[[str], Sequence[RequestId]]
    may_see: Callable[[str, RequestId], bool]  # whether a request is one of the viewer's (``RecordQuery.viewer``)

    @property
    def is_paused(self) -> bool: ...

    @property
    def weight_version(self) -> str:
        """Of the weights that new requests are served with."""
        ...

    async def pause(self, mode: PauseMode = PauseMode.ABORT) -> None:
        """Give no requests to engines; what runs is aborted, or comes to its end, or is kept. Idempotent."""
        ...

    async def resume(self) -> None:
        """Idempotent."""
        ...

    async def update_weights(self, directory: str, version: str | None = None) -> str:
        """For all engines, or for none: raises WeightsError then. Returns what they are called."""
        ...

    async def flush(self) -> None:
        """Find nothing of what is stored now any more."""
        ...

    async def abort(self, names: Collection[str] | None = None) -> int:
        """End these requests, or all: their iterators raise RequestAbortedError. Returns how many there were.

        ``names``: as clients know them; ``find`` says which requests they are here, for there may be other gateways.
        """
        ...

    async def records(self, query: RecordQuery) -> RecordAnswer:
        """Of requests that run, and of the latest that have ended, at all gateways. Who gave no answer is named."""
        ...


class Backend(Protocol):
    """Implemented by the scheduler's service. All of it is called on the gateway's event loop and must not block it."""

    model_name: str
    max_context_tokens: int  # prompt + generated tokens that can be served

    @property
    def control(self) -> ServerControl: ...

    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...

    def accepts(self) -> bool:
        """Whether requests are worth sending: they are served now, or wait for what was there a moment ago."""
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
        """At most ``limit`` records of this gateway, newest first, running ones included."""
        ...

    async def stats(self) -> ClusterStats: ...

    def on_finished(self, callback: Callable[[RequestRecord], None]) -> None:
        """Have ``callback`` called once per request, at its end, whatever its outcome."""
        ...
