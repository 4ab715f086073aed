"""What waits for engines: a request's demand, its ticket, and the decode groups with their private queues."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from dualpath.core.errors import InvalidRequestError
from dualpath.core.ids import EngineId, RequestId
from dualpath.engine.api import EngineInfo


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs of its engines. ``sequence`` is its arrival number; a resumed request keeps it."""

    request_id: RequestId
    sequence: int
    num_prompt_tokens: int
    num_tokens: int  # prompt and expected output: what it will take of a decode engine's device memory
    failed_on: tuple[EngineId, ...] = ()  # last; avoided if there are others: they may look idle because they fail


@dataclass(frozen=True, slots=True)
class Placement:
    prefill: EngineId
    decode: EngineId


@dataclass(slots=True, eq=False)
class Ticket:
    demand: Demand
    placed: asyncio.Future[Placement]
    num_decode_tokens: int = 0  # the demand, at most what the group's smallest device pool holds


@dataclass(slots=True)
class Group:
    """Decode engines that share a private queue: those of a node, or a single one where they are taken in turn."""

    engines: list[EngineInfo] = field(default_factory=list)
    queue: list[Ticket] = field(default_factory=list)

    @property
    def max_prompt_tokens(self) -> int:
        return min(min(info.max_prompt_tokens, info.device_kv_tokens - 1) for info in self.engines)

    @property
    def device_kv_tokens(self) -> int:
        return min(info.device_kv_tokens for info in self.engines)

    @property
    def queued_tokens(self) -> int:
        return sum(ticket.num_decode_tokens for ticket in self.queue)


def too_long(num_tokens: int, limit_tokens: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"the request needs {num_tokens} tokens of context, at most {limit_tokens} can be served",
        param="messages",
        code="context_length_exceeded",
    )
