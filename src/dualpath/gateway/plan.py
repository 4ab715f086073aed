"""From a request body to a job and its writer: check, render, tokenise. Pure work that may run in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.core.request import Request
from dualpath.gateway.bodies import Body, ChatBody, CompletionBody, Generation, TokenizeBody, parse_body
from dualpath.gateway.chat_writer import ChatWriter
from dualpath.gateway.choice import Choice
from dualpath.gateway.completion_writer import CompletionWriter
from dualpath.gateway.detokenize import Decode
from dualpath.gateway.errors import ApiError, invalid
from dualpath.gateway.job import Job, Prompt, request_id_of
from dualpath.gateway.messages import conversation_text
from dualpath.gateway.sampling import Output, check_ranges, output_of, resolve_max_tokens, sampling_of, too_long
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.tenants import EVERYBODY, Tenant
from dualpath.gateway.tokenizer import Tokenizer
from dualpath.gateway.tool_calls import CLOSE, OPEN
from dualpath.gateway.writer import UsageIn, Writer

SLACK_CONTAINERS = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    job: Job
    writer: Writer
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
        self._check(body)
        if body.best_of not in (None, 1, body.n or 1):
            raise invalid("best_of is not supported", "best_of", "unsupported_parameter")
        if body.echo and body.logprobs is not None:
            raise invalid("echo with logprobs is not supported", "echo", "unsupported_parameter")
        output = output_of(body, self.settings)
        decode = self.tokenizer.decoder(output.skip_special_tokens)
        job = self._job(tenant.new_id("cmpl"), body, output, self._prompts(body), decode, tenant)
        writer = CompletionWriter(job, self.tokenizer, output, echo=bool(body.echo), usage=_usage_in(body))
        return Plan(job, writer, bool(body.stream))

    def chat(self, raw: bytes, tenant: Tenant = EVERYBODY) -> Plan:
        body = self.parse(raw, ChatBody)
        self._check(body)
        parse_tools = _parse_tools(body)
        output = output_of(body, self.settings)
        ids = self._encode(self.conversation(body), "messages", add_special_tokens=bool(body.add_special_tokens))
        # Tool markup that the tokenizer counts as special would be dropped before it can be parsed.
        hide_special = output.skip_special_tokens and not (
            parse_tools and {OPEN, CLOSE} & self.tokenizer.special_tokens
        )
        decode = self.tokenizer.decoder(hide_special)
        prompt = self._prompt(ids, None, "messages")
        job = self._job(tenant.new_id("chatcmpl"), body, output, [prompt], decode, tenant)
        writer = ChatWriter(
            job,
            self.tokenizer,
            output,
            parse_tools=parse_tools,
            max_calls=1 if body.parallel_tool_calls is False else None,
            usage=_usage_in(body),
        )
        return Plan(job, writer, bool(body.stream))

    def check_model(self, model: str | None) -> None:
        if model is not None and model != self.model_name:
            raise ApiError(404, f"The model `{model}` does not exist.", param="model", code="model_not_found")

    def _check(self, body: Generation) -> None:
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
        prompts: list[Prompt],
        decode: Decode,
        tenant: Tenant,
    ) -> Job:
        job = Job(job_id, self.model_name, prompts, body.n or 1, [])
        num_choices = len(prompts) * job.num_per_prompt
        cache_salt = tenant.cache_salt(body.cache_salt or "")
        for prompt in prompts:
            max_tokens = resolve_max_tokens(body, len(prompt.token_ids), self.max_context_tokens)
            for k in range(job.num_per_prompt):
                index = len(job.choices)
                request = Request(
                    request_id_of(job.job_id, index, num_choices),
                    prompt.token_ids,
                    sampling_of(body, output, max_tokens, k, self.settings.sampling),
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
        if choice not in (None, "none"):
            raise invalid("tool_choice is only allowed when tools are given", "tool_choice")
        return False
    if choice not in (None, "auto", "none"):
        raise invalid(
            "tool_choice must be 'auto' or 'none': forced tool calls are not supported",
            "tool_choice",
            "unsupported_parameter",
        )
    return choice != "none"


def _prompt_items(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One prompt or several, as text or as ids: OpenAI's four spellings."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("prompt must not be empty", "prompt")
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise invalid("prompt must not mix strings, token ids and arrays of token ids", "prompt")
    if kinds == {int}:
        return [[item for item in prompt if isinstance(item, int)]]
    return [item for item in prompt if not isinstance(item, int)]
