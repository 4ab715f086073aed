"""From a request body to a job and its writer: check, render, tokenise. Pure work that may run in a thread."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dualpath.core.request import Request
from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.errors import ApiError, invalid
from dualpath.gateway.job import GenerationJob, Prompt, request_id_of
from dualpath.gateway.openai.bodies import (
    Body,
    ChatBody,
    CompletionBody,
    Generation,
    TokenizeBody,
    parse_body,
    refuse_unsupported,
)
from dualpath.gateway.openai.chat_writer import ChatWriter
from dualpath.gateway.openai.completion_writer import CompletionWriter
from dualpath.gateway.openai.constraint import chat_grammar, completion_grammar
from dualpath.gateway.openai.messages import conversation_text
from dualpath.gateway.openai.own_calls import reads_own_calls
from dualpath.gateway.openai.sampling import Output, check_ranges, output_of, resolve_max_tokens, sampling_of, too_long
from dualpath.gateway.openai.shape import Shape, shape_of
from dualpath.gateway.openai.writer import UsageIn
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.tenants import EVERYBODY, Tenant
from dualpath.gateway.text.answer import AnswerFormat, AnswerReading, chosen_format
from dualpath.gateway.text.choice import Choice
from dualpath.gateway.text.detokenize import Decode
from dualpath.gateway.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SLACK_CONTAINERS = 4096
MAX_COUNTED_CONTEXTS = 2  # longest contexts that one text to be counted may have
WriterOf = Callable[[GenerationJob, Output, AnswerReading], AnswerWriter]


@dataclass(frozen=True, slots=True)
class Plan:
    job: GenerationJob
    writer: AnswerWriter
    stream: bool


@dataclass(frozen=True, slots=True)
class Planner:
    """Knows the model and the limits. Raises ApiError or InvalidRequestError for whatever cannot be served.

    What cannot fit the context is refused before it is tokenised, or built as objects.
    """

    model_name: str
    max_context_tokens: int
    tokenizer: Tokenizer
    settings: GatewaySettings

    @property
    def max_containers(self) -> int:
        """Objects and arrays in a body: a message, a part or a call that is worth sending takes a token or more."""
        return self.max_context_tokens + SLACK_CONTAINERS

    def parse(self, raw: bytes, body_type: type[Body]) -> Body:
        return parse_body(raw, body_type, self.max_containers)

    def conversation(self, body: ChatBody | TokenizeBody) -> str:
        return conversation_text(self.tokenizer, body, self.max_containers)

    def completion(self, raw: bytes, tenant: Tenant = EVERYBODY) -> Plan:
        body = self.parse(raw, CompletionBody)
        self.check(body)
        if body.best_of not in (None, 1, body.n or 1):
            raise invalid("best_of is not supported", "best_of", "unsupported_parameter")
        job, output = self.completion_job(body, tenant, "cmpl")
        writer = CompletionWriter(job, self.tokenizer, output, echo=bool(body.echo), usage=_usage_in(body))
        return Plan(job, writer, bool(body.stream))

    def completion_job(self, body: CompletionBody, tenant: Tenant, prefix: str) -> tuple[GenerationJob, Output]:
        """``body`` is checked already; ``prefix``: of the job's id."""
        output = output_of(body, self.settings)
        decode = self.tokenizer.decoder(output.skip_special_tokens)
        shape = shape_of(body, self.tokenizer, self._completion_grammar(body))
        return self._job(tenant.new_id(prefix), body, output, shape, self._prompts(body), decode, tenant), output

    def chat(self, raw: bytes, tenant: Tenant = EVERYBODY) -> Plan:
        body = self.parse(raw, ChatBody)
        usage = _usage_in(body)

        def writer(job: GenerationJob, output: Output, reading: AnswerReading) -> AnswerWriter:
            return ChatWriter(job, self.tokenizer, output, reading=reading, usage=usage)

        return self.answer(body, tenant.new_id("chatcmpl"), tenant, writer)

    def answer(self, body: ChatBody, job_id: str, tenant: Tenant, writer_of: WriterOf) -> Plan:
        """The answer to a conversation, whichever API it came by and ``writer_of`` writes for."""
        refuse_unsupported(body)
        self.check(body)
        tools = body.tools or [] if _parse_tools(body) else []
        output = output_of(body, self.settings)
        text = self.conversation(body)
        ids = self._encode(text, "messages", add_special_tokens=bool(body.add_special_tokens))
        max_calls = 1 if body.parallel_tool_calls is False else None
        form = self._format()
        reading = form.reading(text, tools=tools, max_calls=max_calls)
        shape = shape_of(body, self.tokenizer, self._chat_grammar(body, tools, form, text))
        # Markup that the tokenizer counts as special would be dropped before it can be parsed.
        hide_special = output.skip_special_tokens and not reading.markup() & self.tokenizer.special_tokens
        decode = self.tokenizer.decoder(hide_special)
        prompt = self._prompt(ids, None, "messages")
        job = self._job(job_id, body, output, shape, [prompt], decode, tenant)
        return Plan(job, writer_of(job, output, reading), bool(body.stream))

    def _completion_grammar(self, body: CompletionBody) -> str:
        return completion_grammar(body, self.tokenizer, holds_forms=self.settings.holds_forms)

    def _chat_grammar(self, body: ChatBody, tools: list[dict[str, Any]], form: AnswerFormat, prompt: str) -> str:
        holds_forms = self.settings.holds_forms
        return chat_grammar(body, tools, form, self.tokenizer, prompt, holds_forms=holds_forms)

    def _format(self) -> AnswerFormat:
        settings = self.settings
        return chosen_format(self.tokenizer.chat_template, settings.tool_call_parser, settings.reasoning_parser)

    def warn_of_other_calls(self) -> None:
        """Say it where the model's calls would not be read."""
        form = self._format()
        if reads_own_calls(self.tokenizer, form) is False:
            logger.warning(
                "the chat template shows tool calls in another form than %s, in which they are read: they may come as "
                "content; --tool-call-parser sets the form",
                form.calls,
            )

    def count(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        """The tokens of a text that may be longer than a prompt, to be counted."""
        max_tokens = MAX_COUNTED_CONTEXTS * self.max_context_tokens
        if self.tokenizer.has_more_than(text, max_tokens):
            raise invalid(f"the text has more than {max_tokens} tokens", param)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def check_model(self, model: str | None) -> None:
        if model is not None and model != self.model_name:
            raise ApiError(404, f"The model `{model}` does not exist.", param="model", code="model_not_found")

    def check(self, body: Generation) -> None:
        self.check_model(body.model)
        check_ranges(body, self.settings, self.tokenizer)

    def _prompts(self, body: CompletionBody) -> list[Prompt]:
        special = body.add_special_tokens is not False
        prompts: list[Prompt] = []
        items = _prompt_items(body.prompt)
        num_choices, limit = len(items) * (body.n or 1), self.settings.max_choices
        if num_choices > limit:
            raise invalid(f"at most {limit} choices (prompts x n) are allowed, not {num_choices}", "n")
        for item in items:
            if isinstance(item, str):
                ids: Sequence[int] = self._encode(item, "prompt", add_special_tokens=special)
                prompts.append(self._prompt(ids, item if body.echo else None, "prompt"))
            else:
                prompts.append(self._prompt(item, None, "prompt"))
        return prompts

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        if self.tokenizer.has_more_than(text, self.max_context_tokens):
            raise too_long(self.max_context_tokens, f"more than {2 * self.max_context_tokens}", param)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _prompt(self, ids: Sequence[int], text: str | None, param: str) -> Prompt:
        if not ids:
            raise invalid(f"{param} must have at least one token", param)
        if len(ids) >= self.max_context_tokens:
            raise too_long(self.max_context_tokens, len(ids), param)
        self.tokenizer.check_ids(ids, param)
        return Prompt(tuple(ids), text)

    def _job(
        self,
        job_id: str,
        body: CompletionBody | ChatBody,
        output: Output,
        shape: Shape,
        prompts: list[Prompt],
        decode: Decode,
        tenant: Tenant,
    ) -> GenerationJob:
        job = GenerationJob(job_id, self.model_name, prompts, body.n or 1, [])
        num_choices = len(prompts) * job.num_per_prompt
        cache_salt = tenant.cache_salt(body.cache_salt or "")
        for prompt in prompts:
            max_tokens = resolve_max_tokens(body, len(prompt.token_ids), self.max_context_tokens)
            for k in range(job.num_per_prompt):
                index = len(job.choices)
                request = Request(
                    request_id_of(job.job_id, index, num_choices),
                    prompt.token_ids,
                    sampling_of(body, output, shape, max_tokens, k, self.settings.sampling),
                    cache_salt,
                )
                job.choices.append(_choice(index, request, decode, output))
        return job


def _choice(index: int, request: Request, decode: Decode, output: Output) -> Choice:
    return Choice(
        index,
        request,
        decode,
        stops=output.stops,
        include_stop=output.include_stop,
        show_tokens=output.show_tokens,
        hides_output=output.hides_output,
    )


def _usage_in(body: Generation) -> UsageIn:
    options = body.stream_options
    if options is None or not options.include_usage:
        return UsageIn.NOTHING
    return UsageIn.EVERY_CHUNK if options.continuous_usage_stats else UsageIn.LAST_CHUNK


def _parse_tools(body: ChatBody) -> bool:
    """Whether the answer may hold tool calls. The tools stay in the prompt in any case: its cached KV stays valid."""
    choice = body.tool_choice
    if not body.tools:
        asks_for_nothing = choice in (None, "none") or (choice == "auto" and body.tools is not None)
        if not asks_for_nothing:
            raise invalid("tool_choice is only allowed when tools are given", "tool_choice")
        return False
    return choice != "none"


def _prompt_items(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One prompt or several, as text or as ids: OpenAI's four spellings."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("prompt must not be empty", "prompt")
    with contextlib.suppress(msgspec.ValidationError):  # by far the longest, so without a look at each in Python
        return [msgspec.convert(prompt, list[int])]
    if len({type(item) for item in prompt}) > 1:
        raise invalid("prompt must not mix strings, token ids and arrays of token ids", "prompt")
    return [item for item in prompt if not isinstance(item, int)]
