"""What the connector's halves tell each other in a step, and what a request brings along over HTTP."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from dualpath.core.ids import RequestId
from dualpath.vllm.settings import KEY

VERSION = 1


class Attached(msgspec.Struct, frozen=True):
    """``kv_transfer_params["dualpath"]``: numbers only; slots, peers and keys travel on the control line."""

    v: int
    xid: RequestId  # the attempt that the node was told of
    num_tokens: Annotated[int, msgspec.Meta(ge=0)]  # prefill: of the hit; decode: of the prompt in its buffer
    num_prompt_tokens: Annotated[int, msgspec.Meta(ge=1)]  # of the order; vLLM's own prompt may go on behind them
    prompt_digest: str  # of those: KV of other tokens must not be taken for theirs

    def is_for(self, token_ids: Sequence[int]) -> bool:
        """Whether vLLM's prompt begins with the one that the node was told of."""
        num_tokens = self.num_prompt_tokens
        return len(token_ids) >= num_tokens and _digest(token_ids[:num_tokens]) == self.prompt_digest


def named_in(kv_transfer_params: Mapping[str, Any] | None) -> RequestId | None:
    """Whom it is about, where that can be told although ``attached_to`` raises."""
    told = (kv_transfer_params or {}).get(KEY)
    xid = told.get("xid") if isinstance(told, Mapping) else None
    return RequestId(xid) if isinstance(xid, str) else None


def attach(request_id: RequestId, num_tokens: int, prompt_token_ids: Sequence[int]) -> dict[str, Any]:
    """``prompt_token_ids``: those of the order that the node was given."""
    num_prompt, digest = len(prompt_token_ids), _digest(prompt_token_ids)
    return {KEY: msgspec.to_builtins(Attached(VERSION, request_id, num_tokens, num_prompt, digest))}


def _digest(token_ids: Sequence[int]) -> str:
    packed = array("q", token_ids).tobytes()
    return hashlib.blake2b(packed, digest_size=16).hexdigest()


def attached_to(kv_transfer_params: Mapping[str, Any] | None) -> Attached | None:
    """None where there is nothing of ours. Raises ValueError for what is none of ours: anybody may send it."""
    if not kv_transfer_params or KEY not in kv_transfer_params:
        return None
    try:
        attached = msgspec.convert(kv_transfer_params[KEY], Attached)
    except msgspec.ValidationError as error:
        raise ValueError(f"kv_transfer_params.{KEY}: {error}") from None
    if attached.v != VERSION:
        raise ValueError(f"kv_transfer_params.{KEY}: version {attached.v}, this connector speaks {VERSION}")
    return attached


@dataclass(frozen=True, slots=True)
class Load:
    """Bring these blocks of a prompt into vLLM's KV: on the prefill side in this step, on the decode side beside it."""

    req_id: str  # vLLM's
    xid: RequestId
    first_block: int  # of the prompt
    block_ids: tuple[int, ...]  # vLLM's, where they go


@dataclass(frozen=True, slots=True)
class Push:
    """Blocks of a prompt that are complete when this step's forward has ended."""

    req_id: str
    xid: RequestId
    first_block: int  # that has not been pushed yet
    block_ids: tuple[int, ...]  # of the whole prompt up to the last complete block
    is_last: bool  # the prompt is complete


@dataclass(frozen=True, slots=True)
class Save:
    """A block that this step has filled while decoding."""

    req_id: str
    xid: RequestId
    block: int
    block_id: int
    tokens: tuple[int, ...]


@dataclass(slots=True)
class StepWork:
    """Scheduler to worker."""

    loads: list[Load] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    refused: list[RequestId] = field(default_factory=list)  # whose parameters or prompts are not what was agreed
    unneeded: list[RequestId] = field(default_factory=list)  # decode: vLLM holds all of these prompts itself
    preempted: tuple[str, ...] = ()  # vLLM's blocks of these requests are about to be somebody else's


@dataclass(slots=True)
class StepFailures:
    """Worker to scheduler: requests whose load failed, so that what they pushed is void, and blocks of no use."""

    req_ids: set[str] = field(default_factory=set)
    block_ids: set[int] = field(default_factory=set)

    def __or__(self, other: StepFailures) -> StepFailures:
        return StepFailures(self.req_ids | other.req_ids, self.block_ids | other.block_ids)
