"""Token mode: ``/inference/v1/generate``. Our own sampling parameters become vLLM's, its answers become token events.

Prefill and decode engine sample parts of one answer here, and what one has sampled is the other's prompt. So whatever
vLLM computes from an answer's own tokens (presence and frequency penalties, grammars, a seeded generator's state) would
be wrong and is refused; what looks at prompt and answer alike is right.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import fields
from typing import Any

import msgspec

from dualpath.core.errors import EngineLostError, InvalidRequestError
from dualpath.core.request import FinishReason, Request, SamplingParams, TokenEvent
from dualpath.vllm.api_server import ApiServer

GENERATE = "/inference/v1/generate"
# No seed: one is drawn for every request (dualpath.scheduler.job), for engines of ours. The gateway refuses a client's.
_SENT = {"temperature", "top_p", "top_k", "min_p", "stop_token_ids", "ignore_eos", "repetition_penalty"}
_KNOWN = _SENT | {"max_tokens", "seed", "num_logprobs", "min_tokens", "logit_bias", "allowed_token_ids"}


class _Logprob(msgspec.Struct):
    token_id: int
    logprob: float


class _Sampled(_Logprob):
    top_logprobs: list[_Logprob] = []


class _Logprobs(msgspec.Struct):
    content: list[_Sampled] | None = None


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Error(msgspec.Struct):
    message: str = ""


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Answer).decode
_REASONS = {reason.value: reason for reason in (FinishReason.STOP, FinishReason.LENGTH)}


def sampling_body(params: SamplingParams, max_tokens: int, num_before: int) -> dict[str, Any]:
    """vLLM's ``sampling_params``, of a server that makes the answer's tokens behind the first ``num_before``.

    Raises InvalidRequestError for what cannot be split over two engines.
    """
    for field in fields(params):
        if field.name not in _KNOWN and getattr(params, field.name) != field.default:
            raise InvalidRequestError(
                f"{field.name} is not supported in token mode: use --front-door passthrough", param=field.name
            )
    body: dict[str, Any] = {name: getattr(params, name) for name in _SENT}
    body |= {"max_tokens": max_tokens, "detokenize": False}
    if params.min_tokens > num_before:
        body["min_tokens"] = min(max_tokens, params.min_tokens - num_before)
    if params.logit_bias:
        body["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias}
    if params.allowed_token_ids:
        body["allowed_token_ids"] = params.allowed_token_ids
    if params.num_logprobs is not None:
        body["logprobs"] = params.num_logprobs
    return body


def generate_body(
    request: Request, token_ids: Sequence[int], sampling: dict[str, Any], kv: dict[str, Any], *, stream: bool
) -> dict[str, Any]:
    body = {
        "request_id": request.request_id,
        "token_ids": token_ids,
        "sampling_params": sampling,
        "stream": stream,
        "kv_transfer_params": kv,
    }
    if request.cache_salt:
        body["cache_salt"] = request.cache_salt  # what vLLM itself keeps in its HBM is the tenant's own, too
    return body


async def first_token(server: ApiServer, body: dict[str, Any], num_logprobs: int | None) -> TokenEvent:
    """Of a prompt that is asked for one token. Its finish reason is STOP where it ends the answer, else LENGTH."""
    events = _events(_answer(await server.ask(GENERATE, body)), num_logprobs)
    if not events:
        raise EngineLostError(f"vLLM at {server.url} made no token")
    return events[-1]


async def token_events(
    server: ApiServer, body: dict[str, Any], num_logprobs: int | None
) -> AsyncGenerator[list[TokenEvent], None]:
    """What each of vLLM's steps brought; the last event of all has a finish reason."""
    async with aclosing(server.events(GENERATE, body)) as pieces:
        async for piece in pieces:
            data = piece.strip().removeprefix(b"data:").strip()
            if data == b"[DONE]":
                break
            if found := _events(_answer(data), num_logprobs):
                yield found


def _answer(data: bytes) -> _Answer:
    try:
        answer = _decode(data)
    except msgspec.DecodeError as error:
        raise EngineLostError(f"vLLM's answer cannot be read: {error}") from None
    if answer.error is not None:
        raise EngineLostError(f"vLLM gave up: {answer.error.message}")
    return answer


def _events(answer: _Answer, num_logprobs: int | None) -> list[TokenEvent]:
    events: list[TokenEvent] = []
    for choice in answer.choices:
        ids = choice.token_ids or []
        if choice.finish_reason is not None and (choice.finish_reason not in _REASONS or not ids):
            raise EngineLostError(f"vLLM ended a request by {choice.finish_reason!r}")
        content = choice.logprobs.content if choice.logprobs is not None else None
        for place, token_id in enumerate(ids):
            reason = _REASONS.get(choice.finish_reason or "") if place == len(ids) - 1 else None
            if content is None:
                events.append(TokenEvent(token_id, finish_reason=reason))
            else:
                top = _most_likely(content[place].top_logprobs, num_logprobs or 0)
                events.append(TokenEvent(token_id, content[place].logprob, top, reason))
    return events


def _most_likely(found: list[_Logprob], count: int) -> dict[int, float] | None:
    """vLLM puts the sampled token first, likely or not."""
    most = sorted(found, key=lambda item: -item.logprob)[:count]
    return {item.token_id: item.logprob for item in most} or None
