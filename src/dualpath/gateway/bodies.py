"""Request bodies: the fields the API knows, parsed by msgspec, wrong types reported the way OpenAI does.

Unknown fields are ignored, as clients send many that change nothing here. Fields that would change the result and are
not implemented are declared in ``Refused``, so that they are refused instead of silently dropped.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from dualpath.gateway.errors import ApiError, invalid
from dualpath.gateway.json_size import ContainerLimit


class Refused(msgspec.Struct, kw_only=True):
    """Accepted only with the value that asks for nothing."""

    presence_penalty: Any = None
    frequency_penalty: Any = None
    repetition_penalty: Any = None
    length_penalty: Any = None
    min_p: Any = None
    min_tokens: Any = None
    logit_bias: Any = None
    use_beam_search: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    prompt_logprobs: Any = None
    truncate_prompt_tokens: Any = None
    prompt_embeds: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    logits_processors: Any = None
    detokenize: Any = None
    priority: Any = None
    structural_tag: Any = None
    # SGLang's
    regex: Any = None
    ebnf: Any = None
    stop_regex: Any = None
    no_stop_trim: Any = None
    lora_path: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "response_format": ({"type": "text"},),
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
}


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # with include_usage: in every chunk, as far as it has come


class Generation(Refused, kw_only=True):
    """What completions and chat have in common."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


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
        *("modalities", "audio", "web_search_options", "mm_processor_kwargs"),
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
    web_search_options: Any = None
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


AnyBody = CompletionBody | ChatBody | TokenizeBody | DetokenizeBody
Body = TypeVar("Body", CompletionBody, ChatBody, TokenizeBody, DetokenizeBody)

_PATH = re.compile(r" - at `\$\.?(.*)`$")
_FIELD = re.compile(r"field `([^`]+)`")


def parse_body(raw: bytes, body_type: type[Body], max_containers: int) -> Body:
    """The body, or ApiError 400: malformed JSON without a param, wrong types and missing fields with theirs."""
    ContainerLimit(max_containers).check(raw)
    try:
        body = msgspec.json.decode(raw, type=body_type)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from error
    _refuse_unsupported(body)
    return body


def _type_error(message: str) -> ApiError:
    path, field = _PATH.search(message), _FIELD.search(message)
    param = path.group(1) if path else ""
    if field and "missing" in message:
        param = f"{param}.{field.group(1)}" if param else field.group(1)
    text = _PATH.sub("", message)
    return ApiError(400, f"{param}: {text}" if param else text, param=param or None, code="invalid_type")


def _refuse_unsupported(body: AnyBody) -> None:
    for name in body.REFUSED:
        value = getattr(body, name)
        if value is not None and value not in NEUTRAL.get(name, ()):
            raise invalid(f"{name} is not supported", name, "unsupported_parameter")
