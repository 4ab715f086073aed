"""The operator's part of the API: health, version, metrics, where requests spent their time."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from dualpath import __version__
from dualpath.core.errors import DualPathError
from dualpath.gateway.context import Gateway, json_response
from dualpath.gateway.errors import invalid, not_ready

DEFAULT_RECENT, MAX_RECENT = 100, 10_000


def status_router(gateway: Gateway) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        if not gateway.backend.ready():
            raise not_ready()
        return Response(status_code=200)

    @router.get("/version")
    async def version() -> Response:
        return json_response({"version": __version__})

    @router.get("/metrics")
    async def metrics() -> Response:
        try:
            stats = await gateway.backend.stats()
        except DualPathError:  # an engine is gone; what the gateway knows by itself is still worth having
            stats = None
        return Response(gateway.metrics.render(stats), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/dualpath/requests")
    async def requests(request: Request) -> Response:
        records = gateway.backend.recent(_limit(request))
        return json_response({"object": "list", "data": records})

    @router.get("/v1/dualpath/stats")
    async def cluster_stats() -> Response:
        return json_response(await gateway.backend.stats())

    return router


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", str(DEFAULT_RECENT))
    if not given.isdecimal() or not 1 <= int(given) <= MAX_RECENT:
        raise invalid(f"limit must be a number between 1 and {MAX_RECENT}", "limit")
    return int(given)
