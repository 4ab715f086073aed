"""Responses that generate: whole or streamed, cancelled the moment the client is gone, every failure answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dualpath.core.errors import OverloadedError
from dualpath.gateway.backend import Backend
from dualpath.gateway.errors import SERVER_ERROR, ApiError, as_api_error
from dualpath.gateway.job import Job
from dualpath.gateway.shapes import SSE_DONE
from dualpath.gateway.writer import UsageIn, Writer


class GenerationResponse(Response):
    """Runs the job while it answers. However it ends, the backend's iterators are closed before the call returns."""

    def __init__(
        self, job: Job, writer: Writer, backend: Backend, *, stream: bool, on_rejected: Callable[[], None]
    ) -> None:
        super().__init__()
        self._job = job
        self._writer = writer
        self._backend = backend
        self._stream = stream
        self._on_rejected = on_rejected
        self._started = False  # the status has been sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._streamed(scope, receive, send) if self._stream else self._whole(scope, receive, send)
        try:
            await _until_disconnected(receive, answer)
        except asyncio.CancelledError:  # the server is ending: a request's task has no other reason
            await self._cut_off(scope, receive, send)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._job.deltas(self._backend)) as deltas:
                async for delta in deltas:
                    self._writer.add(delta)
            body = self._writer.whole(self._job.usage(self._backend))
        except Exception as error:  # every failure is answered
            await self._failed(error).response()(scope, receive, send)
            return
        self._started = True
        headers = {"x-request-id": self._job.job_id}
        await Response(body, headers=headers, media_type="application/json")(scope, receive, send)

    async def _streamed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The status is sent with the first event only, so a request that fails before it gets a status of its own."""
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    if not self._started:
                        self._started = True
                        await send(self._stream_start())
                    await send(_body(event, more=True))
        except Exception as error:  # every failure is answered
            await self._end_with(self._failed(error), scope, receive, send)
            return
        await send(_body(b"", more=False))

    async def _end_with(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            await error.response()(scope, receive, send)
            return
        await send(_body(b"data: " + error.body() + b"\n\n", more=False))

    async def _cut_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = ApiError(503, "the server is shutting down", error_type=SERVER_ERROR, code="shutting_down")
        if self._stream or not self._started:
            await self._end_with(error, scope, receive, send)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._job.deltas(self._backend)) as deltas:
            async for delta in deltas:
                if self._writer.usage_in is UsageIn.EVERY_CHUNK:
                    self._writer.usage_so_far = self._job.usage(self._backend)
                event = self._writer.chunk(delta)
                if event:
                    yield event
        if self._writer.usage_in is not UsageIn.NOTHING:
            yield self._writer.usage_chunk(self._job.usage(self._backend))
        yield SSE_DONE

    def _stream_start(self) -> dict[str, Any]:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # asks nginx not to collect the stream
            (b"x-request-id", self._job.job_id.encode()),
        ]
        return {"type": "http.response.start", "status": 200, "headers": headers}

    def _failed(self, error: Exception) -> ApiError:
        if isinstance(error, OverloadedError):
            self._on_rejected()
        return as_api_error(error)


def _body(content: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def _until_disconnected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``; when the client goes or we are cancelled, cancel it and wait until it has let go of all."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, OSError):
        raise error  # OSError: the client was gone before we noticed


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
