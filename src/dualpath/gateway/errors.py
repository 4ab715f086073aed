"""Every failure leaves the gateway in OpenAI's shape: {"error": {"message", "type", "param", "code"}} and a status."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dualpath.core.errors import DualPathError, InvalidRequestError, OverloadedError

logger = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
ERROR_CODE = "dualpath.error_code"  # in the ASGI scope: what kind of error the answer is


class ApiError(Exception):
    """An error as the client will see it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": {name: value and encodable(value) for name, value in error.items()}})

    def response(self) -> Response:
        return _ErrorResponse(self)


class _ErrorResponse(Response):
    """Leaves its code in the scope, for whoever counts errors."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.body(), error.status, headers=error.headers, media_type="application/json")
        self._code = error.code or error.error_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ERROR_CODE] = self._code
        await super().__call__(scope, receive, send)


def encodable(text: str) -> str:
    """``text`` with a mark in place of lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def invalid(message: str, param: str | None = None, code: str | None = None) -> InvalidRequestError:
    return InvalidRequestError(message, param=param, code=code)


def not_ready() -> ApiError:
    return ApiError(
        503, "the model is not ready yet", error_type=SERVER_ERROR, code="not_ready", headers={"Retry-After": "1"}
    )


def as_api_error(error: Exception) -> ApiError:
    """What the client is told. Errors that nobody foresaw are logged in full and told in no detail."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        return ApiError(400, str(error), param=error.param, code=error.code)
    if isinstance(error, OverloadedError):
        retry_after = str(max(1, math.ceil(error.retry_after_s)))
        return ApiError(
            429,
            str(error),
            error_type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": retry_after},
        )
    if isinstance(error, DualPathError):
        return ApiError(500, str(error), error_type=SERVER_ERROR, code=type(error).__name__)
    logger.error("unexpected error while serving a request", exc_info=error)
    return ApiError(500, "internal error", error_type=SERVER_ERROR, code="internal_error")
