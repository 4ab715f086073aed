"""The search: for every system the cheapest cluster that holds, on ladders of clusters that differ in size alone.

Bounds give each ladder its lowest possible rung. The cheapest rung of all ladders is simulated next; one that fails is
followed by a larger one of its ladder, first by small, then by larger steps, and the rungs that were passed over are
tried once one has held. A ladder that costs more than what has been found is left. Assumes that a larger cluster of one
ladder holds what a smaller one holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dualpath.core.errors import ConfigError
from dualpath.sim.plan import bounds
from dualpath.sim.plan.candidates import Candidate, Ladder
from dualpath.sim.plan.evaluate import Outcome, for_bounds
from dualpath.sim.plan.question import Question

SLACK = 1.02  # bounds are made of means of a sample: a little above 1 may still hold
BEST_SPLITS = 2  # of a rung's divisions into P and D, those whose fullest resource is emptiest are simulated

Evaluate = Callable[[Candidate], Outcome]
CostKey = tuple[float, int, float, int]


@dataclass(slots=True)
class Found:
    """What the search for one system has come to."""

    system: str
    best: Outcome | None = None
    tried: list[Outcome] = field(default_factory=list)
    ruled_out: dict[str, int] = field(default_factory=dict)  # candidates by the resource that cannot carry the load
    impossible: str | None = None  # why no candidate could be simulated at all


class SystemSearch:
    """One system's; ``evaluate`` may run elsewhere."""

    def __init__(self, question: Question, ladders: list[Ladder], system: str, evaluate: Evaluate, budget: int) -> None:
        self._question, self._evaluate, self._budget = question, evaluate, budget
        self._ladders = ladders
        self.found = Found(system)

    def run(self) -> Found:
        """Cheapest ladder first."""
        lowest = [(ladder, self._rungs(ladder)) for ladder in self._ladders]
        usable = [(ladder, rungs) for ladder, rungs in lowest if rungs]
        for _, rungs in sorted(usable, key=lambda one: self._key(one[1][0][0])):
            self._climb(rungs)
        return self.found

    def _key(self, candidate: Candidate) -> CostKey:
        return candidate.cost_key(self._question.prices)

    def _rungs(self, ladder: Ladder) -> list[list[Candidate]]:
        """What bounds leave of a ladder, from cheap to expensive: the best divisions of every size."""
        rungs = []
        for size in ladder.sizes():
            ranked = []
            for candidate in ladder.rung(size):
                fullest, name = fullest_resource(self._question, candidate)
                if fullest <= SLACK:
                    ranked.append((fullest, candidate.prefill_nodes, candidate))
                else:
                    self.found.ruled_out[name] = self.found.ruled_out.get(name, 0) + 1
            if ranked:
                rungs.append([candidate for _, _, candidate in sorted(ranked)[:BEST_SPLITS]])
        return rungs

    def _climb(self, rungs: list[list[Candidate]]) -> None:
        """Gallop to a rung that holds, then bisect down to the lowest that does."""
        if self._question.has_no_limit:
            for at in range(len(rungs)):
                if (at + 1) & at == 0:  # no rung is too small: sizes 1, 2, 4, ... of them, to see which is worth most
                    self._holds(rungs[at])
            return
        rungs = [rung for rung in rungs if self._is_cheaper(rung[0])]
        low, high, step = -1, len(rungs), 1  # the highest rung that failed, the lowest that held or was not tried
        while low + 1 < high:
            at = min(low + step, len(rungs) - 1)
            if self._holds(rungs[at]):
                high = at
                break
            low, step = at, 2 * step
        while high < len(rungs) and high - low > 1:
            middle = (low + high) // 2
            if self._holds(rungs[middle]):
                high = middle
            else:
                low = middle

    def _is_cheaper(self, candidate: Candidate) -> bool:
        return self.found.best is None or self._key(candidate) < self._key(self.found.best.candidate)

    def _holds(self, rung: list[Candidate]) -> bool:
        """One of its divisions; all are tried, so that the best one is known."""
        held = False
        for candidate in rung:
            outcome = self._try(candidate)
            if outcome is None:
                continue
            if outcome.holds:
                held = True
                best = self.found.best
                if best is None or self._rank(outcome) < self._rank(best):
                    self.found.best = outcome
        return held

    def _rank(self, outcome: Outcome) -> tuple[CostKey, float]:
        """Cheaper first, then with more room to the limits; without limits, the cheapest job first."""
        question, key = self._question, self._key(outcome.candidate)
        if question.has_no_limit:
            per_hour = key[0] if question.prices.are_given else float(key[1])
            return (per_hour * outcome.jct_s, *key[1:]), outcome.jct_s
        limit = question.base.workload
        margin = max(outcome.ttft_s / limit.ttft_slo_s, outcome.tpot_s / limit.tpot_slo_s)
        return key, margin if question.is_online else outcome.jct_s

    def _try(self, candidate: Candidate) -> Outcome | None:
        if len(self.found.tried) >= self._budget:
            return None
        try:
            outcome = self._evaluate(candidate)
        except ConfigError as error:
            self.found.impossible = str(error)
            return None
        self.found.tried.append(outcome)
        return outcome


def fullest_resource(question: Question, candidate: Candidate) -> tuple[float, str]:
    """(the least utilisation of the resource that binds, its name); offline in units of the longest time allowed."""
    demand, cost, spec = for_bounds(question, candidate)
    work = question.base.workload
    if work.aps is not None:
        rate = work.aps * demand.requests_per_agent
        used = bounds.utilisations(candidate, spec, cost, demand, rate)
        name = max(used, key=lambda one: used[one])
        return used[name], name
    least_s = bounds.least_job_s(candidate, spec, cost, demand, work.agents)
    return least_s / (question.max_jct_s or least_s * candidate.num_nodes), "time of the whole job"
