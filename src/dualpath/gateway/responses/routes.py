"""OpenAI's Responses: /v1/responses and what a prompt of it costs."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from dualpath.core.errors import InvalidRequestError
from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.context import Gateway, json_response
from dualpath.gateway.generation_route import generate
from dualpath.gateway.http.auth import tenant_of
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.logprobs import LogprobWriter
from dualpath.gateway.openai.plan import Plan, Planner
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.responses.bodies import InputBody, ResponsesBody
from dualpath.gateway.responses.conversation import chat_body, renamed
from dualpath.gateway.responses.item_memory import ItemMemory
from dualpath.gateway.responses.items import Recall
from dualpath.gateway.responses.output import OutputItems
from dualpath.gateway.responses.writer import ResponseWriter
from dualpath.gateway.tenants import Tenant
from dualpath.gateway.text.answer import AnswerReading
from dualpath.gateway.text.blocks import Blocks

_SEALED = "reasoning.encrypted_content"  # to be included


def responses_router(gateway: Gateway) -> APIRouter:
    router = APIRouter()
    memory = ItemMemory()

    @router.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await generate(gateway, request, lambda raw, tenant: _plan(gateway.planner, memory, raw, tenant))

    @router.post("/v1/responses/input_tokens")
    async def input_tokens(request: Request) -> Response:
        recall = partial(memory.recall, tenant_of(request).digest)
        return json_response(await gateway.on_body(request, lambda raw: _count(gateway.planner, recall, raw)))

    return router


def _plan(planner: Planner, memory: ItemMemory, raw: bytes, tenant: Tenant) -> Plan:
    body = planner.parse(raw, ResponsesBody)
    chat, tools = chat_body(body, partial(memory.recall, tenant.digest))

    def keep(items: list[dict[str, Any]]) -> None:
        if body.store is not False:
            memory.keep(tenant.digest, items)

    def writer(job: GenerationJob, wanted: Output, reading: AnswerReading) -> AnswerWriter:
        num_top = wanted.num_logprobs
        logprobs = None if num_top is None else LogprobWriter(planner.tokenizer, num_top)
        seals = _SEALED in (body.include or ())
        output = OutputItems(job.job_id, tools, seals=seals, logprobs=logprobs, keep=keep)
        return ResponseWriter(job, body, Blocks(reading.parser()), output)

    try:
        return planner.answer(chat, tenant.new_id("resp"), tenant, writer)
    except InvalidRequestError as error:
        raise renamed(error) from error


def _count(planner: Planner, recall: Recall, raw: bytes) -> dict[str, Any]:
    body = planner.parse(raw, InputBody)
    planner.check_model(body.model)
    try:
        ids = planner.count(planner.conversation(chat_body(body, recall)[0]), "input", add_special_tokens=False)
    except InvalidRequestError as error:
        raise renamed(error) from error
    return {"object": "response.input_tokens", "input_tokens": len(ids)}
