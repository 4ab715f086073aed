"""The operator's part of the API: health, version, metrics, where requests spent their time."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from dualpath import __version__
from dualpath.core.errors import DualPathError
from dualpath.gateway.auth import require_admin, tenant_of
from dualpath.gateway.context import Gateway, json_response
from dualpath.gateway.errors import invalid, not_ready
from dualpath.gateway.openapi import openapi_document

DEFAULT_RECENT, MAX_RECENT = 100, 10_000


def status_router(gateway: Gateway) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        if not gateway.backend.ready():
            raise not_ready()
        return json_response({"problems": gateway.backend.problems()})

    @router.get("/version")
    async def version() -> Response:
        return json_response({"version": __version__})

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return json_response(openapi_document())

    @router.get("/metrics")
    async def metrics() -> Response:
        try:
            stats = await gateway.backend.stats()
        except DualPathError:  # an engine is gone; what the gateway knows by itself is still worth having
            stats = None
        return Response(gateway.metrics.render(stats), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/dualpath/requests")
    async def requests(request: Request) -> Response:
        limit, tenant = _limit(request), tenant_of(request)
        # A tenant's own may be far between those of others.
        records = gateway.backend.recent(limit if tenant.is_admin else MAX_RECENT)
        own = [record for record in records if tenant.may_see(record.request_id)]
        return json_response({"object": "list", "data": own[:limit]})

    @router.get("/v1/dualpath/stats")
    async def cluster_stats(request: Request) -> Response:
        if gateway.tenants.has_admins:
            require_admin(request)
        return json_response(await gateway.backend.stats())

    return router


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", str(DEFAULT_RECENT))
    if not given.isdecimal() or len(given) > len(str(MAX_RECENT)) or not 1 <= int(given) <= MAX_RECENT:
        raise invalid(f"limit must be a number between 1 and {MAX_RECENT}", "limit")
    return int(given)
