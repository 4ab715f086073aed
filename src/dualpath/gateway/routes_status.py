"""The operator's part of the API: health, version, metrics, where requests spent their time."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from dualpath import __version__
from dualpath.core.errors import DualPathError
from dualpath.core.ids import RequestId
from dualpath.core.request import RecordQuery
from dualpath.gateway.context import Gateway, json_response
from dualpath.gateway.errors import ApiError, invalid, not_ready
from dualpath.gateway.http.auth import require_admin, tenant_of
from dualpath.gateway.openapi import openapi_document
from dualpath.gateway.verdict.rules import PAUSED

LIVENESS_S = 4.0  # probes wait 5
DEFAULT_RECENT, MAX_RECENT = 100, 10_000


def status_router(gateway: Gateway) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    @router.get("/ping")  # SageMaker's name for it
    async def health() -> Response:
        if not gateway.backend.ready():
            raise not_ready()
        paused = (PAUSED,) if gateway.backend.control.is_paused else ()
        return json_response({"problems": [*gateway.backend.problems(), *paused]})

    @router.get("/liveness")
    async def liveness() -> Response:
        """Asks every engine's loop. Who is alive may still be unable to serve: that is for /health to say."""
        try:
            async with asyncio.timeout(LIVENESS_S):
                stats = await gateway.backend.stats()
        except (DualPathError, TimeoutError) as error:
            raise ApiError(503, f"the cluster does not answer: {error or 'time-out'}") from None
        if not stats.engines:
            raise ApiError(503, "no engine answers")
        return json_response({"engines": len(stats.engines)})

    @router.get("/load")
    async def load() -> Response:
        """vLLM's, for balancers: requests that run or wait."""
        stats = await gateway.backend.stats()
        return json_response({"server_load": stats.num_running_requests + stats.num_queued_requests})

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
        request_id = request.query_params.get("request_id")
        query = RecordQuery(
            _limit(request), None if request_id is None else RequestId(request_id), tenant_of(request).viewer
        )
        found = await gateway.backend.control.records(query)
        told = {"data": found.records, "missing": found.missing, "in_phase": found.in_phase}
        return json_response({"object": "list", **told})

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
