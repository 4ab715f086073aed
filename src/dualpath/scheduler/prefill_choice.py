"""Which prefill engine takes a request: three classes by reading queue and load, then least loaded (paper section 6).

Overloaded engines (tok_e > beta) never get more. Among the others, engines on nodes with a short storage reading queue
(read_q <= alpha) come before engines on nodes with a long one, and inside a class the least tok_e wins.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dualpath.core.ids import EngineId
from dualpath.scheduler.snapshot import EngineLoad


@dataclass(frozen=True, slots=True)
class PrefillLimits:
    """The two thresholds, both profiled beforehand (paper section 6)."""

    alpha_tokens: int  # tokens that a node reads from storage in 3 s
    beta_tokens: int  # tokens that one prefill engine computes in 5 s


def choose_prefill(engines: Sequence[EngineLoad], limits: PrefillLimits) -> EngineId | None:
    """The engine for the next request, or None when every engine is overloaded: a fetch of one (``assign_prefill``)."""
    return next(assign_prefill((0,), engines, limits), None)


def choose_prefill_in_turn(engines: Sequence[EngineLoad], limits: PrefillLimits, turn: int) -> EngineId | None:
    """The comparison systems' choice: engine ``turn`` of a rotation, or the next one that is not overloaded.

    The limit stays, as back-pressure: what is compared is the choice, not what happens without any bound.
    """
    num_engines = len(engines)
    for index in range(turn, turn + num_engines):
        engine = engines[index % num_engines]
        if engine.num_tokens <= limits.beta_tokens:
            return engine.engine_id
    return None


def assign_prefill(
    request_tokens: Iterable[int], engines: Sequence[EngineLoad], limits: PrefillLimits
) -> Iterator[EngineId]:
    """One whole fetch: engines for the longest prefix of the queue that can be placed, in queue order.

    ``request_tokens`` gives each request's length; tok_e counts it from its assignment on. Equal engines: the first
    given. Lazy: a request is asked for only while some engine can take it, and a caller that stops early has decided
    nothing about the rest.
    """
    alpha, beta = limits.alpha_tokens, limits.beta_tokens
    ranked = [
        (engine.read_queue_tokens > alpha, engine.num_tokens, index)
        for index, engine in enumerate(engines)
        if engine.num_tokens <= beta
    ]
    if not ranked:
        return
    heapq.heapify(ranked)
    for length in request_tokens:
        is_long, tokens, chosen = ranked[0]
        yield engines[chosen].engine_id
        if tokens + length <= beta:
            heapq.heapreplace(ranked, (is_long, tokens + length, chosen))
        else:
            heapq.heappop(ranked)
            if not ranked:
                return
