"""Bodies of vLLM's /inference/v1/generate, SGLang's /generate, and of the verbs of both. Sampling fields are theirs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from dualpath.gateway.errors import invalid
from dualpath.gateway.openai.bodies import CompletionBody, StreamOptions, refuse_unsupported
from dualpath.gateway.openai.numbers import decode_body

_NOT_SAMPLING = {"prompt", "model", "stream", "stream_options", "echo", "suffix", "best_of", "cache_salt"}
_MOOT = {"detokenize", "output_kind", "spaces_between_special_tokens", "return_token_ids"}  # the answer is tokens
_SGLANG_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "no_stop_trim": "include_stop_str_in_output",
    "json_schema": "guided_json",
}
_SGLANG_MAX_TOKENS = 128


class GenerateBody(msgspec.Struct, kw_only=True):
    """vLLM's. What it does not know is ignored; what would change the answer is refused."""

    REFUSED: ClassVar[tuple[str, ...]] = ("features", "content_parts", "priority")

    token_ids: list[int]
    sampling_params: dict[str, Any] = {}
    request_id: str | None = None
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    output_mode: Literal["tokens"] = "tokens"
    features: Any = None
    content_parts: Any = None
    priority: Any = None

    def completion(self) -> CompletionBody:
        return _completion(self.sampling_params, self.token_ids, self)


class SglangBody(msgspec.Struct, kw_only=True):
    """SGLang's. One prompt is answered by an object, a list of them by a list."""

    REFUSED: ClassVar[tuple[str, ...]] = ("input_embeds", "image_data", "audio_data", "lora_path")

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] = {}
    return_logprob: bool | None = None
    top_logprobs_num: int | None = None
    rid: str | None = None
    stream: bool | None = None
    cache_salt: str | None = None
    model: str | None = None
    input_embeds: Any = None
    image_data: Any = None
    audio_data: Any = None
    lora_path: Any = None

    @property
    def is_batch(self) -> bool:
        prompt = self.text if self.text is not None else self.input_ids
        return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)

    def completion(self) -> CompletionBody:
        if (self.text is None) == (self.input_ids is None):
            raise invalid("give either text or input_ids", "input_ids")
        params = {_SGLANG_NAMES.get(name, name): value for name, value in self.sampling_params.items()}
        params.setdefault("max_tokens", _SGLANG_MAX_TOKENS)
        if params.get("prompt_logprobs") is not None:
            raise invalid("prompt_logprobs is not supported here", "prompt_logprobs", "unsupported_parameter")
        if self.return_logprob:
            params["logprobs"] = self.top_logprobs_num or 0
        return _completion(params, self.text if self.text is not None else self.input_ids, self)


class AbortBody(msgspec.Struct, kw_only=True):
    """vLLM's and SGLang's. Nobody named: all."""

    REFUSED: ClassVar[tuple[str, ...]] = ()

    request_ids: list[str] | None = None
    rid: str | None = None
    abort_all: bool | None = None

    @property
    def named(self) -> list[str] | None:
        if self.abort_all:
            return None
        return self.request_ids or ([self.rid] if self.rid else None)


class UpdateBody(msgspec.Struct, kw_only=True):
    """prime-rl's /update_weights. The directory is a model's, by the same path on every node."""

    REFUSED: ClassVar[tuple[str, ...]] = ("update_info",)

    weight_dir: str
    weight_version: str | None = None
    update_info: Any = None  # vLLM's, of weights that come over a network


class SglangUpdateBody(msgspec.Struct, kw_only=True):
    REFUSED: ClassVar[tuple[str, ...]] = ()

    model_path: str
    weight_version: str | None = None
    abort_all_requests: bool | None = None


class SglangPauseBody(msgspec.Struct, kw_only=True):
    REFUSED: ClassVar[tuple[str, ...]] = ()

    mode: Literal["abort", "retract", "in_place"] = "abort"


def _completion(params: dict[str, Any], prompt: Any, body: GenerateBody | SglangBody) -> CompletionBody:
    """The same request as one for /v1/completions, with all that is checked there."""
    wanted = {name: value for name, value in params.items() if name not in _NOT_SAMPLING | _MOOT}
    try:
        out = decode_body(msgspec.json.encode({"prompt": "", **wanted}), CompletionBody)
    except msgspec.ValidationError as error:
        raise invalid(f"sampling_params: {error}", "sampling_params") from None
    refuse_unsupported(out)
    out.prompt, out.model, out.stream, out.cache_salt = prompt, body.model, body.stream, body.cache_salt
    out.stream_options = body.stream_options if isinstance(body, GenerateBody) else None
    out.return_token_ids = True
    return out
