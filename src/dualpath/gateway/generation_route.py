"""The one handler of all routes that generate: body to plan, plan to a response that answers as tokens come."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request, Response

from dualpath.core.errors import OverloadedError
from dualpath.gateway.context import Gateway
from dualpath.gateway.errors import not_ready
from dualpath.gateway.generation_response import GenerationResponse
from dualpath.gateway.http.auth import tenant_of
from dualpath.gateway.openai.plan import Plan
from dualpath.gateway.tenants import Tenant


async def generate(gateway: Gateway, request: Request, plan_of: Callable[[bytes, Tenant], Plan]) -> Response:
    if not gateway.backend.accepts():
        raise not_ready()
    tenant = tenant_of(request)
    try:
        plan = await gateway.on_body(request, lambda raw: plan_of(raw, tenant))
    except OverloadedError:
        gateway.metrics.count_rejected()
        raise
    return GenerationResponse(
        plan.job,
        plan.writer,
        gateway.backend,
        stream=plan.stream,
        ping_s=gateway.settings.stream_ping_s,
        on_rejected=gateway.metrics.count_rejected,
    )
