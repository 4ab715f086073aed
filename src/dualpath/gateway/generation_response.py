"""The HTTP response that runs a generation: whole or streamed, cancelled when the client goes, failures answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dualpath.core.errors import OverloadedError
from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.backend import Backend
from dualpath.gateway.errors import SERVER_ERROR, ApiError, as_api_error
from dualpath.gateway.http.event_stream import EventStream
from dualpath.gateway.openai.shapes import Usage


class Answering(Protocol):
    """What is answered: pieces for the writer, and what they come to. ``gateway.job.GenerationJob`` is one."""

    @property
    def job_id(self) -> str: ...

    def deltas(self, backend: Backend) -> AsyncGenerator[Any, None]: ...

    def usage(self, backend: Backend) -> Usage: ...


class GenerationResponse(Response):
    """Runs the job while it answers. However it ends, the backend's iterators are closed before the call returns."""

    def __init__(
        self,
        job: Answering,
        writer: AnswerWriter,
        backend: Backend,
        *,
        stream: bool,
        ping_s: float,
        on_rejected: Callable[[], None],
    ) -> None:
        """``ping_s``: a stream that is silent for so long gets a ping; the first one sends the status."""
        super().__init__()
        self._job = job
        self._writer = writer
        self._backend = backend
        self._stream = stream
        self._ping_s = ping_s
        self._on_rejected = on_rejected
        self._whole_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = EventStream(scope, send, self._answer_headers(), self._begin, self._writer.ping)
        answer = self._streamed(events, scope, receive, send) if self._stream else self._whole(scope, receive, send)
        try:
            await _until_disconnected(receive, answer)
        except asyncio.CancelledError:  # the server is ending: a request's task has no other reason
            error = ApiError(503, "the server is shutting down", error_type=SERVER_ERROR, code="shutting_down")
            if not self._whole_started:
                await self._end_with(error, events, scope, receive, send)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._job.deltas(self._backend)) as deltas:
                async for delta in deltas:
                    self._writer.add(delta)
            body = self._writer.whole(self._job.usage(self._backend))
        except Exception as error:  # every failure is answered
            await self._failed(error).response()(scope, receive, send)
            return
        self._whole_started = True
        await Response(body, headers=self._answer_headers(), media_type="application/json")(scope, receive, send)

    async def _streamed(self, events: EventStream, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that fails before anything was sent gets a status of its own."""
        writer = self._writer
        try:
            async with events.pinging(self._ping_s), aclosing(self._job.deltas(self._backend)) as deltas:
                async for delta in deltas:
                    if writer.usage_in_every_chunk:
                        writer.usage_so_far = self._job.usage(self._backend)
                    event = writer.chunk(delta)
                    if event and not events.send_now(event):
                        await events.send(event)
                await events.send(writer.end(self._job.usage(self._backend)))
        except Exception as error:  # every failure is answered
            await self._end_with(self._failed(error), events, scope, receive, send)
            return
        await events.end()

    async def _end_with(self, error: ApiError, events: EventStream, scope: Scope, receive: Receive, send: Send) -> None:
        if events.started:
            await events.end(self._writer.failed(error))
        else:
            await error.response()(scope, receive, send)

    def _begin(self) -> bytes:
        return self._writer.begin(self._job.usage(self._backend))

    def _answer_headers(self) -> dict[str, str]:
        return {"x-request-id": self._job.job_id, "request-id": self._job.job_id}  # OpenAI's name and Anthropic's

    def _failed(self, error: Exception) -> ApiError:
        if isinstance(error, OverloadedError):
            self._on_rejected()
        return as_api_error(error)


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
