"""A span for each HTTP request that generates, under the client's own where it sends a traceparent."""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dualpath.core import tracing

# OpenTelemetry's names of what is done (GenAI semantic conventions, gen_ai.operation.name).
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/inference/v1/generate": "text_completion",
    "/generate": "text_completion",
}


class Traced:
    """ASGI middleware. Without a sink: one comparison."""

    def __init__(self, app: ASGIApp, model_name: str) -> None:
        self._app, self._model_name = app, model_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sink = tracing.sink()
        if sink is None or scope["type"] != "http" or scope["path"] not in OPERATIONS or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        operation, status = OPERATIONS[scope["path"]], 0
        parent = Headers(scope=scope).get("traceparent", "")
        span = sink.begin(f"{operation} {self._model_name}", parent, time.time(), is_server=True)
        token = tracing.current.set(span.traceparent)

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            tracing.current.reset(token)
            attributes: dict[str, str | int] = {
                "http.request.method": scope["method"],
                "url.path": scope["path"],
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "dualpath",
                "gen_ai.request.model": self._model_name,
            }
            if status:
                attributes["http.response.status_code"] = status
            error = f"HTTP status {status}" if status >= 500 else None if status else "no answer was sent"
            span.end(time.time(), attributes, error)
