"""What a request needs of its engines, and the engines that it gets."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.core.errors import InvalidRequestError
from dualpath.core.ids import EngineId, PeerId, RequestId
from dualpath.core.weights import WeightEpoch

NOBODY = PeerId("")


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs of its engines. ``sequence`` is its arrival number; a resumed request keeps it.

    Below 0: the desk gives it one.
    """

    request_id: RequestId
    sequence: int
    num_prompt_tokens: int
    num_tokens: int  # prompt and expected output: what it will take of a decode engine's device memory
    failed_on: tuple[EngineId, ...] = ()  # last; avoided if there are others: they may look idle because they fail


@dataclass(frozen=True, slots=True)
class Placement:
    prefill: EngineId
    decode: EngineId
    epoch: WeightEpoch | None = None  # whose weights they have; None: it does not matter who asks
    prefill_peer: PeerId = NOBODY  # the incarnations that it is about
    decode_peer: PeerId = NOBODY
    num_prefill_tokens: int = 0  # that are counted as the engines' load
    num_decode_tokens: int = 0
    sequence: int = 0


def too_long(num_tokens: int, limit_tokens: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"the request needs {num_tokens} tokens of context, at most {limit_tokens} can be served",
        param="messages",
        code="context_length_exceeded",
    )
