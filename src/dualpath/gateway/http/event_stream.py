"""One answer of server-sent events: headers with the first of them, and a ping whenever there was silence.

A prompt of a million tokens may take longer than a client, or a proxy between, waits for a sign of life. Until the
first ping a request that fails still gets a status of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Scope, Send

from dualpath.gateway.http.protocol import WRITE_NOW

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # asks nginx not to collect the stream
}


class EventStream:
    def __init__(
        self, scope: Scope, send: Send, headers: Mapping[str, str], begin: Callable[[], bytes], ping: bytes
    ) -> None:
        """``begin`` makes what stands before the first event, whether that is a ping or not."""
        self._write_now: Callable[[bytes], bool] | None = scope.get("state", {}).get(WRITE_NOW)
        self.started = False  # the status has been sent
        self._has_begun = False  # and what stands before the first event
        self._send = send
        self._headers = [(name.encode(), value.encode()) for name, value in {**_HEADERS, **headers}.items()]
        self._begin = begin
        self._ping = ping
        self._loop = asyncio.get_running_loop()
        self._sent_s = self._loop.time()
        self._turn = asyncio.Lock()  # of events and pings

    def send_now(self, event: bytes) -> bool:
        """Most events: without a wait, and past all that stands between us and the connection. False: ``send`` it."""
        if self._write_now is None or not self._has_begun or not self._write_now(event):
            return False
        self._sent_s = self._loop.time()
        return True

    async def send(self, event: bytes) -> None:
        async with self._turn:
            await self._write(event)

    async def end(self, event: bytes = b"") -> None:
        async with self._turn:
            await self._send(_body(event, more=False))

    @asynccontextmanager
    async def pinging(self, every_s: float) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self._send_pings(every_s))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # a client that is gone is noticed elsewhere

    async def _send_pings(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(self._sent_s + every_s - self._loop.time())
            async with self._turn:
                if self._loop.time() >= self._sent_s + every_s:
                    await self._write(self._ping)

    async def _write(self, event: bytes) -> None:
        if not self.started:
            event = self._begin() + event  # where that fails nothing has been sent
            # Cancelled while it waits to be written it has not been.
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            self.started = True
        self._sent_s = self._loop.time()
        await self._send(_body(event, more=True))
        self._has_begun = True


def _body(content: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}
