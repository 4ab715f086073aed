"""Which prefill engine takes a request: three classes by reading queue and load, then least loaded (paper section 6).

Overloaded engines (tok_e > beta) never get more. Among the others, engines on nodes with a short storage reading queue
(read_q <= alpha) come before engines on nodes with a long one, and inside a class the least tok_e wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dualpath.core.ids import EngineId
from dualpath.scheduler.policy.engine_load import EngineLoad
from dualpath.scheduler.policy.least_loaded import LeastLoaded

LONG_QUEUE: Final = 1 << 58  # more tokens than any engine has
OVERLOADED: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class PrefillLimits:
    """The two thresholds, both profiled beforehand (paper section 6)."""

    alpha_tokens: int  # tokens that a node reads from storage in 3 s
    beta_tokens: int  # tokens that one prefill engine computes in 5 s


def choose_prefill(engines: Iterable[EngineLoad], limits: PrefillLimits) -> EngineId | None:
    """The engine for the next request, or None when every engine is overloaded. Of equal ones the first."""
    best = min(engines, key=lambda engine: _rank(engine, limits), default=None)
    return None if best is None or _rank(best, limits) >= OVERLOADED else best.engine_id


def _rank(engine: EngineLoad, limits: PrefillLimits) -> int:
    """The class, and inside of it tok_e: the less the better."""
    tokens = engine.num_tokens
    if tokens > limits.beta_tokens:
        return OVERLOADED + tokens
    return tokens + LONG_QUEUE if engine.read_queue_tokens > limits.alpha_tokens else tokens


class PrefillRanking:
    """``choose_prefill`` for many engines, in O(log engines): whoever changes an engine's load says ``changed``."""

    def __init__(self, engines: Iterable[EngineLoad], limits: PrefillLimits) -> None:
        self._limits = limits
        self._least = LeastLoaded({engine.engine_id: _rank(engine, limits) for engine in engines})

    def insert(self, engine: EngineLoad) -> None:
        """One more, the last in order."""
        self._least.insert(engine.engine_id, _rank(engine, self._limits))

    def remove(self, engine: EngineLoad) -> None:
        self._least.remove(engine.engine_id)

    def changed(self, engine: EngineLoad) -> None:
        self._least.set(engine.engine_id, _rank(engine, self._limits))

    def choose(self) -> EngineId | None:
        chosen = self._least.choose()
        return None if chosen is None or self._least[chosen] >= OVERLOADED else EngineId(chosen)


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
