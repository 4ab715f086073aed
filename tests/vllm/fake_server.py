"""vLLM's API server as far as DualPath asks it, with tokens that are a function of what is before them.

Shapes are those of vLLM 0.32's entrypoints. A token's text is one letter; a prompt's tokens are its letters.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.vllm.fake_nodes import DOOR_KEY, Worker
from uvicorn.server import ServerState

from dualpath.core.weights import Weights

MODEL, STOP_ID, MAX_MODEL_LEN = "m", 0, 400


def next_id(tokens: Sequence[int]) -> int:
    return 97 + (sum(tokens[-5:]) * 31 + len(tokens) * 7) % 26


def ids_of(text: str) -> list[int]:
    return [ord(letter) % 128 for letter in text]


def text_of(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def answer_to(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_id(tokens))
    return tokens[len(prompt) :]


@dataclass
class FakeVllm:
    """One server. ``asked`` keeps (path, body, headers) of what came in."""

    worker: Worker
    is_prefill: bool
    url: str = ""
    is_well: bool = True
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    fail_with: dict[str, tuple[int, Any]] = field(default_factory=dict)  # path -> (status, body)
    breaks: list[int] = field(default_factory=list)  # after so many tokens the connection does, in the next answers
    ended_by: str | None = None  # a finish reason of no use
    pause: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: steps wait
    step_s: float = 0.0  # a token takes
    num_cancelled: int = 0
    has_door: bool = True
    at_door: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pause.set()

    def app(self) -> Starlette:
        posts = {
            "/inference/v1/generate": self.generate,
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/v1/responses": self.responses,
            "/v1/messages": self.messages,
            "/v1/messages/count_tokens": self.count_tokens,
        }
        routes = [Route(path, self._guarded(path, call), methods=["POST"]) for path, call in posts.items()]
        for path in [path for path in posts if path.startswith("/v1/") and not path.endswith("tokens")]:
            routes.append(Route(f"{path}/render", self._guarded(f"{path}/render", self.render), methods=["POST"]))
        if self.has_door:
            routes.append(Route("/dualpath/{verb}", self.door, methods=["POST"]))
        return Starlette(routes=[*routes, Route("/health", self.health)])

    def _guarded(self, path: str, call: Any) -> Any:
        async def answer(request: Request) -> Response:
            body = await request.json()
            self.asked.append((path, body, dict(request.headers)))
            if path in self.fail_with:
                status, content = self.fail_with[path]
                return JSONResponse(content, status)
            found: Response = await call(body)
            return found

        return answer

    async def door(self, request: Request) -> Response:
        """As ``dualpath.vllm.door``; steps stand still for as long as ``pause`` is cleared."""
        path, body = request.url.path, await request.body()
        self.at_door.append(path.rpartition("/")[2])
        assert request.headers["x-dualpath-key"] == DOOR_KEY
        if path in self.fail_with:
            status, content = self.fail_with[path]
            return JSONResponse(content, status)
        if path.endswith("pause"):
            self.pause.clear()
        elif path.endswith("resume"):
            self.pause.set()
        elif path.endswith("weights"):
            self.worker.has = msgspec.json.decode(body, type=Weights)
        return JSONResponse({})

    async def health(self, _: Request) -> Response:
        return Response(status_code=200 if self.is_well else 503)

    # -- tokens -------------------------------------------------------------------------------------------------------

    async def tokens(self, prompt: Sequence[int], count: int, attached: dict[str, Any] | None) -> AsyncIterator[int]:
        """One by one. The node is told what has been computed, as by steps."""
        xid = None if attached is None else attached["dualpath"]["xid"]
        run = None
        if xid is not None and self.is_prefill:
            assert attached is not None
            assert self.worker.num_hit_tokens[xid] == attached["dualpath"]["num_tokens"]
            self.worker.computed[xid].set()
        elif xid is not None:
            run = self.worker.running[xid]
            assert attached is not None
            in_buffer = attached["dualpath"]["num_tokens"]
            assert in_buffer == len(run.order.request.prompt_token_ids)
            assert list(prompt[:in_buffer]) == list(run.order.request.prompt_token_ids)
        tokens, fail_after = list(prompt), self.breaks.pop(0) if self.breaks else None
        if run is not None and len(tokens) > in_buffer:
            run.computed(tokens)
        try:
            for number in range(count):
                await self.pause.wait()
                await asyncio.sleep(self.step_s)
                if number == fail_after:
                    raise ConnectionError
                tokens.append(next_id(tokens))
                if run is not None and number < count - 1:
                    run.computed(tokens)
                yield tokens[-1]
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise

    async def generate(self, body: dict[str, Any]) -> Response:
        params = body["sampling_params"]
        made = self.tokens(body["token_ids"], params["max_tokens"], body.get("kv_transfer_params"))
        if not body["stream"]:
            ids = [token async for token in made]
            choice = {"index": 0, "token_ids": ids, "finish_reason": self.ended_by or "length", "logprobs": None}
            return JSONResponse({"request_id": body["request_id"], "choices": [choice]})
        return _stream(self._generated(made, params))

    async def _generated(self, made: AsyncIterator[int], params: dict[str, Any]) -> AsyncIterator[bytes]:
        number = 0
        async for token in made:
            number += 1
            is_last = number == params["max_tokens"]
            logprobs = None
            if "logprobs" in params:
                top = [{"token_id": token, "logprob": -1.5}, {"token_id": 1, "logprob": -0.5}]
                logprobs = {"content": [{"token_id": token, "logprob": -1.5, "top_logprobs": top}]}
            reason = (self.ended_by or "length") if is_last else None
            choice = {"index": 0, "token_ids": [token], "finish_reason": reason, "logprobs": logprobs}
            yield _event({"request_id": "x", "choices": [choice]})
        yield b"data: [DONE]\n\n"

    # -- endpoints ----------------------------------------------------------------------------------------------------

    async def render(self, body: dict[str, Any]) -> Response:
        if body.get("model") not in (None, MODEL):
            message = f"The model `{body['model']}` does not exist."
            return JSONResponse({"error": {"message": message, "type": "NotFoundError", "code": 404}}, 404)
        if isinstance(body.get("prompt"), list) and body["prompt"] and isinstance(body["prompt"][0], str):
            return JSONResponse([self._rendered({**body, "prompt": item}) for item in body["prompt"]])
        found = self._rendered(body)
        return JSONResponse([found] if "prompt" in body else found)

    def _rendered(self, body: dict[str, Any]) -> dict[str, Any]:
        params = {"max_tokens": _max_tokens(body), "n": body.get("n") or 1}
        return {"token_ids": _prompt_of(body), "sampling_params": params, "features": body.get("features")}

    async def chat(self, body: dict[str, Any]) -> Response:
        prompt = _prompt_of(body)
        assert body.get("kv_transfer_params", {}).get("prompt_token_ids", prompt) == prompt
        made, count = self.tokens(prompt, _max_tokens(body), body.get("kv_transfer_params")), _max_tokens(body)
        usage = _usage(prompt, count)
        if body.get("stream"):
            return _stream(self._chat_events(made, body, usage))
        message = {"role": "assistant", "content": text_of([token async for token in made])}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        return JSONResponse({"id": "chatcmpl-x", "choices": [choice], "usage": usage})

    async def _chat_events(
        self, made: AsyncIterator[int], body: dict[str, Any], usage: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
            return _event({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

        yield chunk({"role": "assistant", "content": ""})
        number = 0
        async for token in made:
            number += 1
            yield chunk({"content": chr(token)}, "length" if number == usage["completion_tokens"] else None)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _event({"id": "x", "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    async def completions(self, body: dict[str, Any]) -> Response:
        prompt, count = _prompt_of(body), _max_tokens(body)
        made = self.tokens(prompt, count, body.get("kv_transfer_params"))
        text = text_of([token async for token in made])
        choice = {"index": 0, "text": text, "finish_reason": "length"}
        return JSONResponse({"id": "cmpl-x", "choices": [choice], "usage": _usage(prompt, count)})

    async def responses(self, body: dict[str, Any]) -> Response:
        prompt, count = _prompt_of(body), _max_tokens(body)
        made = self.tokens(prompt, count, body.get("kv_transfer_params"))
        usage = {
            "input_tokens": len(prompt),
            "input_tokens_details": {"cached_tokens": len(prompt) - 1},
            "output_tokens": count,
            "total_tokens": len(prompt) + count,
        }
        if body.get("stream"):
            return _stream(self._response_events(made, usage))
        text = text_of([token async for token in made])
        return JSONResponse({"id": body["request_id"], "status": "completed", "output": [text], "usage": usage})

    async def _response_events(self, made: AsyncIterator[int], usage: dict[str, Any]) -> AsyncIterator[bytes]:
        yield _named({"type": "response.created", "response": {"usage": None}})
        async for token in made:
            yield _named({"type": "response.output_text.delta", "delta": chr(token)})
        yield _named({"type": "response.output_text.done"})
        yield _named({"type": "response.completed", "response": {"status": "completed", "usage": usage}})

    async def messages(self, body: dict[str, Any]) -> Response:
        prompt, count = _prompt_of(body), _max_tokens(body)
        made = self.tokens(prompt, count, body.get("kv_transfer_params"))
        usage = {"input_tokens": 1, "cache_read_input_tokens": len(prompt) - 1, "output_tokens": count}
        if body.get("stream"):
            return _stream(self._message_events(made, usage))
        text = [{"type": "text", "text": text_of([token async for token in made])}]
        return JSONResponse(
            {"id": "x", "type": "message", "content": text, "stop_reason": "max_tokens", "usage": usage}
        )

    async def _message_events(self, made: AsyncIterator[int], usage: dict[str, Any]) -> AsyncIterator[bytes]:
        yield _named({"type": "message_start", "message": {"content": [], "usage": usage | {"output_tokens": 0}}})
        yield _named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        async for token in made:
            yield _named(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": chr(token)}}
            )
        yield _named({"type": "content_block_stop", "index": 0})
        yield _named({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": usage})
        yield _named({"type": "message_stop"})

    async def count_tokens(self, body: dict[str, Any]) -> Response:
        return JSONResponse({"input_tokens": len(_prompt_of(body))})


def _prompt_of(body: dict[str, Any]) -> list[int]:
    if "prompt" in body:
        prompt: list[int] = ids_of(body["prompt"]) if isinstance(body["prompt"], str) else body["prompt"]
        return prompt
    said = body.get("messages") or body["input"]
    return ids_of(said if isinstance(said, str) else "".join(item["content"] for item in said))


def _max_tokens(body: dict[str, Any]) -> int:
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    return next((int(body[name]) for name in names if body.get(name)), 16)


def _usage(prompt: Sequence[int], count: int) -> dict[str, Any]:
    """As a decode server that has got the whole prompt from outside tells it."""
    return {"prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _named(content: dict[str, Any]) -> bytes:
    return b"event: " + str(content["type"]).encode() + b"\n" + _event(content)


def _stream(events: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream")


@contextlib.asynccontextmanager
async def serving_app(app: Any) -> AsyncIterator[str]:
    """On a port of its own, until the end: its address."""
    config, state = uvicorn.Config(app, log_level="critical", lifespan="off"), ServerState()
    config.load()
    kind = cast(Any, config.http_protocol_class)
    protocol: Any = functools.partial(kind, config=config, server_state=state, app_state={})
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def listening(fake: FakeVllm) -> AsyncIterator[FakeVllm]:
    async with serving_app(fake.app()) as fake.url:
        yield fake
