"""A door in vLLM's API server (``--middleware``): by it DualPath has the engine stand still and change its weights.

vLLM's own endpoints for that are there in its developers' mode only, and open to whoever reaches the port. This door
opens to whoever knows the secret of the control line.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from dualpath.core.handshake import door_key, read_secret

PATH = "/dualpath/"
KEY_HEADER = "X-DualPath-Key"
_STILL_S = 60.0  # for requests to be where their KV can be given up
_AGAIN_S = 0.05
_log = logging.getLogger(__name__)
_Scope = MutableMapping[str, Any]


class Door:
    """ASGI middleware, outside of vLLM's own. Event loop of the API server."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app, self._key = app, door_key(read_secret(os.environ)).encode()
        self._turn = asyncio.Lock()

    async def __call__(self, scope: _Scope, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            await self._app(scope, receive, send)
            return
        status, message = await self._answer(scope, receive)
        content = b"{}" if status == 200 else msgspec.json.encode({"error": {"message": message}})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: _Scope, receive: Callable[[], Awaitable[Any]]) -> tuple[int, str]:
        given = dict(scope["headers"]).get(KEY_HEADER.lower().encode(), b"")
        if not hmac.compare_digest(given, self._key):
            return 401, "unauthorized"
        body, is_whole = b"", False
        while not is_whole:
            message = await receive()
            body += message.get("body", b"")
            is_whole = not message.get("more_body", False)
        call = VERBS.get(scope["path"].removeprefix(PATH))
        if call is None:
            return 404, "no such thing"
        try:
            async with self._turn:
                refusal = await call(scope["app"].state.engine_client, body.decode())
        except Exception as error:
            _log.exception("%s", scope["path"])
            return 500, repr(error)
        return (200, "") if refusal is None else (409, refusal)


async def check(engine: Any, _: str = "") -> str | None:
    try:
        refusals = await engine.collective_rpc("dualpath_check_weights")
    except Exception as error:  # where another --worker-extension-cls was given: it has not the method
        return f"its workers know nothing of changing weights: {error}"
    return _first(refusals)


def _first(refusals: list[Any]) -> str | None:
    """Of the workers'."""
    return next((str(refusal) for refusal in refusals if refusal is not None), None)


async def pause(engine: Any, _: str = "") -> None:
    await engine.pause_generation(mode="keep", clear_cache=False)


async def resume(engine: Any, _: str = "") -> None:
    await engine.resume_generation()


async def change(engine: Any, told: str) -> str | None:
    """Whatever becomes of it, the engine goes on unless it had been paused before; then its workers have either
    weights whole, all the same, or have ended with it."""
    was_paused = await engine.is_paused()
    changes_kv = await engine.collective_rpc("dualpath_changes_kv", args=(told,))
    try:
        if any(changes_kv):
            await _give_up_kv(engine)
        refusals = await engine.collective_rpc("dualpath_change_weights", args=(told,))
        if None in refusals and (refusal := _first(refusals)) is not None:
            await engine.collective_rpc("dualpath_end", args=(refusal,))
            raise RuntimeError(f"some workers have other weights, and some have not: {refusal}")
    finally:
        if not was_paused:
            await engine.resume_generation()
    return _first(refusals)


async def _give_up_kv(engine: Any) -> None:
    """It stands still on return, and no request has KV: those that go on have theirs computed again. A request
    whose prompt is on its way into KV is waited for, as vLLM cannot take it back."""
    now_s = asyncio.get_running_loop().time
    end_s = now_s() + _STILL_S
    while True:
        await engine.pause_generation(mode="keep", clear_cache=False)
        try:
            if await engine.reset_prefix_cache(reset_running_requests=True):
                return
            error: Exception | None = None
        except Exception as failure:
            error = failure
        if now_s() > end_s:
            raise TimeoutError(f"requests hold on to their KV: {error}")
        await engine.resume_generation()
        await asyncio.sleep(_AGAIN_S)


VERBS: dict[str, Callable[[Any, str], Awaitable[str | None]]] = {
    "check": check,
    "pause": pause,
    "resume": resume,
    "weights": change,
}
