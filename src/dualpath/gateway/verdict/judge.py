"""The verdict: what binds, by which threshold; that nothing does; or which data is missing to say so."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.core.phase import Phase
from dualpath.gateway.verdict.change import MIN_INTERVAL_S, Change, ClusterLook
from dualpath.gateway.verdict.rules import BROKEN, FULL, WAITING, Finding

BINDS, NOTHING, IDLE, UNKNOWN = "binds", "nothing", "idle", "unknown"
_WAITS = (Phase.QUEUED, Phase.PLACED, Phase.READING, Phase.READY, Phase.HANDED_OVER)


@dataclass(frozen=True, slots=True)
class ResourceVerdict:
    """``findings`` have the cause first. ``requests_in_phase`` are averages over ``interval_s``; None: not known."""

    state: str  # binds | nothing | idle | unknown
    headline: str
    findings: tuple[Finding, ...] = ()
    missing: tuple[str, ...] = ()  # data, each with what it leaves open
    interval_s: float = 0.0
    requests_in_phase: dict[str, float] | None = None


def judge(before: ClusterLook, after: ClusterLook) -> ResourceVerdict:
    """``after`` some seconds to a minute later than ``before``. Pure.

    What is broken is said whatever is missing. What is full too: a threshold that was passed was passed. But "nothing
    binds" is said only when everything that could bind was seen.
    """
    interval_s = after.taken_s - before.taken_s
    if interval_s < MIN_INTERVAL_S:
        return _unknown(f"the looks are {interval_s:.2f} s apart; at least {MIN_INTERVAL_S:g} s are needed", interval_s)
    change = Change(before, after)
    broken = tuple(finding for rule in BROKEN for finding in rule(change))
    if not broken and not after.stats.engines:
        return _unknown("no engine answered", interval_s)
    findings = broken + tuple(finding for rule in FULL for finding in rule(change))
    if not change.nodes:
        change.missing.append("nodes: whether one is silent, and how fast its NICs are, is not known")
    if after.stats.store is None:
        change.missing.append("the store: whether it takes blocks is not known")
    state, headline = _conclusion(change, findings)
    phases = None
    if change.num_in_phase is not None:
        phases = {phase: round(num, 3) for phase, num in change.num_in_phase.items() if num}
    return ResourceVerdict(state, headline, findings, tuple(change.missing), round(interval_s, 3), phases)


def _conclusion(change: Change, findings: tuple[Finding, ...]) -> tuple[str, str]:
    if findings:
        return BINDS, f"{findings[0].resource}: {findings[0].text}"
    if change.missing:
        return UNKNOWN, f"cannot tell; missing: {change.missing[0]}"
    total = change.requests_in(*Phase)
    if not total:
        return IDLE, "no request ran between the two looks"
    slowest = max(Phase, key=change.requests_in)
    share = change.requests_in(slowest) / total
    headline = f"nothing binds; {share:.0%} of the time of requests is {slowest.value}"
    waiting = change.requests_in(*_WAITS)
    if waiting >= WAITING:
        headline += f"; but {waiting:.1f} requests wait, most of them {max(_WAITS, key=change.requests_in).value}"
    return NOTHING, headline


def _unknown(reason: str, interval_s: float) -> ResourceVerdict:
    return ResourceVerdict(UNKNOWN, f"cannot tell; {reason}", (), (reason,), round(interval_s, 3))
