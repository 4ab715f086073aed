"""Passthrough: a client's body goes to the decode server's own endpoint, which answers in its own words.

vLLM renders templates, parses tools and reasoning, and holds to grammars. Tokens of the prompt, which the scheduler
needs, come from its ``/render`` endpoints before; chat endpoints then take these instead of rendering again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from dualpath.core.errors import EngineLostError
from dualpath.core.exchange import KV_PARAMS, Exchange, Heard
from dualpath.core.request import NO_TOKEN, FinishReason, TokenEvent
from dualpath.vllm.api_server import ApiServer

_SAID = TokenEvent(0)  # which token it was, nobody knows


async def answer_steps(
    server: ApiServer, exchange: Exchange, kv: Mapping[str, Any]
) -> AsyncGenerator[tuple[TokenEvent, ...], None]:
    """Puts the answer's pieces into the exchange, and says by events when there are some, the last by its reason.

    Pieces that close the answer are said with its last token. Raises RefusedError for the client's fault.
    """
    exchange.begin()
    body = {**exchange.body, KV_PARAMS: {**exchange.body.get(KV_PARAMS, {}), **kv}}
    num_said, total, reason = 0, 0, None
    async with aclosing(_pieces(server, exchange, body)) as pieces:
        async for piece in pieces:
            heard = _read(exchange, piece)
            total = heard.num_tokens or total
            reason = reason or heard.finish_reason
            exchange.put(piece, closes=reason is not None)
            if heard.brings_tokens and reason is None:
                num_said += 1
                yield (_SAID,)
    if reason is None:
        raise EngineLostError(f"vLLM at {server.url} ended an answer without a reason")
    num_left = total - num_said
    end = FinishReason.LENGTH if reason == "length" else FinishReason.STOP
    yield (*[_SAID] * (num_left - 1), TokenEvent(0 if num_left > 0 else NO_TOKEN, finish_reason=end))


async def _pieces(server: ApiServer, exchange: Exchange, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
    if not exchange.is_stream:
        yield await server.ask(exchange.path, body, exchange.headers)
        return
    async with aclosing(server.events(exchange.path, body, exchange.headers)) as events:
        async for event in events:
            yield event


def _read(exchange: Exchange, piece: bytes) -> Heard:
    heard = exchange.read(piece)
    if heard.error is not None:
        raise EngineLostError(f"vLLM gave up: {heard.error}")
    return heard
