"""The endpoints that pass through: what is added to their bodies, and what of their answers must be understood.

That is little: when an answer brings tokens, how many it had, why it ended, and where it counts cached tokens. Counts
of cached tokens are ours: a decode server takes all of a prompt for cached, since its KV came from outside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from dualpath.core.exchange import KV_PARAMS, Heard
from dualpath.gateway.errors import ApiError, invalid
from dualpath.gateway.openai.bodies import StreamOptions, type_error
from dualpath.gateway.openai.numbers import decode_body
from dualpath.gateway.openai.shapes import encode_json
from dualpath.gateway.sse import DONE, SSE_DONE, data_of, decode, named, sse, with_data

NOTHING = Heard()
_CUT_OFF = ("length", "max_tokens", "max_output_tokens")  # by the limit on its tokens
_NEUTRAL: dict[str, tuple[Any, ...]] = {"best_of": (1,), "background": (False,), "use_beam_search": (False,)}


class _Read(msgspec.Struct):
    """The fields that are read here, or told of by ``/render``. vLLM takes 1 or "true" for true: we would not."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    echo: bool | None = None
    cache_salt: str | None = None


class Dialect(ABC):
    """One endpoint. Bodies have been checked to be objects; of their fields only what is read here is."""

    path: ClassVar[str]
    id_prefix: ClassVar[str]
    ping: ClassVar[bytes] = b": ping\n\n"
    refused: ClassVar[tuple[str, ...]] = ()

    def check(self, body: Mapping[str, Any]) -> None:
        """Raises ApiError for fields of other types, InvalidRequestError for what KV of elsewhere cannot answer."""
        read = {name: body[name] for name in _Read.__struct_fields__ if name in body}
        try:
            decode_body(encode_json(read), _Read)
        except msgspec.ValidationError as error:
            raise type_error(error) from None
        for name in self.refused:
            value = body.get(name)
            if value is not None and value not in _NEUTRAL.get(name, ()):
                raise invalid(f"{name} is not supported", name, "unsupported_parameter")

    def prepared(self, body: Mapping[str, Any], own_id: str, prompt: Sequence[int]) -> dict[str, Any]:
        """For the decode server, which takes the prompt's tokens as they were rendered."""
        return {**body, KV_PARAMS: {"prompt_token_ids": prompt}}

    def choice_of(self, body: Mapping[str, Any], prompt_index: int, choice: int) -> Mapping[str, Any]:
        """The body of one choice of one prompt, where there may be several. ``choice``: of that prompt."""
        return body

    def wants_stream(self, body: Mapping[str, Any]) -> bool:
        return body.get("stream") is True

    @abstractmethod
    def read(self, content: Mapping[str, Any]) -> Heard:
        """An event's data, or a whole answer."""

    def counts(self, content: dict[str, Any]) -> dict[str, Any] | None:
        """Where this content counts tokens, if it does."""
        found = content.get("usage")
        return found if isinstance(found, dict) else None

    @abstractmethod
    def set_cached(self, counts: dict[str, Any], num_cached: int) -> None: ...

    def failed(self, error: ApiError) -> bytes:
        """The end of a stream that cannot go on."""
        return sse(msgspec.Raw(error.body())) + SSE_DONE

    # -- pieces -------------------------------------------------------------------------------------------------------

    def read_event(self, event: bytes) -> Heard:
        data = data_of(event)
        content = decode(data) if data and data != DONE else None
        return self._read(content) if isinstance(content, dict) else NOTHING

    def read_whole(self, body: bytes) -> Heard:
        content = decode(body)
        return self._read(content) if isinstance(content, dict) else Heard(error="the answer is no object")

    def _read(self, content: Mapping[str, Any]) -> Heard:
        error = content.get("error")
        if error:
            return Heard(error=str(error.get("message") if isinstance(error, dict) else error))
        try:
            return self.read(content)
        except (TypeError, KeyError, AttributeError, IndexError) as reason:
            return Heard(error=f"an answer of an unknown shape: {reason!r}")

    def event_for_client(self, event: bytes, num_cached: int, body: Mapping[str, Any]) -> bytes:
        """``body``: the client's own, which may not have asked for what we did."""
        content = decode(data_of(event))
        if not isinstance(content, dict) or (counts := self.counts(content)) is None:
            return event
        if self.is_unasked(content, body):
            return b""
        self.set_cached(counts, num_cached)
        return with_data(event, content)

    def whole_for_client(self, answer: bytes, num_cached: int) -> bytes:
        content = decode(answer)
        if not isinstance(content, dict) or (counts := self.counts(content)) is None:
            return answer
        self.set_cached(counts, num_cached)
        return encode_json(content)

    def is_unasked(self, content: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
        return False


class _Chunks(Dialect):
    """Chunks with choices: OpenAI's older APIs."""

    def prepared(self, body: Mapping[str, Any], own_id: str, prompt: Sequence[int]) -> dict[str, Any]:
        body = super().prepared(body, own_id, prompt)
        if self.wants_stream(body):
            options = body.get("stream_options")
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return body

    def read(self, content: Mapping[str, Any]) -> Heard:
        counts, reason, brings_tokens = content.get("usage"), None, False
        for choice in content.get("choices") or ():
            reason = choice.get("finish_reason") or reason
            brings_tokens |= self.has_tokens(choice)
        if reason in ("abort", "error"):
            return Heard(error=f"it ended a request by {reason!r}")
        num_tokens = counts["completion_tokens"] if counts else None
        return Heard(brings_tokens, num_tokens, reason and _plain(reason))

    @abstractmethod
    def has_tokens(self, choice: Mapping[str, Any]) -> bool: ...

    def set_cached(self, counts: dict[str, Any], num_cached: int) -> None:
        counts["prompt_tokens_details"] = {**(counts.get("prompt_tokens_details") or {}), "cached_tokens": num_cached}

    def choice_of(self, body: Mapping[str, Any], prompt_index: int, choice: int) -> Mapping[str, Any]:
        """With a seed of its own, as vLLM gives each choice."""
        if (body.get("n") or 1) == 1:
            return body
        one = {**body, "n": 1}
        if (seed := body.get("seed")) is not None:  # 3.0 is a whole number, too
            one["seed"] = int(seed) + choice
        return one

    def is_unasked(self, content: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
        return not content.get("choices") and not asks_for_usage(body)


class Chat(_Chunks):
    path, id_prefix = "/v1/chat/completions", "chatcmpl"
    refused = ("best_of", "use_beam_search", "prompt_logprobs")

    def has_tokens(self, choice: Mapping[str, Any]) -> bool:
        delta = choice.get("delta") or {}
        return any(delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls"))


class Completions(_Chunks):
    path, id_prefix = "/v1/completions", "cmpl"
    refused = (*Chat.refused, "suffix")

    def check(self, body: Mapping[str, Any]) -> None:
        super().check(body)
        if body.get("echo") and body.get("logprobs") is not None:
            raise invalid("echo with logprobs is not supported", "echo", "unsupported_parameter")

    def prepared(self, body: Mapping[str, Any], own_id: str, prompt: Sequence[int]) -> dict[str, Any]:
        """This endpoint takes tokens in place of text; but it echoes what it was given."""
        prepared = super().prepared(body, own_id, prompt)
        del prepared[KV_PARAMS]
        return prepared if body.get("echo") else {**prepared, "prompt": prompt}

    def choice_of(self, body: Mapping[str, Any], prompt_index: int, choice: int) -> Mapping[str, Any]:
        body, prompt = super().choice_of(body, prompt_index, choice), body.get("prompt")
        is_many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        return {**body, "prompt": prompt[prompt_index]} if is_many and prompt else body

    def has_tokens(self, choice: Mapping[str, Any]) -> bool:
        return bool(choice.get("text"))


class Responses(Dialect):
    path, id_prefix = "/v1/responses", "resp"
    refused = ("background", "previous_response_id")

    def prepared(self, body: Mapping[str, Any], own_id: str, prompt: Sequence[int]) -> dict[str, Any]:
        return {**super().prepared(body, own_id, prompt), "request_id": f"resp_{own_id}"}

    def read(self, content: Mapping[str, Any]) -> Heard:
        kind = content.get("type")
        if isinstance(kind, str):  # an event
            if kind in ("response.completed", "response.incomplete", "response.failed"):
                return self._ended(content["response"])
            return Heard(brings_tokens=kind.endswith(".delta"), error=_text(content) if kind == "error" else None)
        return self._ended(content)

    def _ended(self, answer: Mapping[str, Any]) -> Heard:
        status = answer["status"]
        if status not in ("completed", "incomplete"):
            return Heard(error=str((answer.get("error") or {}).get("message") or f"it ended a request by {status!r}"))
        counts, cut = answer.get("usage"), (answer.get("incomplete_details") or {}).get("reason")
        return Heard(num_tokens=counts["output_tokens"] if counts else None, finish_reason=_plain(cut or "stop"))

    def counts(self, content: dict[str, Any]) -> dict[str, Any] | None:
        return super().counts(content.get("response") or content)

    def set_cached(self, counts: dict[str, Any], num_cached: int) -> None:
        details = counts.setdefault("input_tokens_details", {})
        details["cached_tokens"] = num_cached
        if len(details.get("cached_tokens_per_turn") or ()) == 1:
            details["cached_tokens_per_turn"] = [num_cached]

    def failed(self, error: ApiError) -> bytes:
        return named({"type": "error", "code": error.code, "message": error.message, "param": error.param})


class Messages(Dialect):
    path, id_prefix = "/v1/messages", "msg"
    ping = named({"type": "ping"})

    def read(self, content: Mapping[str, Any]) -> Heard:
        kind = content["type"]
        if kind == "message_delta":
            return self._ended(content["delta"], content)
        if kind == "message":
            return self._ended(content, content)
        return Heard(brings_tokens=kind == "content_block_delta", error=_text(content) if kind == "error" else None)

    def _ended(self, answer: Mapping[str, Any], content: Mapping[str, Any]) -> Heard:
        counts, reason = content.get("usage"), answer.get("stop_reason")
        if reason is None:
            return Heard(error="it ended a request without a reason")
        return Heard(num_tokens=counts["output_tokens"] if counts else None, finish_reason=_plain(reason))

    def counts(self, content: dict[str, Any]) -> dict[str, Any] | None:
        return super().counts(content.get("message") or content)

    def set_cached(self, counts: dict[str, Any], num_cached: int) -> None:
        """Here what is cached does not count as input."""
        names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        num_prompt = sum(counts.get(name) or 0 for name in names)
        num_read = min(num_cached, num_prompt)
        counts |= {"input_tokens": num_prompt - num_read, "cache_read_input_tokens": num_read}
        counts.pop("cache_creation_input_tokens", None)

    def failed(self, error: ApiError) -> bytes:
        return named(msgspec.json.decode(error.anthropic_body()))


DIALECTS: tuple[Dialect, ...] = (Chat(), Completions(), Responses(), Messages())


def asks_for_usage(body: Mapping[str, Any]) -> bool:
    """At the end of a stream with choices."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _plain(reason: str) -> str:
    return "length" if reason in _CUT_OFF else "stop"


def _text(content: Mapping[str, Any]) -> str:
    return str(content.get("message") or content.get("error") or "no reason")
