"""Errors over HTTP, counted by status and kind and told in the log: one line per kind now and then, not one each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dualpath.gateway.errors import ERROR_CODE

logger = logging.getLogger(__name__)

DROPPED = "none"  # the status of a connection that was closed without an answer
LOG_EVERY_S = 10.0
_MAX_PATH_CHARS = 80


@dataclass(slots=True)
class _Kind:
    told_s: float
    num_untold: int = 0


class RefusalCounter:
    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter = Counter(
            "dualpath_http_errors",
            "Requests answered with an error status, and connections dropped (status none), by kind",
            ["status", "code"],
            registry=registry,
        )
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def count(self, status: int | None, code: str, what: str) -> None:
        """``what`` names the request or the client; never a key, never a body."""
        shown = DROPPED if status is None else str(status)
        self._counter.labels(shown, code).inc()
        now_s, kind = self._clock(), self._kinds.get((shown, code))
        if kind is not None and now_s < kind.told_s + LOG_EVERY_S:
            kind.num_untold += 1
            return
        more = f", and {kind.num_untold} more like it" if kind is not None and kind.num_untold else ""
        logger.info("%s: %s %s%s", what, shown, code, more)
        self._kinds[shown, code] = _Kind(now_s)


class CountRefusals:
    """ASGI middleware around everything that answers."""

    def __init__(self, app: ASGIApp, refusals: RefusalCounter) -> None:
        self._app = app
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._refusals.count(message["status"], scope.get(ERROR_CODE) or "other", _request_line(scope))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:  # answered by the server's last resort, outside of us
            self._refusals.count(500, "internal_error", _request_line(scope))
            raise


def _request_line(scope: Scope) -> str:
    host, port = scope.get("client") or ("?", 0)
    return f"{scope['method']} {ascii(scope['path'][:_MAX_PATH_CHARS])[1:-1]} from {host}:{port}"
