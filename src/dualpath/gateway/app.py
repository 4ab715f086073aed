"""The gateway's FastAPI app: routes, keys and error shapes put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dualpath import __version__
from dualpath.core.errors import DualPathError
from dualpath.gateway.auth import BearerAuth
from dualpath.gateway.backend import Backend
from dualpath.gateway.context import Gateway
from dualpath.gateway.errors import ApiError, as_api_error
from dualpath.gateway.metrics import Metrics
from dualpath.gateway.plan import Planner
from dualpath.gateway.routes_openai import openai_router
from dualpath.gateway.routes_status import status_router
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.tokenizer import Tokenizer

CLIENT_CLOSED_REQUEST = 499  # nobody will read it


def create_app(backend: Backend, tokenizer: Tokenizer, settings: GatewaySettings | None = None) -> FastAPI:
    """An app over ``backend``; several may live in one process. The tokenizer's threads end with the app."""
    settings = settings or GatewaySettings()
    metrics = Metrics()
    backend.on_finished(metrics.observe)
    planner = Planner(backend.model_name, backend.max_context_tokens, tokenizer, settings)
    gateway = Gateway(backend, tokenizer, settings, metrics, planner)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        tokenizer.close()

    # Bodies are parsed by hand, so a generated schema would say nothing.
    app = FastAPI(title="DualPath", version=__version__, lifespan=lifespan, openapi_url=None)
    app.include_router(openai_router(gateway))
    app.include_router(status_router(gateway))
    for error_type in (ApiError, DualPathError, Exception):
        app.add_exception_handler(error_type, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    if settings.api_keys:
        app.add_middleware(BearerAuth, api_keys=settings.api_keys)
    return app


async def _on_error(_: Request, error: Exception) -> Response:
    return as_api_error(error).response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _on_disconnect(_: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
