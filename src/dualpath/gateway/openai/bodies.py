"""Request bodies: the fields the API knows, parsed by msgspec, wrong types reported the way OpenAI does.

Unknown fields are ignored, as clients send many that change nothing here. Fields that would change the result and are
not implemented are declared in ``Refused``, so that they are refused instead of silently dropped.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from dualpath.gateway.errors import ApiError, invalid
from dualpath.gateway.json_body import decoded
from dualpath.gateway.openai.numbers import decode_body


class Refused(msgspec.Struct, kw_only=True):
    """Accepted only with the value that asks for nothing."""

    length_penalty: Any = None
    use_beam_search: Any = None
    truncate_prompt_tokens: Any = None
    prompt_embeds: Any = None
    logits_processors: Any = None
    detokenize: Any = None
    priority: Any = None
    structural_tag: Any = None
    # SGLang's
    stop_regex: Any = None
    no_stop_trim: Any = None
    lora_path: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "logits_processors": ([],),
    "detokenize": (True,),
    "priority": (0,),
    "no_stop_trim": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
    "documents": ([],),
    "echo": (False,),
    "background": (False,),
}


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # with include_usage: in every chunk, as far as it has come


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """vLLM's."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


class Generation(Refused, kw_only=True):
    """What completions and chat have in common."""

    MIN_MAX_TOKENS: ClassVar[int] = 1

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    regex: str | None = None  # SGLang's, as the next two
    ebnf: str | None = None
    json_schema: str | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    prompt_logprobs: int | None = None


class CompletionBody(Generation, kw_only=True):
    REFUSED: ClassVar[tuple[str, ...]] = (*Refused.__struct_fields__, "suffix")

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: Any = None


class ChatBody(Generation, kw_only=True):
    REFUSED: ClassVar[tuple[str, ...]] = (
        *Refused.__struct_fields__,
        *("echo", "chat_template", "documents", "functions", "function_call"),
        *("modalities", "audio", "mm_processor_kwargs"),
    )

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    echo: Any = None
    chat_template: Any = None
    documents: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    mm_processor_kwargs: Any = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """Either a prompt or a conversation."""

    REFUSED: ClassVar[tuple[str, ...]] = ("chat_template", "documents")

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: Any = None
    documents: Any = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    REFUSED: ClassVar[tuple[str, ...]] = ()

    tokens: list[int]
    model: str | None = None


Body = TypeVar("Body", bound=msgspec.Struct)

_PATH = re.compile(r" - at `\$\.?(.*)`$")
_FIELD = re.compile(r"field `([^`]+)`")


def parse_body(raw: bytes, body_type: type[Body], max_containers: int) -> Body:
    """The body, or ApiError 400: malformed JSON without a param, wrong types and missing fields with theirs."""
    try:
        body = decoded(raw, max_containers, lambda text: decode_body(text, body_type))
    except msgspec.ValidationError as error:
        raise type_error(error) from error
    refuse_unsupported(body)
    return body


def type_error(error: msgspec.ValidationError) -> ApiError:
    """The same as OpenAI says it."""
    message = str(error)
    path, field = _PATH.search(message), _FIELD.search(message)
    param = path.group(1) if path else ""
    if field and "missing" in message:
        param = f"{param}.{field.group(1)}" if param else field.group(1)
    text = _PATH.sub("", message)
    return ApiError(400, f"{param}: {text}" if param else text, param=param or None, code="invalid_type")


def refuse_unsupported(body: msgspec.Struct) -> None:
    for name in getattr(body, "REFUSED", ()):
        value = getattr(body, name)
        if value is not None and value not in NEUTRAL.get(name, ()):
            raise invalid(f"{name} is not supported", name, "unsupported_parameter")
