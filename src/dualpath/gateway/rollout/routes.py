"""Generation by token ids: vLLM's /inference/v1/generate and SGLang's /generate.

``X-Session-ID`` and ``/finish_session`` are taken and change nothing: whatever an earlier request has stored, every
engine reads.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.context import Gateway, json_response
from dualpath.gateway.generation_route import generate
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.bodies import CompletionBody
from dualpath.gateway.openai.plan import Plan
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.rollout.bodies import GenerateBody, SglangBody
from dualpath.gateway.rollout.client_ids import ClientIds, check_name
from dualpath.gateway.rollout.sglang_writer import SglangWriter
from dualpath.gateway.rollout.vllm_writer import GenerateWriter
from dualpath.gateway.tenants import Tenant


def rollout_router(gateway: Gateway, client_ids: ClientIds) -> APIRouter:
    router = APIRouter()
    planner, record_of = gateway.planner, gateway.backend.record

    def job_of(body: CompletionBody, tenant: Tenant, name: str | None) -> tuple[GenerationJob, Output, str]:
        if body.max_tokens is None:
            body.max_tokens = planner.max_context_tokens  # as many as there is room for
        planner.check(body)
        job, output = planner.completion_job(body, tenant, "gen")
        if name is not None:
            client_ids.add(name, [choice.request.request_id for choice in job.choices])
        return job, output, name or job.job_id

    def vllm_plan(raw: bytes, tenant: Tenant) -> Plan:
        body = planner.parse(raw, GenerateBody)
        check_name(body.request_id, "request_id")
        job, output, name = job_of(body.completion(), tenant, body.request_id)
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        now = gateway.backend.control.weight_version
        writer: AnswerWriter = GenerateWriter(job, output, name, record_of, now, with_usage=usage)
        return Plan(job, writer, bool(body.stream))

    def sglang_plan(raw: bytes, tenant: Tenant) -> Plan:
        body = planner.parse(raw, SglangBody)
        check_name(body.rid, "rid")
        job, output, name = job_of(body.completion(), tenant, body.rid)
        now = gateway.backend.control.weight_version
        writer: AnswerWriter = SglangWriter(job, output, name, record_of, now, is_batch=body.is_batch)
        return Plan(job, writer, bool(body.stream))

    @router.post("/inference/v1/generate")
    async def inference_generate(request: Request) -> Response:
        return await generate(gateway, request, vllm_plan)

    @router.post("/generate")
    async def sglang_generate(request: Request) -> Response:
        return await generate(gateway, request, sglang_plan)

    @router.post("/finish_session")
    async def finish_session() -> Response:
        return json_response({"status": "ok"})

    return router
