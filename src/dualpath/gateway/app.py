"""The gateway's FastAPI app: routes, keys and error shapes put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from dualpath import __version__
from dualpath.core.errors import DualPathError
from dualpath.gateway.anthropic.routes import anthropic_router
from dualpath.gateway.backend import Backend
from dualpath.gateway.context import Gateway
from dualpath.gateway.errors import ApiError, as_api_error
from dualpath.gateway.http.admission import Admission
from dualpath.gateway.http.auth import KeyAuth
from dualpath.gateway.http.head import HeadAsGet
from dualpath.gateway.http.refusals import CountRefusals
from dualpath.gateway.http.traced import Traced
from dualpath.gateway.metrics import Metrics
from dualpath.gateway.openai.plan import Planner
from dualpath.gateway.openai.routes import openai_router
from dualpath.gateway.page.minute_replay import MinuteReplay, Replay
from dualpath.gateway.page.routes import page_router
from dualpath.gateway.passthrough.routes import passthrough_router
from dualpath.gateway.passthrough.upstream import Upstream
from dualpath.gateway.responses.routes import responses_router
from dualpath.gateway.rollout.client_ids import ClientIds
from dualpath.gateway.rollout.routes import rollout_router
from dualpath.gateway.rollout.verbs import verbs_router
from dualpath.gateway.routes_status import status_router
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.tenants import Tenants
from dualpath.gateway.text.tokenizer import Tokenizer

CLIENT_CLOSED_REQUEST = 499  # nobody will read it
_CORS: dict[str, Any] = {
    "allow_methods": ["*"],
    "allow_headers": ["*"],
    "expose_headers": ["x-request-id", "retry-after"],
}


def create_app(
    backend: Backend,
    tokenizer: Tokenizer,
    settings: GatewaySettings | None = None,
    metrics: Metrics | None = None,
    upstream: Upstream | None = None,
    replay: Replay | None = None,
) -> FastAPI:
    """An app over ``backend``; several may live in one process. The tokenizer's threads end with the app.

    ``metrics``: to be shared with the server, which has errors of its own to count. ``upstream``: whose servers answer
    clients in their own words. ``replay``: what says for the page what the last minute would have been otherwise.
    """
    settings = settings or GatewaySettings()
    metrics = metrics or Metrics()
    metrics.name_model(backend.model_name)
    backend.on_finished(metrics.observe)
    planner = Planner(backend.model_name, backend.max_context_tokens, tokenizer, settings)
    if upstream is None:
        planner.warn_of_other_calls()
    admission = Admission(settings, backend.max_context_tokens, tokenizer)
    tenants = Tenants(settings.api_keys, settings.admin_keys, share_cache=settings.share_cache)
    gateway = Gateway(backend, tokenizer, settings, metrics, planner, admission, tenants)
    minute_replay = MinuteReplay(backend, replay)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await minute_replay.close()
        tokenizer.close()

    # Bodies are parsed by hand: gateway.openapi knows them, FastAPI does not.
    app = FastAPI(title="DualPath", version=__version__, lifespan=lifespan, openapi_url=None)
    if upstream is not None:
        app.include_router(passthrough_router(gateway, upstream))
    app.include_router(openai_router(gateway))
    app.include_router(responses_router(gateway))
    app.include_router(anthropic_router(gateway))
    client_ids = ClientIds()
    backend.control.find, backend.control.may_see = client_ids.find, tenants.may_see
    app.include_router(rollout_router(gateway, client_ids))
    app.include_router(verbs_router(gateway))
    app.include_router(status_router(gateway))
    app.include_router(page_router(gateway, minute_replay))
    for error_type in (ApiError, DualPathError, Exception):
        app.add_exception_handler(error_type, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    # The last one is the outermost. A browser asks whether it may ask before it shows its key.
    if tenants:
        app.add_middleware(KeyAuth, tenants=tenants)
    app.add_middleware(Traced, model_name=backend.model_name)
    app.add_middleware(HeadAsGet)
    if settings.allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.allowed_origins, **_CORS)
    app.add_middleware(CountRefusals, refusals=metrics.refusals)
    return app


async def _on_error(_: Request, error: Exception) -> Response:
    return as_api_error(error).response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    # Not request.url: it is put together from a Host header that may be anything.
    message = f"{error.detail}: {request.method} {request.scope['path']}"
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()


async def _on_disconnect(_: Request, error: Exception) -> Response:
    return ApiError(CLIENT_CLOSED_REQUEST, "the client is gone", code="client_closed_request").response()
