"""The OpenAI part of the API, with vLLM's /tokenize and /detokenize."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from dualpath.gateway.context import Gateway, json_response
from dualpath.gateway.errors import invalid
from dualpath.gateway.generation_route import generate
from dualpath.gateway.openai.bodies import DetokenizeBody, TokenizeBody


def openai_router(gateway: Gateway) -> APIRouter:
    router = APIRouter()
    model = _model_card(gateway, created_unix_s=int(time.time()))

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await generate(gateway, request, gateway.planner.completion)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await generate(gateway, request, gateway.planner.chat)

    @router.get("/v1/models")
    async def models() -> Response:
        edges = {"has_more": False, "first_id": model["id"], "last_id": model["id"]}  # Anthropic's clients page
        return json_response({"object": "list", "data": [model], **edges})

    @router.get("/v1/models/{model_id:path}")
    async def one_model(model_id: str) -> Response:
        gateway.planner.check_model(model_id)
        return json_response(model)

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return json_response(await gateway.on_body(request, lambda raw: _tokenize(gateway, raw)))

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        return json_response(await gateway.on_body(request, lambda raw: _detokenize(gateway, raw)))

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        return json_response(gateway.tokenizer.info())

    return router


def _model_card(gateway: Gateway, *, created_unix_s: int) -> dict[str, Any]:
    return {
        "id": gateway.backend.model_name,
        "object": "model",
        "created": created_unix_s,
        "owned_by": "dualpath",
        "root": gateway.backend.model_name,
        "parent": None,
        "max_model_len": gateway.backend.max_context_tokens,
        # As Anthropic's API describes models.
        "type": "model",
        "display_name": gateway.backend.model_name,
        "created_at": datetime.fromtimestamp(created_unix_s, UTC).isoformat(),
    }


def _tokenize(gateway: Gateway, raw: bytes) -> dict[str, Any]:
    body = gateway.planner.parse(raw, TokenizeBody)
    gateway.planner.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("give either prompt or messages", "prompt")
    # As in generation: a prompt gets the tokenizer's special tokens by default, a template writes its own.
    is_prompt = body.prompt is not None
    text = body.prompt if body.prompt is not None else gateway.planner.conversation(body)
    special = is_prompt if body.add_special_tokens is None else body.add_special_tokens
    ids = gateway.planner.count(text, "prompt" if is_prompt else "messages", add_special_tokens=special)
    return {
        "count": len(ids),
        "max_model_len": gateway.backend.max_context_tokens,
        "tokens": ids,
        "token_strs": [gateway.tokenizer.token_text(token_id) for token_id in ids] if body.return_token_strs else None,
    }


def _detokenize(gateway: Gateway, raw: bytes) -> dict[str, Any]:
    body = gateway.planner.parse(raw, DetokenizeBody)
    gateway.planner.check_model(body.model)
    gateway.tokenizer.check_ids(body.tokens, "tokens")
    return {"prompt": gateway.tokenizer.decode(body.tokens, skip_special_tokens=False)}
