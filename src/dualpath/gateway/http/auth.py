"""Keys, checked before anything else reads the request; whose key it is goes with the request from here on.

They come as OpenAI's clients send them, ``Authorization: Bearer KEY``, or as Anthropic's do, ``x-api-key: KEY``.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from dualpath.gateway.errors import ApiError
from dualpath.gateway.tenants import EVERYBODY, Tenant, Tenants

_PAGE = {"/dualpath", "/dualpath/live.css", "/dualpath/live.js"}  # they ask for a key themselves
OPEN_PATHS = frozenset({"/health", "/liveness", "/ping", "/metrics"} | _PAGE)  # probes and scrapers have no keys
_TENANT = "dualpath.tenant"  # in the ASGI scope


class KeyAuth:
    """ASGI middleware; it never touches bodies, so streams pass at full speed."""

    def __init__(self, app: ASGIApp, tenants: Tenants) -> None:
        self._app = app
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        tenant = self._tenant_of(headers)
        if tenant is not None:
            scope[_TENANT] = tenant
            await self._app(scope, receive, send)
            return
        message = (
            "Incorrect API key provided."
            if "authorization" in headers or "x-api-key" in headers
            else "No API key provided. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        )
        error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await error.response()(scope, receive, send)

    def _tenant_of(self, headers: Headers) -> Tenant | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [token] if scheme.lower() == "bearer" else []
        given += headers.getlist("x-api-key")  # some clients send both, and mean one of them
        found = [self._tenants.find(key.strip().encode("latin-1")) for key in given]  # the bytes that were sent
        return next((tenant for tenant in found if tenant is not None), None)


def tenant_of(request: Request) -> Tenant:
    tenant: Tenant = request.scope.get(_TENANT, EVERYBODY)
    return tenant


def require_admin(request: Request) -> None:
    if not tenant_of(request).is_admin:
        raise ApiError(403, "This needs an admin key.", error_type="permission_error", code="admin_key_required")
