"""Anthropic's part of the API: /v1/messages and what a prompt of it costs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.anthropic.bodies import CountBody, MessagesBody
from dualpath.gateway.anthropic.conversation import chat_body
from dualpath.gateway.anthropic.writer import MessageWriter
from dualpath.gateway.context import Gateway, json_response
from dualpath.gateway.generation_route import generate
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.plan import Plan, Planner
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.tenants import Tenant
from dualpath.gateway.text.answer import AnswerReading


def anthropic_router(gateway: Gateway) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/messages")
    async def messages(request: Request) -> Response:
        return await generate(gateway, request, lambda raw, tenant: _plan(gateway.planner, raw, tenant))

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        return json_response(await gateway.on_body(request, lambda raw: _count(gateway.planner, raw)))

    return router


def _plan(planner: Planner, raw: bytes, tenant: Tenant) -> Plan:
    body = planner.parse(raw, MessagesBody)
    eager = {str(tool.get("name")) for tool in body.tools or [] if tool.get("eager_input_streaming") is True}

    def writer(job: GenerationJob, _: Output, reading: AnswerReading) -> AnswerWriter:
        return MessageWriter(job, reading, eager_tools=eager)

    return planner.answer(chat_body(body), tenant.new_id("msg"), tenant, writer)


def _count(planner: Planner, raw: bytes) -> dict[str, Any]:
    body = planner.parse(raw, CountBody)
    planner.check_model(body.model)
    text = planner.conversation(chat_body(body))
    return {"input_tokens": len(planner.count(text, "messages", add_special_tokens=False))}
