"""A body's sampling fields checked against their ranges and resolved to what an engine is told."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.core.errors import InvalidRequestError
from dualpath.core.request import SamplingParams
from dualpath.gateway.defaults import SamplingDefaults
from dualpath.gateway.errors import invalid
from dualpath.gateway.openai.bodies import ChatBody, CompletionBody, Generation
from dualpath.gateway.openai.shape import MAX_PENALTY, Shape
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions
MAX_TEMPERATURE = 2
# A smaller temperature is 0, as in vLLM: the most likely token is drawn anyway, and dividing by it would overflow.
MIN_TEMPERATURE = 1e-5
SEED_LIMIT = 1 << 63
MAX_STOP_CHARS = MAX_SALT_CHARS = 4096
MAX_TOP_K = 1 << 31  # larger than any vocabulary; engines need not work with numbers of any size


@dataclass(frozen=True, slots=True)
class Output:
    """What the gateway does with the tokens, beyond what engines know."""

    stops: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    return_token_ids: bool
    tokens_as_ids: bool
    num_logprobs: int | None
    num_prompt_logprobs: int | None = None  # in vLLM's shape, which is not that of an echo
    hides_output: bool = False  # it is about the prompt only

    @property
    def show_tokens(self) -> bool:
        return self.return_token_ids or self.num_logprobs is not None


def output_of(body: CompletionBody | ChatBody, settings: GatewaySettings) -> Output:
    return Output(
        stops=_stops(body, settings),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        return_token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
        num_logprobs=_num_logprobs(body, settings),
        num_prompt_logprobs=_num_prompt_logprobs(body, settings),
        hides_output=body.max_tokens == 0,
    )


def check_ranges(body: Generation, settings: GatewaySettings, tokenizer: Tokenizer) -> None:
    """Everything that does not depend on the prompt; InvalidRequestError names the field."""
    check_distribution(body.temperature, body.top_p, body.top_k, body.seed)
    if body.seed is not None and not settings.takes_seeds:
        raise invalid(
            "seed is not supported here: an answer's tokens come from two engines", "seed", "unsupported_parameter"
        )
    _check_range("min_p", body.min_p, 0, 1)
    _check_range("n", body.n, 1, settings.max_choices)
    echoes = isinstance(body, CompletionBody) and body.echo
    _check_range("max_tokens", body.max_tokens, 0 if echoes else body.MIN_MAX_TOKENS, None)
    _check_range("min_tokens", body.min_tokens, 0, None)
    _check_range("presence_penalty", body.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_range("frequency_penalty", body.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
    if body.repetition_penalty is not None and not body.repetition_penalty > 0:
        raise invalid("repetition_penalty must be above 0", "repetition_penalty")
    stop_token_ids = body.stop_token_ids or []
    if len(stop_token_ids) > settings.max_stop_tokens:
        raise invalid(f"at most {settings.max_stop_tokens} stop_token_ids are allowed", "stop_token_ids")
    tokenizer.check_ids(stop_token_ids, "stop_token_ids")
    if len(body.cache_salt or "") > MAX_SALT_CHARS:
        raise invalid(f"cache_salt must have at most {MAX_SALT_CHARS} characters", "cache_salt")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is only allowed when stream is true", "stream_options")


def check_distribution(temperature: float | None, top_p: float | None, top_k: int | None, seed: int | None) -> None:
    """What tokens are drawn from; None: not said."""
    _check_range("temperature", temperature, 0, MAX_TEMPERATURE)
    _check_range("top_p", top_p, 0, 1)
    if top_p == 0:
        raise invalid("top_p must be above 0", "top_p")
    _check_range("top_k", top_k, -1, None)
    _check_range("seed", seed, -SEED_LIMIT, SEED_LIMIT - 1)


def sampling_of(
    body: CompletionBody | ChatBody,
    output: Output,
    shape: Shape,
    max_tokens: int,
    choice: int,
    defaults: SamplingDefaults,
) -> SamplingParams:
    """``choice`` numbers the request's choices: with a seed given, each draws from its own."""
    seed = body.seed
    if seed is not None:
        seed = (seed + choice + SEED_LIMIT) % (2 * SEED_LIMIT) - SEED_LIMIT
    told = (output.num_prompt_logprobs, output.num_logprobs if isinstance(body, CompletionBody) and body.echo else None)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=resolve_temperature(defaults.temperature if body.temperature is None else body.temperature),
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=min(max(defaults.top_k if body.top_k is None else body.top_k, 0), MAX_TOP_K),  # -1: all, as in vLLM
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        seed=seed,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        num_logprobs=output.num_logprobs,
        num_prompt_logprobs=max((num for num in told if num is not None), default=None),
        min_tokens=min(body.min_tokens or 0, max_tokens),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or defaults.repetition_penalty,
        logit_bias=shape.logit_bias,
        allowed_token_ids=shape.allowed_token_ids,
        bad_words=shape.bad_words,
        grammar=shape.grammar,
    )


