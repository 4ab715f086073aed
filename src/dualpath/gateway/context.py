"""What every route needs, and the two things every route does: read a body, answer with JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from dualpath.gateway.backend import Backend
from dualpath.gateway.errors import ApiError
from dualpath.gateway.metrics import Metrics
from dualpath.gateway.plan import Planner
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.shapes import encode_json
from dualpath.gateway.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gateway:
    backend: Backend
    tokenizer: Tokenizer
    settings: GatewaySettings
    metrics: Metrics
    planner: Planner

    async def on_body(self, request: Request, work: Callable[[bytes], T]) -> T:
        """``work`` over the request's body: long ones in a thread, as tokenising them would stall running streams."""
        raw = await self._read(request)
        if len(raw) <= self.settings.inline_body_bytes:
            return work(raw)
        return await self.tokenizer.in_thread(lambda: work(raw))

    async def _read(self, request: Request) -> bytes:
        limit = self.settings.max_body_bytes
        chunks: list[bytes] = []
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > limit:
                raise ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")
            chunks.append(chunk)
        return b"".join(chunks)


def json_response(payload: object) -> Response:
    return Response(encode_json(payload), media_type="application/json")
