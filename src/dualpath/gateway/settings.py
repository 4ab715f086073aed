"""The gateway's own configuration: who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field

from dualpath.gateway.defaults import SamplingDefaults


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Nobody writes to it; derive variants with ``dataclasses.replace``."""

    api_keys: tuple[str, ...] = field(default=(), metadata={"help": "accepted Bearer keys; none = no authentication"})
    sampling: SamplingDefaults = field(
        default=SamplingDefaults(), metadata={"help": "how requests that do not say are sampled"}
    )
    max_choices: int = field(default=128, metadata={"help": "most choices (prompts x n) of one HTTP request"})
    max_logprobs: int = field(default=20, metadata={"help": "most alternatives per token in logprobs"})
    max_stop_strings: int = field(default=16, metadata={"help": "most stop strings of one request"})
    max_body_bytes: int = field(default=64 << 20, metadata={"help": "largest accepted request body, bytes"})
    inline_body_bytes: int = field(
        default=4096, metadata={"help": "bodies above this are rendered and tokenised in a thread, bytes"}
    )