def resolve_temperature(temperature: float) -> float:
    return 0.0 if temperature < MIN_TEMPERATURE else temperature


def resolve_max_tokens(body: CompletionBody | ChatBody, num_prompt_tokens: int, max_context_tokens: int) -> int:
    """How many tokens may be generated: what was asked for, or what the context has left, as in vLLM.

    Raises InvalidRequestError where the prompt alone leaves no room.
    """
    rest = max_context_tokens - num_prompt_tokens
    if rest < 1:
        raise too_long(max_context_tokens, num_prompt_tokens, "messages" if isinstance(body, ChatBody) else "prompt")
    asked = _asked_max_tokens(body)
    if asked is None:
        return rest if isinstance(body, ChatBody) else min(COMPLETION_MAX_TOKENS, rest)
    return min(max(asked, 1), rest)  # none: the prompt is only looked at, and what comes after it not shown


def too_long(max_context_tokens: int, num_prompt_tokens: int | str, param: str) -> InvalidRequestError:
    return invalid(
        f"This model's maximum context length is {max_context_tokens} tokens, but the prompt has "
        f"{num_prompt_tokens} tokens and at least one is to be generated.",
        param,
        "context_length_exceeded",
    )


def _asked_max_tokens(body: CompletionBody | ChatBody) -> int | None:
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        _check_range("max_completion_tokens", body.max_completion_tokens, 1, None)
        return body.max_completion_tokens
    return body.max_tokens


def _num_logprobs(body: CompletionBody | ChatBody, settings: GatewaySettings) -> int | None:
    if isinstance(body, CompletionBody):
        _check_range("logprobs", body.logprobs, 0, settings.max_logprobs)
        return body.logprobs
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    _check_range("top_logprobs", body.top_logprobs, 0, settings.max_logprobs)
    return (body.top_logprobs or 0) if body.logprobs else None


def _num_prompt_logprobs(body: Generation, settings: GatewaySettings) -> int | None:
    _check_range("prompt_logprobs", body.prompt_logprobs, 0, settings.max_logprobs)
    if body.prompt_logprobs is not None and body.stream:
        raise invalid("prompt_logprobs are not part of a stream: ask for a whole answer", "prompt_logprobs")
    return body.prompt_logprobs


def _stops(body: Generation, settings: GatewaySettings) -> tuple[str, ...]:
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stops) > settings.max_stop_strings:
        raise invalid(f"at most {settings.max_stop_strings} stop strings are allowed, not {len(stops)}", "stop")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise invalid(f"a stop string must have 1 to {MAX_STOP_CHARS} characters", "stop")
    return stops


def _check_range(name: str, value: float | None, low: float, high: float | None) -> None:
    if value is None or (value >= low and (high is None or value <= high)):
        return
    limits = f"at least {low}" if high is None else f"between {low} and {high}"
    raise invalid(f"{name} must be {limits}, not {value}", name)
