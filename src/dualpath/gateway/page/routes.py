"""The live page's routes: three files that hold nothing secret; the stream and the replay, which need an admin key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from dualpath.gateway.context import Gateway
from dualpath.gateway.errors import ApiError
from dualpath.gateway.http.auth import require_admin
from dualpath.gateway.page.live import LiveView
from dualpath.gateway.page.minute_replay import MinuteReplay
from dualpath.gateway.page.sampler import Sampler

MAX_STREAMS = 256  # at once; of many pages most are between two streams
STREAM_S = 5.0  # then the page asks again: a server that ends waits no longer than this for pages
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:",
    "Cache-Control": "no-cache",
}


def page_router(gateway: Gateway, replay: MinuteReplay) -> APIRouter:
    router = APIRouter(include_in_schema=False)  # a page for people, no API
    sampler = Sampler(LiveView(gateway.backend, replay).event)
    pages: set[_Page] = set()

    @router.get("/dualpath")
    async def page() -> Response:
        return Response(_file("live.html"), media_type="text/html", headers=_HEADERS)

    @router.get("/dualpath/live.css")
    async def style() -> Response:
        return Response(_file("live.css"), media_type="text/css", headers=_HEADERS)

    @router.get("/dualpath/live.js")
    async def script() -> Response:
        return Response(_file("live.js"), media_type="text/javascript", headers=_HEADERS)

    @router.get("/dualpath/events")
    async def events(request: Request) -> Response:
        require_admin(request)
        if len(pages) >= MAX_STREAMS:
            raise ApiError(503, f"{MAX_STREAMS} pages are open already", headers={"Retry-After": "5"})
        return _Page(sampler.follow(STREAM_S), pages)

    @router.post("/dualpath/replay")
    async def replay_minute(request: Request) -> Response:
        """All pages see what comes of it in their streams: nobody waits for it here."""
        require_admin(request)
        replay.ask()
        return Response(status_code=202)

    return router


class _Page(StreamingResponse):
    """One of the open pages, from the moment it is admitted to the end of its stream, however it ends."""

    def __init__(self, stream: AsyncIterator[bytes], pages: set[_Page]) -> None:
        super().__init__(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._pages = pages
        pages.add(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pages.discard(self)


@cache
def _file(name: str) -> bytes:
    return files("dualpath.gateway.page").joinpath(name).read_bytes()
