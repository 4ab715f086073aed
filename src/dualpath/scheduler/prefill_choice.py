"""Which prefill engine takes a request: three classes by reading queue and load, then least loaded (paper section 6).

Overloaded engines (tok_e > beta) never get more. Among the others, engines on nodes with a short storage reading queue
(read_q <= alpha) come before engines on nodes with a long one, and inside a class the least tok_e wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dualpath.core.ids import EngineId
from dualpath.scheduler.snapshot import EngineSnapshot


@dataclass(frozen=True, slots=True)
class PrefillLimits:
    """The two thresholds, both profiled beforehand (paper section 6)."""

    alpha_tokens: int  # tokens that a node reads from storage in 3 s
    beta_tokens: int  # tokens that one prefill engine computes in 5 s


def choose_prefill(engines: Iterable[EngineSnapshot], limits: PrefillLimits) -> EngineId | None:
    """The engine for the next request, or None when every engine is overloaded. Equal engines: the first given."""
    best: EngineId | None = None
    best_rank: tuple[bool, int] | None = None
    for engine in engines:
        if engine.num_tokens > limits.beta_tokens:
            continue
        rank = (engine.read_queue_tokens > limits.alpha_tokens, engine.num_tokens)
        if best_rank is None or rank < best_rank:
            best, best_rank = engine.engine_id, rank
    return best


def choose_prefill_in_turn(engines: Sequence[EngineSnapshot], limits: PrefillLimits, turn: int) -> EngineId | None:
    """The comparison systems' choice: engine ``turn`` of a rotation, or the next one that is not overloaded.

    The limit stays, as back-pressure: what is compared is the choice, not what happens without any bound.
    """
    for index in range(len(engines)):
        engine = engines[(turn + index) % len(engines)]
        if engine.num_tokens <= limits.beta_tokens:
            return engine.engine_id
    return None


def assign_prefill(
    request_tokens: Sequence[int], engines: Sequence[EngineSnapshot], limits: PrefillLimits
) -> list[EngineId]:
    """One whole fetch: engines for the longest prefix of the queue that can be placed, in queue order.

    ``request_tokens[i]`` is the length of the i-th request; tok_e counts it from its assignment on.
    """
    tokens = [engine.num_tokens for engine in engines]
    is_long = [engine.read_queue_tokens > limits.alpha_tokens for engine in engines]
    assigned: list[EngineId] = []
    for length in request_tokens:
        open_engines = [i for i, load in enumerate(tokens) if load <= limits.beta_tokens]
        if not open_engines:
            break
        chosen = min(open_engines, key=lambda i: (is_long[i], tokens[i]))
        tokens[chosen] += length
        assigned.append(engines[chosen].engine_id)
    return assigned
