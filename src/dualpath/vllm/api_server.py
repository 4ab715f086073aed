"""One vLLM API server over HTTP: requests in, whole answers or server-sent events out, and whether it is well.

What goes wrong is EngineLostError, as for any engine: the request can be served elsewhere. A request that vLLM itself
refuses (4xx) is the client's fault and raises RefusedError.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from dualpath.core.errors import EngineLostError
from dualpath.core.exchange import RefusedError

_CONNECT_S = 5.0
_HEALTH_S = 10.0  # a busy server is slow, not lost
_KEEP_IDLE_S = 2.0  # less than vLLM keeps an idle connection (5 s): it never closes one that we are about to use
_MAX_ERROR_CHARS = 500
_OVERLOADED = (408, 425, 429)


class ApiServer:
    """Event loop only. Deadlines are the caller's, but for connecting."""

    def __init__(self, url: str, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """``url``: empty where it is not known yet (``move``)."""
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_IDLE_S),
            trust_env=False,  # engines are never behind a proxy
            verify=self.url.startswith("https:"),  # else certificates would be read for nothing
            transport=transport,
        )

    def move(self, url: str, api_key: str) -> None:
        """It has been started again, elsewhere."""
        self.url = url.rstrip("/")
        self._http.base_url = self.url
        self._http.headers["Authorization"] = f"Bearer {api_key}"

    async def close(self) -> None:
        await self._http.aclose()

    async def check(self) -> None:
        """Raises EngineLostError unless the server says that it and its engine are well."""
        async with self._errors_named():
            response = await self._http.get("/health", timeout=_HEALTH_S)
        if response.status_code != 200:
            raise EngineLostError(f"vLLM at {self.url} is not well: {response.status_code}")

    async def is_up(self) -> bool:
        try:
            await self.check()
        except EngineLostError:
            return False
        return True

    async def ask(self, path: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None) -> bytes:
        """The answer's body. Cancelling it ends the request over there."""
        async with self._asking(path, body, headers) as response:
            return await response.aread()

    async def events(
        self, path: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A stream's server-sent events, each with the empty line that ends it. Closing it ends the request."""
        async with self._asking(path, body, headers) as response:
            rest = b""
            async for chunk in response.aiter_bytes():
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    yield event + b"\n\n"
            if rest.strip():
                yield rest + b"\n\n"

    @asynccontextmanager
    async def _asking(
        self, path: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None
    ) -> AsyncIterator[httpx.Response]:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        given = {"Content-Type": "application/json", **(headers or {})}
        async with self._errors_named(), self._http.stream("POST", path, content=content, headers=given) as response:
            if response.status_code != 200:
                raise self._refused(response, await response.aread())
            yield response

    def _refused(self, response: httpx.Response, body: bytes) -> Exception:
        status = response.status_code
        if 400 <= status < 500 and status not in _OVERLOADED:
            return _refusal(status, body)
        return EngineLostError(f"vLLM at {self.url} answered {status}: {_refusal(status, body)}")

    @asynccontextmanager
    async def _errors_named(self) -> AsyncIterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise EngineLostError(f"vLLM at {self.url} does not answer: {reason}") from None


class _Error(msgspec.Struct):
    message: str
    param: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


def _refusal(status: int, body: bytes) -> RefusedError:
    """An error's body in the shape of either API, or anything else as its own message."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.MsgspecError:
        error = _Error(body.decode("utf-8", "replace"))
    message = " ".join(error.message.split())[:_MAX_ERROR_CHARS]
    return RefusedError(status, message or "no reason was given", param=error.param)
