"""A recorded minute under other circumstances: as Basic, as Oracle, with more of each resource.

The system as it was is simulated too. What it comes to is compared with what was recorded: where they are far apart
nothing is concluded. Answers are ratios of two simulations, applied to the recorded time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualpath.core.errors import DualPathError
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats
from dualpath.sim.cost import ModelCost
from dualpath.sim.replay.costs import fit_costs
from dualpath.sim.replay.sessions import FINISHED, Session, ended_s, sessions_of
from dualpath.sim.replay.spec import changes, spec_of
from dualpath.sim.simulation import prepare_agents
from dualpath.sim.spec import SimSpec

MIN_REQUESTS = 10
MIN_FINISHED = 0.8  # of the requests that came
TOLERANCE = 0.25  # by which the simulated minute may differ from the recorded one
WORTH = 0.05  # a change that helps less is not named
REFERENCES = ("basic", "split", "oracle")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the requests that came within the minute: means in seconds, and when the last one ended after its begin."""

    what: str
    ttft_s: float
    latency_s: float
    finished_s: float


@dataclass(frozen=True, slots=True)
class WhatIf:
    """``refusal``: why nothing is said; then there is nothing else. Outcomes are recorded, or scaled to what was."""

    refusal: str | None = None
    num_requests: int = 0
    recorded: Outcome | None = None
    error: float | None = None  # relative, of the simulated mean latency as it was
    systems: tuple[Outcome, ...] = ()
    helps: tuple[Outcome, ...] = ()  # most first
    assumptions: tuple[str, ...] = ()


def what_if(records: Sequence[RequestRecord], stats: ClusterStats, from_unix_s: float, until_unix_s: float) -> WhatIf:
    """Pure, and takes seconds. ``stats`` at the end of the time; records as many as there are."""
    try:
        return _Minute(records, stats, from_unix_s, until_unix_s).conclude()
    except (ValueError, DualPathError) as error:
        return WhatIf(refusal=str(error))


def last_minute(records: Sequence[RequestRecord], stats: ClusterStats, minute_s: float = 60.0) -> WhatIf:
    """Of the time before the last thing that is recorded. Pure, and takes seconds."""
    until_s = max((record.arrived_unix_s + (record.total_s or 0.0) for record in records), default=0.0) + 1e-6
    return what_if(records, stats, until_s - minute_s, until_s)


class _Minute:
    def __init__(self, records: Sequence[RequestRecord], stats: ClusterStats, from_s: float, until_s: float) -> None:
        came = [record for record in records if from_s <= record.arrived_unix_s < until_s]
        self._measured = [record for record in came if record.outcome == FINISHED and record.ttft_s is not None]
        if len(self._measured) < MIN_REQUESTS:
            raise ValueError(f"{len(self._measured)} requests came and finished, {MIN_REQUESTS} are needed")
        if len(self._measured) < MIN_FINISHED * len(came):
            raise ValueError(f"{len(self._measured)} of {len(came)} requests that came have finished")
        self._spec, self._system = spec_of(stats)
        finished = [record for record in records if record.outcome == FINISHED and record.total_s is not None]
        load = [r for r in finished if r.arrived_unix_s < until_s and ended_s(r) > from_s]
        assert stats.facts is not None
        assert stats.block_bytes is not None
        assert stats.block_tokens is not None
        per_token = stats.block_bytes // stats.block_tokens
        self._cost = fit_costs(self._measured, stats, per_token, stats.facts.num_layers)
        self._sessions = sessions_of(load)
        self._begin_s = min(session.start_s for session in self._sessions)
        self._window = (from_s - self._begin_s, until_s - self._begin_s)
        self._stats = stats

    def conclude(self) -> WhatIf:
        recorded = self._recorded()
        bare = self._simulate(self._spec, self._system, "as it was")
        # What a request costs its hosts beside all that is simulated: as far as the first tokens tell.
        host_s = max(0.0, recorded.ttft_s - bare.ttft_s)
        spec = replace(self._spec, scheduler=replace(self._spec.scheduler, admission_s=host_s))
        as_it_was = self._simulate(spec, self._system, "as it was") if host_s else bare
        if as_it_was.latency_s > bare.latency_s and abs(as_it_was.latency_s - recorded.latency_s) > abs(
            bare.latency_s - recorded.latency_s
        ):
            spec, as_it_was = self._spec, bare
        error = as_it_was.latency_s / recorded.latency_s - 1
        if abs(error) > TOLERANCE:
            raise ValueError(
                f"the simulator does not know this minute: a mean request takes {as_it_was.latency_s:.2f} s there, "
                f"{recorded.latency_s:.2f} s were recorded (tolerance {TOLERANCE:.0%})"
            )
        systems = tuple(
            recorded if name == self._system else _scaled(self._simulate(spec, name, name), as_it_was, recorded)
            for name in REFERENCES
        )
        tried = [
            _scaled(self._simulate(other, system, name), as_it_was, recorded)
            for name, other, system in changes(spec, self._system)
        ]
        helps = sorted((o for o in tried if o.latency_s < (1 - WORTH) * recorded.latency_s), key=_latency)
        return WhatIf(
            None, len(self._measured), recorded, round(error, 3), systems, tuple(helps), tuple(self._assumptions())
        )

    def _recorded(self) -> Outcome:
        number = len(self._measured)
        ttft_s = sum(record.ttft_s or 0.0 for record in self._measured) / number
        latency_s = sum(record.total_s or 0.0 for record in self._measured) / number
        finished_s = max(map(ended_s, self._measured)) - self._begin_s - self._window[0]
        return Outcome(self._system, ttft_s, latency_s, finished_s)

    def _simulate(self, spec: SimSpec, system: str, what: str) -> Outcome:
        return simulate_sessions(spec, self._cost, system, self._sessions, self._window, what)

    def _assumptions(self) -> list[str]:
        found = ["costs of the model are fitted to these requests"]
        if any(node.compute_nic_bytes_per_s is None for node in self._stats.nodes):
            found.append("the compute network's rate is not known: memory copies are taken")
        if not any(record.follows for record in self._measured):
            found.append("no request followed another: all come when they came, however slow the system")
        return found


def simulate_sessions(
    spec: SimSpec, cost: ModelCost, system: str, sessions: Sequence[Session], window: tuple[float, float], what: str
) -> Outcome:
    """``window`` counts from the first session's start. Raises ConfigError for a cluster too small for them."""
    begin_s = min(session.start_s for session in sessions)
    agents = [session.agent(index) for index, session in enumerate(sessions)]
    found = [session.trajectory(index) for index, session in enumerate(sessions)]
    moments = [session.start_s - begin_s for session in sessions]
    done = prepare_agents(spec, cost, system, found, agents, moments, window)
    done.run()
    seen = done.observer
    if not seen.num_requests:
        raise ValueError("nothing was simulated within the time")
    ttft_s = seen.histograms["ttft"].mean
    latency_s = sum(seen.histograms[phase].total_s for phase in seen.histograms if phase not in _TIMES)
    return Outcome(what, ttft_s, latency_s / seen.num_requests, seen.end_s - window[0])


_TIMES = ("ttft", "ttst", "tpot")


def _scaled(simulated: Outcome, as_it_was: Outcome, recorded: Outcome) -> Outcome:
    def scale(name: str) -> float:
        value = getattr(simulated, name) / getattr(as_it_was, name) * getattr(recorded, name)
        return float(round(value, 4))

    return Outcome(simulated.what, scale("ttft_s"), scale("latency_s"), scale("finished_s"))


def _latency(outcome: Outcome) -> float:
    return outcome.latency_s
