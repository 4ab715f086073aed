"""A request's phases and the only legal ways between them; a timeline remembers when each began."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Phase(str, Enum):
    QUEUED = "queued"  # waits for a prefill and a decode engine
    PLACED = "placed"  # waits for staging slots
    READING = "reading"  # hit blocks come from storage
    READY = "ready"  # waits for a forward batch
    PREFILLING = "prefilling"
    HANDED_OVER = "handed_over"  # prompt KV in the decode engine's buffer, waits for device memory
    DECODING = "decoding"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"

    __hash__ = str.__hash__  # Enum's own is a function in Python: three times for each token


TERMINAL = frozenset({Phase.FINISHED, Phase.CANCELLED, Phase.FAILED})

_FORWARD = [
    Phase.QUEUED,
    Phase.PLACED,
    Phase.READING,
    Phase.READY,
    Phase.PREFILLING,
    Phase.HANDED_OVER,
    Phase.DECODING,
]

# The prefill engine's first token is sent when a request is handed over.
BEFORE_FIRST_TOKEN = tuple(_FORWARD[: _FORWARD.index(Phase.HANDED_OVER)])

# Any live phase may end early or, when an engine is lost, go back to QUEUED; otherwise one step forward at a time.
LEGAL: dict[Phase, frozenset[Phase]] = {
    phase: frozenset({*_FORWARD[i + 1 : i + 2], Phase.QUEUED, *TERMINAL}) for i, phase in enumerate(_FORWARD)
} | {phase: frozenset() for phase in TERMINAL}


@dataclass(slots=True)
class Timeline:
    """(phase, start time) in order; a phase that is re-entered after a lost engine appears again."""

    entries: list[tuple[Phase, float]] = field(default_factory=list)

    @property
    def phase(self) -> Phase | None:
        return self.entries[-1][0] if self.entries else None

    def enter(self, phase: Phase, now_s: float) -> None:
        current = self.phase
        if current is None:
            if phase is not Phase.QUEUED:
                raise ValueError(f"a request starts queued, not {phase.value}")
        elif phase not in LEGAL[current]:
            raise ValueError(f"illegal transition {current.value} -> {phase.value}")
        self.entries.append((phase, now_s))

    def durations_s(self, now_s: float) -> dict[str, float]:
        """Seconds spent in each phase so far (summed over visits), terminal phases left out."""
        out: dict[str, float] = {}
        ends = [t for _, t in self.entries[1:]] + [now_s]
        for (phase, start_s), end_s in zip(self.entries, ends, strict=True):
            if phase not in TERMINAL:
                out[phase.value] = out.get(phase.value, 0.0) + (end_s - start_s)
        return out
