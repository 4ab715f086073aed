"""One HTTP connection: uvicorn's, with deadlines for what the client owes, and errors in the API's own shape.

A client owes the header of a request, then its body, and it has to take its answer. While a request runs and the client
takes what there is, nothing here has a deadline, so streams last as long as they last. The body's deadline is that of
whoever reads it (``admission``); here only that of a body that nobody wants any more, because the request has
been answered.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from dualpath.gateway.errors import SERVER_ERROR, ApiError
from dualpath.gateway.http.refusals import RefusalCounter
from dualpath.gateway.settings import ConnectionLimits

logger = logging.getLogger(__name__)
WRITE_NOW = "write_now"  # ``HttpProtocol.write_now`` in a request's state
LINGER_S = 2.0  # for a client to take its last answer and close
# uvicorn writes a line for every malformed request; we count them, and tell of some.
_quiet = logging.getLogger(f"{__name__}.uvicorn")
_quiet.setLevel(logging.ERROR)


class _Owes(Enum):
    """What the server waits for."""

    NOTHING = "nothing"  # a request runs
    REQUEST = "request"  # not a byte has come
    HEADER = "header"
    BODY = "body"  # of a request that has been answered
    CLOSE = "close"  # it has been given its last answer


@dataclass(slots=True)
class Connections:
    """What a server's connections share."""

    limits: ConnectionLimits
    max_connections: int
    refusals: RefusalCounter
    # On which no request runs, longest first: what may be closed when there are too many.
    idle: dict[HttpProtocol, None] = field(default_factory=dict)


class HttpProtocol(H11Protocol):
    def __init__(self, *arguments: Any, shared: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = _quiet
        self.app_state = {**self.app_state, WRITE_NOW: self.write_now}
        self._shared = shared
        self._limits = shared.limits
        self._owes = _Owes.NOTHING
        self._num_answered = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._send_deadline: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0  # when its time began

    # -- what asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._look()
        if len(self.connections) > self._shared.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_deadlines()
        for state in (self.app_state, self.scope["state"] if self.scope is not None else {}):
            state.pop(WRITE_NOW, None)  # else each of us would be garbage that holds itself

    def data_received(self, data: bytes) -> None:
        if self._owes is _Owes.CLOSE or self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except Exception as error:  # what h11 lets through and nothing behind it can work with
            logger.debug("malformed request", exc_info=error)
            self.send_400_response("Invalid HTTP request received.")
        if self._owes is _Owes.REQUEST and self.conn.their_state is h11.IDLE:
            self._owe(_Owes.HEADER)
        else:
            self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    # -- what uvicorn calls -------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self._num_answered += 1
        super().on_response_complete()
        self._unset_keepalive_if_required()  # ours knows the difference between a header and a byte
        self._look()

    def send_400_response(self, msg: str) -> None:
        """Instead of uvicorn's text. What h11 says of the error is the status, such as 431 for a long header."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        status = status if 400 <= status < 500 else 400  # h11 has 501 for an unknown Transfer-Encoding: not our fault
        self._refuse(ApiError(status, msg, code="malformed_http"))

    def _should_upgrade(self) -> bool:
        return False

    def write_now(self, part: bytes) -> bool:
        """Write the next part of a body that has begun and whose length nobody has told, as h11 would: in a chunk.

        False: it is not for now, or not to be written so.
        """
        cycle = self.cycle
        if self.flow.write_paused or self.conn.their_http_version != b"1.1" or not part:
            return False
        if not cycle.response_started or cycle.response_complete or cycle.disconnected:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

    # -- deadlines ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find out what the client owes now; a deadline runs on while that is the same."""
        if self.transport.is_closing():
            self._forget_deadlines()
        elif self._owes is _Owes.CLOSE:
            return
        elif self.cycle is not None and not self.cycle.response_complete:
            self._owe(_Owes.NOTHING)
        elif self.conn.their_state is h11.SEND_BODY:
            self._owe(_Owes.BODY)
        elif self._owes is not _Owes.HEADER or self.conn.their_state is not h11.IDLE:
            self._owe(_Owes.REQUEST)

    def _owe(self, what: _Owes) -> None:
        if what is self._owes:
            return
        self._owes = what
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if what is _Owes.NOTHING:
            self._shared.idle.pop(self, None)
            return
        self._shared.idle.setdefault(self, None)
        self._deadline = self.loop.call_later(self._patience_s(what), self._on_deadline)

    def _patience_s(self, what: _Owes) -> float:
        if what is _Owes.CLOSE:
            return LINGER_S
        if what is _Owes.BODY:
            return self._limits.body_timeout_s
        if what is _Owes.REQUEST and self._num_answered:
            return self._limits.keep_alive_s
        return self._limits.header_timeout_s

    def _on_deadline(self) -> None:
        if self._owes is _Owes.HEADER:
            message = f"the request's header did not come within {self._limits.header_timeout_s:g} s"
            self._refuse(ApiError(408, message, code="header_timeout"))
        elif self._owes is _Owes.CLOSE or (self._owes is _Owes.REQUEST and self._num_answered):
            self._close()  # its usual end
        else:
            self._drop("body_timeout" if self._owes is _Owes.BODY else "no_request")

    def _watch_sending(self) -> None:
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._send_deadline = self.loop.call_later(self._limits.send_timeout_s, self._on_send_deadline)

    def _on_send_deadline(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent_bytes:  # slowly, but it takes it
            self._watch_sending()
            return
        self._shared.refusals.count(None, "send_timeout", self._peer())
        self._forget_deadlines()
        self.transport.abort()

    def _forget_deadlines(self) -> None:
        self._owe(_Owes.NOTHING)
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Close what has been without a request for longest; where all are at work, refuse this one."""
        oldest = next(iter(self._shared.idle))
        if oldest is not self:
            oldest._drop("evicted")
            return
        error = ApiError(503, "too many connections", error_type=SERVER_ERROR, code="too_many_connections")
        self._refuse(error)

    def _refuse(self, error: ApiError) -> None:
        """Answer with ``error`` if that is still possible, as the last thing on this connection."""
        if self._owes is _Owes.CLOSE or self.transport.is_closing():
            return
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way, or was sent
            self._drop(error.code or "other")
            return
        self._shared.refusals.count(error.status, error.code or "other", self._peer())
        body = error.body()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        start = h11.Response(status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status])
        for event in (start, h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._leave_request()
        # Closing with bytes unread would reset the connection, and the answer might be lost.
        self._owe(_Owes.CLOSE)
        self.flow.resume_reading()
        self.transport.write_eof()

    def _drop(self, code: str) -> None:
        if self._owes is _Owes.CLOSE:
            self._close()
            return
        self._shared.refusals.count(None, code, self._peer())
        self._close()

    def _close(self) -> None:
        self._forget_deadlines()
        self._leave_request()
        self.transport.close()

    def _leave_request(self) -> None:
        """The one that runs, if any: it must not write into the answer that was given for it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _peer(self) -> str:
        return "client {}:{}".format(*(self.client or ("?", 0)))
