"""What a client asks for, what comes back token by token, and what is remembered of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from dualpath.core.ids import RequestId


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Meanings and defaults are those of OpenAI's API and vLLM's extensions to it.

    Randomness is a function of (seed, position), so an output does not depend on batch, path, engine or restart.
    """

    max_tokens: int  # resolved by the gateway; at least 1
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = all
    seed: int | None = None  # None: drawn per request
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # None = none; 0 = the chosen token's only; n = and the n most likely


@dataclass(frozen=True, slots=True)
class Request:
    """One turn: a prompt to prefill and up to ``sampling.max_tokens`` tokens to decode."""

    request_id: RequestId
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    cache_salt: str = ""


class FinishReason(str, Enum):
    STOP = "stop"  # end-of-sequence or a stop token; the gateway also reports stop strings so
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. ``finish_reason`` is set on the last one only."""

    token_id: int
    logprob: float | None = None
    top_logprobs: Mapping[int, float] | None = None  # token id -> log probability, most likely first
    finish_reason: FinishReason | None = None


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
    num_retries: int = 0  # times it was resumed after a lost engine or a preemption
    outcome: str = "running"  # running | finished | cancelled | failed
    error: str | None = None
    ttft_s: float | None = None  # arrival to first token
    ttst_s: float | None = None  # first token to second token
    tpot_s: float | None = None  # mean time per token after the first
    total_s: float | None = None
    phases_s: dict[str, float] = field(default_factory=dict)
