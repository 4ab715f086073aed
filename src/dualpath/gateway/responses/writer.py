"""/v1/responses' answers: a response with its items, or the events that make one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dualpath.core.request import FinishReason
from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.errors import ApiError, encodable
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.shapes import Usage, encode_json
from dualpath.gateway.responses.bodies import ResponsesBody
from dualpath.gateway.responses.output import OutputItems
from dualpath.gateway.sse import named
from dualpath.gateway.text.blocks import Block, Blocks, Kind, Move, Step
from dualpath.gateway.text.choice import Delta

_PART_NAMES = {Kind.CONTENT: "output_text", Kind.REASONING: "reasoning_text"}

_BEGIN = ("response.created", "response.in_progress")


class ResponseWriter(AnswerWriter):
    def __init__(self, job: GenerationJob, body: ResponsesBody, blocks: Blocks, output: OutputItems) -> None:
        self._job = job
        self._body = body
        self._blocks = blocks
        self._output = output
        self._num_events = len(_BEGIN)  # which are written first, and made when something else is to be written

    def begin(self, usage: Usage) -> bytes:
        started = self._response("in_progress", None)
        return b"".join(
            named({"type": kind, "sequence_number": number, "response": started}) for number, kind in enumerate(_BEGIN)
        )

    def chunk(self, delta: Delta) -> bytes:
        return b"".join(self._step(step) for step in self._read(delta))

    def end(self, usage: Usage) -> bytes:
        response = self._ended(usage)
        return self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> bytes:
        """Without what the client has sent: to repeat that may be what cannot be done."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response = self._response("failed", None, ResponsesBody(input=""))
        response["error"] = {"code": code, "message": encodable(error.message)}
        return self._event("response.failed", response=response)

    def add(self, delta: Delta) -> None:
        self._read(delta)

    def whole(self, usage: Usage) -> bytes:
        body: bytes = encode_json(self._ended(usage))
        return body

    def _read(self, delta: Delta) -> list[Step]:
        steps = self._blocks.read(delta)
        return steps if self._blocks.blocks or not delta.finish_reason else self._blocks.say_nothing()

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._num_events
        self._num_events += 1
        return named({"type": kind, "sequence_number": number, **fields})

    def _step(self, step: Step) -> bytes:
        block, output = step.block, self._output
        at: dict[str, Any] = {"output_index": block.index}
        part_at = {**at, "item_id": output.item_id(block)}
        emit: Callable[..., bytes] = self._event
        if block.kind is Kind.CALL:
            name = "response.function_call_arguments"
            if step.move is Move.ADD:
                return emit(f"{name}.delta", **part_at, delta=step.text)
            if step.move is Move.CLOSE:
                item = output.item(block, self._is_cut(block))
                done = emit(f"{name}.done", **part_at, name=item["name"], arguments=block.text)
                return done + emit("response.output_item.done", **at, item=item)
            return emit("response.output_item.added", **at, item=output.begun(block))
        part_at["content_index"] = 0
        name = f"response.{_PART_NAMES[block.kind]}"
        if step.move is Move.OPEN:
            added = emit("response.output_item.added", **at, item=output.begun(block))
            return added + emit("response.content_part.added", **part_at, part=output.part(block, whole=False))
        logprobs = {"logprobs": output.logprobs(step.tokens)} if block.kind is Kind.CONTENT else {}
        if step.move is Move.ADD:
            return emit(f"{name}.delta", **part_at, delta=step.text, **logprobs)
        logprobs = {"logprobs": output.logprobs(block.tokens)} if block.kind is Kind.CONTENT else {}
        done = emit(f"{name}.done", **part_at, text=block.text, **logprobs)
        done += emit("response.content_part.done", **part_at, part=output.part(block, whole=True))
        return done + emit("response.output_item.done", **at, item=output.item(block, self._is_cut(block)))

    def _is_cut(self, block: Block) -> bool:
        """Only the last one may be incomplete: what closes before is complete."""
        return self._is_incomplete() and block is self._blocks.blocks[-1]

    def _is_incomplete(self) -> bool:
        last = self._blocks.last
        return last is not None and last.finish_reason == FinishReason.LENGTH.value

    def _ended(self, usage: Usage) -> dict[str, Any]:
        response = self._response("incomplete" if self._is_incomplete() else "completed", usage)
        if self._is_incomplete():
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        response["output"] = self._output.items(self._blocks.blocks, is_cut=self._is_incomplete())
        return response

    def _response(self, status: str, usage: Usage | None, body: ResponsesBody | None = None) -> dict[str, Any]:
        """``body``: what is repeated of it; None: of the client's own."""
        body, job = body or self._body, self._job
        return {
            "id": job.job_id,
            "object": "response",
            "created_at": job.created_unix_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": job.model_name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": usage and self._usage(usage),
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        num_cached = usage.prompt_tokens_details.cached_tokens
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": num_cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._blocks.num_reasoning_tokens},
            "total_tokens": usage.total_tokens,
        }
