"""A client's own HTTP request on its way to an engine that answers it in its own words, and the pieces of the answer.

The scheduler places such a request (``Request.is_opaque``) and has its KV moved as any other's; body and answer pass
it by, here. A token event of the request says that there are pieces to take; the last one, that these are all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dualpath.core.errors import InvalidRequestError
from dualpath.core.ids import RequestId

KV_PARAMS = "kv_transfer_params"  # vLLM's name in every body for what is said of a request's KV


@dataclass(frozen=True, slots=True)
class Heard:
    """What one piece of an answer says: an event of a stream, or the whole body."""

    brings_tokens: bool = False
    num_tokens: int | None = None  # of the answer so far, where the piece tells
    finish_reason: str | None = None  # set: the answer is complete but for its closing pieces
    error: str | None = None  # the engine's, in the middle of its answer


class RefusedError(InvalidRequestError):
    """The engine does not take the request: its HTTP status, and what it says of the client's fault."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status


@dataclass(slots=True, eq=False)
class Exchange:
    """One HTTP request, over all its attempts. Event loop only."""

    path: str
    body: Mapping[str, Any]  # the client's, parsed; the engine gets it with parameters of its own
    headers: Mapping[str, str]
    is_stream: bool
    read: Callable[[bytes], Heard]  # of a piece, in the language of ``path``
    _pieces: list[bytes] = field(default_factory=list)
    _closing: list[bytes] = field(default_factory=list)

    def begin(self) -> None:
        """Another attempt: what nobody has taken of the former's answer is nobody's."""
        self._pieces.clear()
        self._closing.clear()

    def put(self, piece: bytes, *, closes: bool = False) -> None:
        """``closes``: not before the last event, which comes later than this."""
        (self._closing if closes else self._pieces).append(piece)

    def take(self, *, is_last: bool) -> list[bytes]:
        """With an event: whatever has come by now. ``is_last``: and what closes the answer."""
        pieces, self._pieces = self._pieces, []
        return [*pieces, *self._closing] if is_last else pieces


class Exchanges:
    """All that are under way, by the id of their request."""

    def __init__(self, scope: str = "") -> None:
        """``scope``: what stands before their requests' ids at engines, as of a gateway beside others."""
        self._scope = scope
        self._open: dict[RequestId, Exchange] = {}

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def holding(self, request_id: RequestId, exchange: Exchange) -> Iterator[None]:
        self._open[request_id] = exchange
        try:
            yield
        finally:
            del self._open[request_id]

    def find(self, request_id: RequestId) -> Exchange | None:
        """None: its client is gone."""
        return self._open.get(RequestId(request_id.removeprefix(self._scope)))
