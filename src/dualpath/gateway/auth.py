"""Bearer keys, checked before anything else reads the request."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from dualpath.gateway.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/metrics"})  # load balancers and scrapers have no keys


class BearerAuth:
    """ASGI middleware; it never touches bodies, so streams pass at full speed."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._accepts(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        message = (
            "Incorrect API key provided."
            if "authorization" in Headers(scope=scope)
            else "No API key provided. Send it as 'Authorization: Bearer KEY'."
        )
        error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await error.response()(scope, receive, send)

    def _accepts(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        # All keys are compared, each in constant time: neither key nor position shows in the timing.
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        return any(matches)
