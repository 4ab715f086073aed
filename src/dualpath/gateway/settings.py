"""The gateway's own configuration: who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field

from dualpath.gateway.defaults import SamplingDefaults

BODY_BYTES_PER_TOKEN = 64  # text has about 4; escapes (\u6f22), layout and fields that no template shows come on top
BODY_SLACK_BYTES = 1 << 20  # tools, and everything that is not the prompt


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a client owes the server, and by when; see ``gateway.http.protocol``."""

    max_connections: int | None = None  # half of the files that the process may open, at most 4096
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_s: float = 30.0
    send_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Nobody writes to it; derive variants with ``dataclasses.replace``."""

    api_keys: tuple[str, ...] = field(
        default=(), repr=False, metadata={"help": "accepted Bearer keys; none = no authentication"}
    )
    admin_keys: tuple[str, ...] = field(
        default=(), repr=False, metadata={"help": "accepted Bearer keys that see the requests of all"}
    )
    share_cache: bool = field(default=False, metadata={"help": "keys use KV that other keys' requests have stored"})
    allowed_origins: tuple[str, ...] = field(
        default=(), metadata={"help": "origins whose pages may call the API from a browser; * = all"}
    )
    tool_call_parser: str = field(
        default="auto", metadata={"help": "form in which the model writes calls; auto = as its chat template says"}
    )
    reasoning_parser: str = field(default="auto", metadata={"help": "form of its reasoning"})
    stream_ping_s: float = field(
        default=5.0, metadata={"help": "a stream silent for so long gets a ping, the first with its status"}
    )
    sampling: SamplingDefaults = field(
        default=SamplingDefaults(), metadata={"help": "how requests that do not say are sampled"}
    )
    holds_forms: bool = field(default=True, metadata={"help": "engines hold answers to the form that is asked for"})
    takes_seeds: bool = field(default=True, metadata={"help": "engines sample by a request's seed"})
    max_choices: int = field(default=128, metadata={"help": "most choices (prompts x n) of one HTTP request"})
    max_logprobs: int = field(default=20, metadata={"help": "most alternatives per token in logprobs"})
    max_stop_strings: int = field(default=16, metadata={"help": "most stop strings of one request"})
    max_stop_tokens: int = field(default=1024, metadata={"help": "most stop token ids of one request"})
    max_body_bytes: int | None = field(
        default=None, metadata={"help": "largest accepted request body, bytes; none = what the longest context needs"}
    )
    body_memory_bytes: int = field(default=256 << 20, metadata={"help": "bodies held at once until tokenised, bytes"})
    admission_timeout_s: float = field(default=30.0, metadata={"help": "longest wait for memory or for the tokenizer"})
    inline_body_bytes: int = field(
        default=4096, metadata={"help": "bodies above this are rendered and tokenised in a thread, bytes"}
    )
    connections: ConnectionLimits = field(
        default=ConnectionLimits(), metadata={"help": "deadlines and number of connections"}
    )

    def body_limit_bytes(self, max_context_tokens: int) -> int:
        """The largest body: as set, or generously what a prompt of the longest context takes."""
        if self.max_body_bytes is not None:
            return self.max_body_bytes
        return BODY_BYTES_PER_TOKEN * max_context_tokens + BODY_SLACK_BYTES
