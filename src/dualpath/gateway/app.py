"""The gateway's FastAPI app: routes, keys and error shapes put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dualpath import __version__
from dualpath.core.errors import DualPathError
from dualpath.gateway.admission import Admission
from dualpath.gateway.auth import BearerAuth
from dualpath.gateway.backend import Backend
from dualpath.gateway.context import Gateway
from dualpath.gateway.errors import ApiError, as_api_error
from dualpath.gateway.metrics import Metrics
from dualpath.gateway.plan import Planner
from dualpath.gateway.refusals import CountRefusals
from dualpath.gateway.routes_openai import openai_router
from dualpath.gateway.routes_status import status_router
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.tenants import Tenants
from dualpath.gateway.tokenizer import Tokenizer

CLIENT_CLOSED_REQUEST = 499  # nobody will read it


def create_app(
    backend: Backend,
    tokenizer: Tokenizer,
    settings: GatewaySettings | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """An app over ``backend``; several may live in one process. The tokenizer's threads end with the app.

    ``metrics``: to be shared with the server, which has errors of its own to count.
    """
    settings = settings or GatewaySettings()
    metrics = metrics or Metrics()
    backend.on_finished(metrics.observe)
    planner = Planner(backend.model_name, backend.max_context_tokens, tokenizer, settings)
    admission = Admission(settings, backend.max_context_tokens, tokenizer)
    tenants = Tenants(settings.api_keys, settings.admin_keys, share_cache=settings.share_cache)
    gateway = Gateway(backend, tokenizer, settings, metrics, planner, admission, tenants)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        tokenizer.close()

    # Bodies are parsed by hand: gateway.openapi knows them, FastAPI does not.
    app = FastAPI(title="DualPath", version=__version__, lifespan=lifespan, openapi_url=None)
    app.include_router(openai_router(gateway))
    app.include_router(status_router(gateway))
    for error_type in (ApiError, DualPathError, Exception):
        app.add_exception_handler(error_type, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    if tenants:
        app.add_middleware(BearerAuth, tenants=tenants)
    app.add_middleware(CountRefusals, refusals=metrics.refusals)  # the last one is the outermost
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
