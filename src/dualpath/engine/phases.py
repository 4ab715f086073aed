"""A request's phases inside an engine, and the only legal ways between them. ``core.phase`` has its whole life."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar


class PrefillPhase(Enum):
    WAITING = "waiting"  # for a forward batch
    COMPUTING = "computing"
    ENDED = "ended"  # its listener has the first token or an error, or is gone


class DecodePhase(Enum):
    WAITING = "waiting"  # for device memory
    JOINING = "joining"  # the prompt is being copied in
    RUNNING = "running"
    ENDED = "ended"  # out of the batch: finished, cancelled, preempted or failed; blocks and writes may be left


P = TypeVar("P", PrefillPhase, DecodePhase)

LEGAL: dict[PrefillPhase | DecodePhase, frozenset[PrefillPhase | DecodePhase]] = {
    PrefillPhase.WAITING: frozenset({PrefillPhase.COMPUTING, PrefillPhase.ENDED}),
    # Chunks and batches that failed wait again.
    PrefillPhase.COMPUTING: frozenset({PrefillPhase.WAITING, PrefillPhase.ENDED}),
    PrefillPhase.ENDED: frozenset(),
    DecodePhase.WAITING: frozenset({DecodePhase.JOINING, DecodePhase.ENDED}),
    DecodePhase.JOINING: frozenset({DecodePhase.RUNNING, DecodePhase.ENDED}),
    DecodePhase.RUNNING: frozenset({DecodePhase.ENDED}),
    DecodePhase.ENDED: frozenset(),
}


def entered(current: P, phase: P) -> P:
    """``phase``. Raises ValueError where no legal way leads there."""
    if phase not in LEGAL[current]:
        raise ValueError(f"illegal transition {current.value} -> {phase.value}")
    return phase
