"""What every route needs, and the two things every route does: read a body, answer with JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from dualpath.gateway.backend import Backend
from dualpath.gateway.http.admission import Admission
from dualpath.gateway.metrics import Metrics
from dualpath.gateway.openai.plan import Planner
from dualpath.gateway.openai.shapes import encode_json
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.tenants import Tenants
from dualpath.gateway.text.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gateway:
    backend: Backend
    tokenizer: Tokenizer
    settings: GatewaySettings
    metrics: Metrics
    planner: Planner
    admission: Admission
    tenants: Tenants

    async def on_body(self, request: Request, work: Callable[[bytes], T]) -> T:
        return await self.admission.on_body(request, work)


def json_response(payload: object) -> Response:
    return Response(encode_json(payload), media_type="application/json")
