"""Why one request was slow: where its time went, beside that of the others at its time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.core.phase import TERMINAL, Phase
from dualpath.core.request import RequestRecord

AROUND_S = 30.0  # others that came within so long before or after
FAR = 2.0  # times the others' median: then it is said
_MEANS = {
    Phase.QUEUED: "no pair of engines was free",
    Phase.PLACED: "no staging slots were free, or a block of its hit was still being written",
    Phase.READING: "its hit was read from storage",
    Phase.READY: "the prefill engine computed other requests",
    Phase.PREFILLING: "it was computed",
    Phase.HANDED_OVER: "the decode engine had no device memory free",
    Phase.DECODING: "its tokens were made",
}


@dataclass(frozen=True, slots=True)
class PhaseShare:
    """``median_s``: of others at the time; None without any."""

    phase: str
    time_s: float
    share: float  # of all its time so far
    median_s: float | None
    means: str


@dataclass(frozen=True, slots=True)
class RequestStory:
    request_id: str
    headline: str
    phases: tuple[PhaseShare, ...]
    facts: tuple[str, ...]
    missing: tuple[str, ...] = ()  # of the others


def tell(record: RequestRecord, records: Sequence[RequestRecord], missing: Sequence[str] = ()) -> RequestStory:
    """``records``: as many as there are, this one may be among them; ``missing``: what is not. Pure."""
    others = [
        other
        for other in records
        if other.request_id != record.request_id and abs(other.arrived_unix_s - record.arrived_unix_s) <= AROUND_S
    ]
    total_s = sum(record.phases_s.values())
    phases = tuple(_share(record, phase, total_s, others) for phase in Phase if phase not in TERMINAL)
    phases = tuple(phase for phase in phases if phase.time_s > 0)
    facts = tuple(_facts(record))
    return RequestStory(record.request_id, _headline(record, phases, total_s), phases, facts, tuple(missing))


def _share(record: RequestRecord, phase: Phase, total_s: float, others: Sequence[RequestRecord]) -> PhaseShare:
    time_s = record.phases_s.get(phase.value, 0.0)
    known = [other.phases_s.get(phase.value, 0.0) for other in others]
    median_s = statistics.median(known) if known else None
    return PhaseShare(phase.value, time_s, time_s / total_s if total_s else 0.0, median_s, _MEANS[phase])


def _headline(record: RequestRecord, phases: Sequence[PhaseShare], total_s: float) -> str:
    if not phases:
        return f"{record.outcome}; nothing has happened yet"
    longest = max(phases, key=lambda phase: phase.time_s)
    text = f"{record.outcome}; {longest.share:.0%} of its {total_s:.2f} s {longest.phase}: {longest.means}"
    if longest.median_s is not None and longest.median_s > 0 and longest.time_s > FAR * longest.median_s:
        text += f"; {longest.time_s / longest.median_s:.1f} times as long as others at the time"
    return text + (f"; {record.error}" if record.error else "")


def _facts(record: RequestRecord) -> list[str]:
    read = record.storage_read_bytes
    tokens = f"{record.num_prompt_tokens:,} prompt tokens, {record.num_hit_tokens:,} of them from storage"
    sides = (("prefill", record.prefill_engine), ("decode", record.decode_engine))
    shares = [f"{read.get(side, 0) / 1e6:,.1f} MB by the {side} side ({engine or 'none'})" for side, engine in sides]
    found = [f"{tokens}, {record.num_generated_tokens:,} generated", f"path {record.path}: read {', '.join(shares)}"]
    if record.num_recomputed_blocks:
        found.append(f"{record.num_recomputed_blocks} blocks of its hit were missing or damaged and computed again")
    if record.num_retries:
        found.append(f"it was resumed {record.num_retries} times: engines were lost, or it gave its memory to others")
    if record.follows is not None:
        found.append(f"it follows {record.follows}")
    return found
