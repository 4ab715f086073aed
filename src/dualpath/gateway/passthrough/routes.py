"""The routes of requests that pass through. Included before our own of the same paths, they come first."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from dualpath.core.errors import OverloadedError
from dualpath.gateway.context import Gateway
from dualpath.gateway.errors import not_ready
from dualpath.gateway.generation_response import GenerationResponse
from dualpath.gateway.http.auth import tenant_of
from dualpath.gateway.passthrough.answer import PassthroughWriter
from dualpath.gateway.passthrough.choices import ChoicesWriter
from dualpath.gateway.passthrough.dialects import DIALECTS, Dialect
from dualpath.gateway.passthrough.plan import PassthroughPlanner, parse
from dualpath.gateway.passthrough.upstream import Upstream

_COUNT_TOKENS = "/v1/messages/count_tokens"


def passthrough_router(gateway: Gateway, upstream: Upstream) -> APIRouter:
    router, planner = APIRouter(), PassthroughPlanner(upstream, gateway.settings.max_choices)
    for dialect in DIALECTS:
        _add(router, gateway, planner, dialect)

    @router.post(_COUNT_TOKENS)
    async def ask_count_tokens(request: Request) -> Response:
        body = await gateway.on_body(request, lambda raw: parse(raw, gateway.planner.max_containers))
        return Response(await planner.ask(_COUNT_TOKENS, body), media_type="application/json")

    return router


def _add(router: APIRouter, gateway: Gateway, planner: PassthroughPlanner, dialect: Dialect) -> None:
    @router.post(dialect.path)
    async def generate(request: Request) -> Response:
        if not gateway.backend.accepts():
            raise not_ready()
        try:
            body = await gateway.on_body(request, lambda raw: parse(raw, gateway.planner.max_containers))
        except OverloadedError:
            gateway.metrics.count_rejected()
            raise
        job = await planner.plan(dialect, body, tenant_of(request))
        is_one = len(job.parts) == 1
        return GenerationResponse(
            job,
            PassthroughWriter(dialect, body, job, gateway.backend)
            if is_one
            else ChoicesWriter(dialect, body, job.job_id),
            gateway.backend,
            stream=job.is_stream,
            ping_s=gateway.settings.stream_ping_s,
            on_rejected=gateway.metrics.count_rejected,
        )
