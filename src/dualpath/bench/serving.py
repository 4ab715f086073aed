"""One rate of arriving agents against one server: latencies in a window after the warm-up, and whether they hold.

Limits are on means over the requests that arrive within the window, as in the paper (section 7.1). A request that has
no first token when the measurement ends counts with the time it has waited: leaving it out would flatter an overload.
*Unsteady* is a queue that grows: of the window's four quarters each later one has a higher mean TTFT, and the last one
is 1.5 times the first and above it by a tenth of the limit. A measurement ends early once the mean is beyond twice the
limit. TTFT and TPOT are the server's own, from a request's arrival at the scheduler on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.bench.arrivals import Visitors
from dualpath.bench.workload import Script
from dualpath.report.summary import phase_summary, summarize

POLL_S = 1.0
HOPELESS = 2.0  # times the limit
MIN_REQUESTS_TO_GIVE_UP = 20
NUM_PARTS, GROWTH, GROWTH_OF_LIMIT = 4, 1.5, 0.1
SERIES_STEPS = 12  # of the window, for the course of TTFT over time


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, for means."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds from the first moment at which agents may arrive."""

    warm_up_s: float
    duration_s: float

    @property
    def end_s(self) -> float:
        return self.warm_up_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that arrived within the window, as of the end of the measurement."""

    arrived_s: float  # from the window's start
    ttft_s: float
    has_token: bool  # False: ``ttft_s`` is how long it has waited so far
    record: Mapping[str, Any]


async def measure(
    url: str,
    aps: float,
    moments_s: Sequence[float],
    scripts: Sequence[Script],
    window: Window,
    limits: Limits,
    on_turn: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Let agents in at ``moments_s`` and watch until the window ends or its limits are out of reach."""
    records: dict[str, dict[str, Any]] = {}
    async with Visitors(url, on_turn) as visitors:
        start_unix_s, start_s = time.time(), time.monotonic()
        entering = asyncio.create_task(visitors.let_in(moments_s, scripts))
        gave_up = False
        try:
            while not gave_up and (left_s := start_s + window.end_s - time.monotonic()) > 0:
                await asyncio.sleep(min(POLL_S, left_s))
                records.update((one["request_id"], one) for one in await visitors.records())
                seen = seen_requests(records.values(), start_unix_s + window.warm_up_s, time.time())
                gave_up = is_hopeless(seen, limits)
        finally:
            entering.cancel()
        records.update((one["request_id"], one) for one in await visitors.records())
        seen = seen_requests(records.values(), start_unix_s + window.warm_up_s, time.time())
        return point(aps, seen, limits, gave_up) | {
            "ttft_over_time_s": ttft_over_time(seen, window.duration_s),
            "agents_done": visitors.num_agents_done,
            "agents": len(moments_s),
        }


def seen_requests(records: Iterable[Mapping[str, Any]], from_unix_s: float, now_unix_s: float) -> list[Seen]:
    """In order of arrival; failed and cancelled requests without a token are left out."""
    seen = []
    for one in records:
        arrived_s = one["arrived_unix_s"] - from_unix_s
        ttft_s = one["ttft_s"]
        if arrived_s < 0 or (ttft_s is None and one["outcome"] != "running"):
            continue
        waited_s = now_unix_s - one["arrived_unix_s"]
        seen.append(Seen(arrived_s, waited_s if ttft_s is None else ttft_s, ttft_s is not None, one))
    return sorted(seen, key=lambda request: request.arrived_s)


def is_hopeless(seen: Sequence[Seen], limits: Limits) -> bool:
    mean_s = summarize(one.ttft_s for one in seen).get("mean", 0.0)
    return len(seen) >= MIN_REQUESTS_TO_GIVE_UP and mean_s > HOPELESS * limits.ttft_s


def is_steady(seen: Sequence[Seen], limits: Limits) -> bool:
    """False if the time to first token keeps growing over the window."""
    if len(seen) < 2 * NUM_PARTS:
        return True
    size = len(seen) / NUM_PARTS
    parts = [seen[int(i * size) : int((i + 1) * size)] for i in range(NUM_PARTS)]
    means = [sum(one.ttft_s for one in part) / len(part) for part in parts]
    grows = all(after > before for before, after in itertools.pairwise(means))
    return not (grows and means[-1] > GROWTH * means[0] and means[-1] - means[0] > GROWTH_OF_LIMIT * limits.ttft_s)


def ttft_over_time(seen: Sequence[Seen], duration_s: float) -> list[tuple[float, float]]:
    """(middle, mean TTFT) of each twelfth of the window in which requests arrived, in seconds from its start.

    Twelfths with requests that still wait at the end are left out: how long they have waited says when it ended.
    """
    step_s = duration_s / SERIES_STEPS
    parts: dict[int, list[Seen]] = {}
    for one in seen:
        parts.setdefault(min(int(one.arrived_s / step_s), SERIES_STEPS - 1), []).append(one)
    return [
        ((part + 0.5) * step_s, sum(one.ttft_s for one in those) / len(those))
        for part, those in sorted(parts.items())
        if all(one.has_token for one in those)
    ]


def point(aps: float, seen: Sequence[Seen], limits: Limits, gave_up: bool = False) -> dict[str, Any]:
    """The JSON of one rate. Nothing seen meets no limit: the window was too short to say anything."""
    ttft = summarize(one.ttft_s for one in seen)
    tpot = summarize(one.record["tpot_s"] for one in seen)
    steady = not gave_up and is_steady(seen, limits)
    within = bool(ttft) and ttft["mean"] <= limits.ttft_s and tpot.get("mean", 0.0) <= limits.tpot_s
    prompt = sum(one.record["num_prompt_tokens"] for one in seen)
    return {
        "aps": aps,
        "requests": len(seen),
        "without_first_token": sum(not one.has_token for one in seen),
        "steady": steady,
        "gave_up_early": gave_up,
        "meets_slo": steady and within,
        "ttft_s": ttft,
        "ttst_s": summarize(one.record["ttst_s"] for one in seen),
        "tpot_s": tpot,
        "phases_s": phase_summary([one.record["phases_s"] for one in seen]),
        "hit_rate": sum(one.record["num_hit_tokens"] for one in seen) / prompt if prompt else 0.0,
    }
