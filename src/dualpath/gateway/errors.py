"""Every failure leaves the gateway in the shape of the API that was asked, with a status.

OpenAI's: {"error": {"message", "type", "param", "code"}}. Anthropic's: {"type": "error", "error": {"type", "message"}}.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dualpath.core.errors import DualPathError, InvalidRequestError, OverloadedError, RequestAbortedError, WeightsError

logger = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
ERROR_CODE = "dualpath.error_code"  # in the ASGI scope: what kind of error the answer is
ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {  # https://platform.claude.com/docs/en/api/errors
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


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

    def anthropic_body(self) -> bytes:
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": encodable(self.message)}})

    def response(self) -> Response:
        return _ErrorResponse(self)


class _ErrorResponse(Response):
    """Leaves its code in the scope, for whoever counts errors."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(status_code=error.status)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._error
        scope[ERROR_CODE] = error.code or error.error_type
        body = error.anthropic_body() if is_anthropic(scope) else error.body()
        answer = Response(body, error.status, headers=error.headers, media_type="application/json")
        await answer(scope, receive, send)


def is_anthropic(scope: Scope) -> bool:
    """Whether the client speaks Anthropic's API: by the route, or by the header that all its clients send."""
    path: str = scope["path"]
    return (
        path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/") or "anthropic-version" in Headers(scope=scope)
    )


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
    if isinstance(error, RequestAbortedError):  # where the tokens so far cannot be given as an answer
        return ApiError(409, str(error), code="request_aborted")
    if isinstance(error, WeightsError):
        return ApiError(409, str(error), code="weights_not_changed")
    if isinstance(error, DualPathError):
        return ApiError(500, str(error), error_type=SERVER_ERROR, code=type(error).__name__)
    logger.error("unexpected error while serving a request", exc_info=error)
    return ApiError(500, "internal error", error_type=SERVER_ERROR, code="internal_error")
