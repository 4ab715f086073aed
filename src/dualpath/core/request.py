"""What a client asks for, what comes back token by token, and what is remembered of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from dualpath.core.ids import RequestId


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Meanings and defaults are those of OpenAI's API and vLLM's extensions to it.

    Randomness is a function of (seed, position), and what else shapes the choice one of the tokens so far, so an output
    does not depend on batch, path, engine or restart.
    """

    max_tokens: int  # resolved by the gateway; at least 1
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = all
    min_p: float = 0.0  # least probability, as a part of the most likely token's
    seed: int | None = None  # None: drawn per request
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # None = none; 0 = the chosen token's only; n = and the n most likely
    num_prompt_logprobs: int | None = None  # the same for the prompt's tokens
    min_tokens: int = 0  # before these no end of sequence and no stop token is chosen
    presence_penalty: float = 0.0  # of tokens that were generated
    frequency_penalty: float = 0.0  # the same, for each time
    repetition_penalty: float = 1.0  # of tokens in prompt and output; above 0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    allowed_token_ids: tuple[int, ...] = ()  # none: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of tokens that the output must not have
    grammar: str = ""  # that the output fits, in llguidance's form; none: any text


@dataclass(frozen=True, slots=True)
class Request:
    """One turn: a prompt to prefill and up to ``sampling.max_tokens`` tokens to decode.

    Where it was resumed, the last ``num_generated`` tokens of the prompt are its own output so far.
    """

    request_id: RequestId
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    cache_salt: str = ""
    # The decode engine answers the client in its own words, from the first token on: dualpath.core.exchange. Events
    # count tokens and say no ids, and once there is one the request cannot be resumed elsewhere.
    is_opaque: bool = False
    num_generated: int = 0
    traceparent: str = ""  # under which span what is done for it belongs (dualpath.core.tracing); "": not traced


class FinishReason(str, Enum):
    STOP = "stop"  # end-of-sequence or a stop token; the gateway also reports stop strings so
    LENGTH = "length"
    ABORT = "abort"  # the request was ended from outside (RequestAbortedError): no engine says so


NO_TOKEN = -1  # of an opaque request's last event, where its tokens have all been counted


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. ``finish_reason`` is set on the last one only."""

    token_id: int
    logprob: float | None = None
    top_logprobs: Mapping[int, float] | None = None  # token id -> log probability, most likely first
    finish_reason: FinishReason | None = None
    # With the first token, if asked for: (logprob, top_logprobs, rank) of each prompt token but the first.
    prompt_logprobs: tuple[tuple[float, Mapping[int, float], int], ...] | None = None
    rank: int | None = None  # of its log probability, where that is told. 1: none is higher


@dataclass(slots=True)
class WeightSpan:
    """Answer tokens ``[start, end)`` were computed with the weights of this version."""

    version: str
    start: int
    end: int


@dataclass(slots=True)
class RequestRecord:
    """Where a request's time and bytes went. Kept while it runs and, for the most recent ones, afterwards."""

    request_id: RequestId
    arrived_unix_s: float
    num_prompt_tokens: int
    num_hit_tokens: int = 0  # prompt tokens whose KV came from storage
    num_generated_tokens: int = 0
    path: str = "none"  # ReadPlan.path
    prefill_engine: str | None = None
    decode_engine: str | None = None
    storage_read_bytes: dict[str, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    num_recomputed_blocks: int = 0  # hits that turned out missing or corrupt
    follows: str | None = None  # the request whose prompt and answer this one's prompt begins with
    num_retries: int = 0  # times it was resumed after a lost engine or a preemption
    outcome: str = "running"  # running | finished | cancelled | failed
    error: str | None = None
    ttft_s: float | None = None  # arrival to first token
    ttst_s: float | None = None  # first token to second token
    tpot_s: float | None = None  # mean time per token after the first
    total_s: float | None = None
    phases_s: dict[str, float] = field(default_factory=dict)
    weight_versions: list[WeightSpan] = field(default_factory=list)  # one, unless weights changed while it ran


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """Which records are asked for: at most ``limit``, newest first.

    ``request_id``: of this request alone. ``viewer``: of whose requests alone, by the name that the gateway has for a
    key; None: of all.
    """

    limit: int
    request_id: RequestId | None = None
    viewer: str | None = None


OTHER_GATEWAYS = "other gateways"


@dataclass(frozen=True, slots=True)
class RecordAnswer:
    """``missing``: gateways that gave none in time; ``OTHER_GATEWAYS`` where the scheduler could not be asked.

    ``in_phase``: how many requests are in each phase now, of all gateways that answered; None: not for this viewer.
    """

    records: list[RequestRecord]
    missing: tuple[str, ...] = ()
    in_phase: dict[str, int] | None = None

    def lack(self) -> tuple[str, ...]:
        """What is not in it, as a line of text; none where all is."""
        return (f"requests of {', '.join(self.missing)}: no answer in time",) if self.missing else ()
