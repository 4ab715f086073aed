"""One candidate, simulated: does it hold the limits, and what is it short of?

A window long enough for a steady state, and a cluster small enough to be quick: arrivals and nodes are divided by the
same number while enough nodes of each role are left, since load per node decides (the paper's Table 3: equal times at 6
and at 132 nodes). Smaller clusters even out load worse, so that errs on the safe side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from dualpath.sim.cost import ModelCost
from dualpath.sim.gauges import NUM_LOOKS, Begin, Gauges, Look
from dualpath.sim.model_choice import resolve
from dualpath.sim.observer import PHASES
from dualpath.sim.plan.bounds import prefill_utilisation, turn_s
from dualpath.sim.plan.candidates import Candidate
from dualpath.sim.plan.demand import Demand, demand_of
from dualpath.sim.plan.question import Question
from dualpath.sim.results import is_steady
from dualpath.sim.simulation import Simulation, prepare
from dualpath.sim.spec import SimSpec
from dualpath.sim.workload import arrivals

SLOWER_THAN_IDLE = 1.2  # a loaded cluster's turns, as long as nothing has been measured
WARM_LIVES, MEASURED_LIVES = 1.0, 0.3  # windows, in mean lives of an agent
CHECK_WARM_LIVES = 2.0  # where the life has been measured: lives vary, and the long ones fill the cluster last
SHORTEST_S, LONGEST_S = 120.0, 3600.0
LOOK_S = 5.0  # between looks at memory, offline
DEMAND_AGENTS = 200  # for the means: as good as all


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the simulation of a candidate came to; times in seconds."""

    candidate: Candidate
    seed: int
    holds: bool
    ttft_s: float  # by the question's statistic, like tpot_s
    tpot_s: float
    jct_s: float  # offline: of all agents; online: of a mean agent, from its turns
    is_steady: bool
    utilisation: dict[str, float]
    phases_s: dict[str, float]  # means
    working_set_bytes: float  # mean of live agents' KV, of the whole cluster
    tokens_per_s: float  # prompt and generated, of the whole cluster
    generated_per_s: float
    scale: int  # simulated with 1/scale of nodes and load
    num_requests: int

    @property
    def binding(self) -> str:
        """What is used most."""
        return max(self.utilisation, key=lambda name: self.utilisation[name])

    @property
    def longest_phase(self) -> str:
        """In which a request waits longest for its first token."""
        before = {name: value for name, value in self.phases_s.items() if name not in ("handed_over", "decoding")}
        return max(before, key=lambda name: before[name]) if before else "queued"


def evaluate(question: Question, candidate: Candidate, seed: int, life_s: float | None = None) -> Outcome:
    """``life_s``: an agent's, where it has been measured. Raises ConfigError for an impossible cluster."""
    demand, cost = workload_demand(question, candidate)
    scale = smallest_scale(question, candidate, demand)
    spec = _spec(question, candidate, demand, cost, scale, seed, life_s)
    resolved, cost = resolve(spec)
    trajectories = question.trajectories(resolved.workload, len(arrivals(resolved.workload)))
    simulation = prepare(resolved, cost, candidate.system, trajectories)
    gauges = _watch(simulation)
    simulation.run()
    return _outcome(question, candidate, simulation, gauges, demand, scale)


def workload_demand(question: Question, candidate: Candidate) -> tuple[Demand, ModelCost]:
    """The means of the workload, and the model's costs on this cluster."""
    demand, cost, _ = for_bounds(question, candidate)
    return demand, cost


def for_bounds(question: Question, candidate: Candidate) -> tuple[Demand, ModelCost, SimSpec]:
    """The same and the nodes' spec, whose P and D are not the candidate's: made once for all clusters of such nodes."""
    return _demand(
        question, replace(candidate, prefill_nodes=candidate.group_nodes, decode_nodes=candidate.group_nodes)
    )


@lru_cache(maxsize=64)
def _demand(question: Question, candidate: Candidate) -> tuple[Demand, ModelCost, SimSpec]:
    spec, cost = resolve(candidate.spec(question.base))
    work = replace(question.base.workload, aps=None, agents=DEMAND_AGENTS)
    found = question.trajectories(work, DEMAND_AGENTS)
    return demand_of(found, question.base.scheduler.block_tokens, cost.prefill), cost, spec


def smallest_scale(question: Question, candidate: Candidate, demand: Demand) -> int:
    """The least common divisor of nodes, in groups, with which a simulation has at most ``max_requests`` requests."""
    step = candidate.group_nodes
    common = math.gcd(candidate.prefill_nodes // step, candidate.decode_nodes // step)
    divisors = [number for number in range(1, common + 1) if common % number == 0]
    if question.is_online:
        rate = (question.base.workload.aps or 0.0) * demand.requests_per_agent
        requests = rate * (WARM_LIVES + MEASURED_LIVES) * _life_guess_s(question, candidate)
    else:
        requests = question.base.workload.agents * demand.requests_per_agent
    return next((number for number in divisors if requests / number <= question.max_requests), divisors[-1])


def _life_guess_s(question: Question, candidate: Candidate) -> float:
    demand, cost = workload_demand(question, candidate)
    return SLOWER_THAN_IDLE * demand.requests_per_agent * turn_s(candidate, cost, demand)


def _spec(
    question: Question,
    candidate: Candidate,
    demand: Demand,
    cost: ModelCost,
    scale: int,
    seed: int,
    life_s: float | None,
) -> SimSpec:
    smaller = replace(
        candidate,
        prefill_nodes=candidate.prefill_nodes // scale,
        decode_nodes=candidate.decode_nodes // scale,
    )
    spec = smaller.spec(question.base)
    spec = replace(spec, cluster=replace(spec.cluster, store_bytes=_share(spec.cluster.store_bytes, scale)))
    work = replace(spec.workload, seed=seed)
    if work.aps is None:
        updates = replace(spec.updates, every=_share(spec.updates.every, scale))
        return replace(spec, workload=replace(work, agents=max(1, round(work.agents / scale))), updates=updates)
    life = life_s or _life_guess_s(question, candidate)
    lives = WARM_LIVES if life_s is None else CHECK_WARM_LIVES
    warm_s = min(max(lives * life, SHORTEST_S), LONGEST_S)
    measured_s = min(max(MEASURED_LIVES * life, SHORTEST_S), LONGEST_S)
    return replace(spec, workload=replace(work, aps=work.aps / scale, warm_up_s=warm_s, duration_s=measured_s))


def _share(whole: int | None, scale: int) -> int | None:
    return None if whole is None else max(1, round(whole / scale))


def _watch(simulation: Simulation) -> Gauges:
    gauges, work = Gauges(simulation.cluster), simulation.spec.workload
    until_s = math.inf if work.aps is None else work.warm_up_s + work.duration_s
    step_s = LOOK_S if work.aps is None else work.duration_s / NUM_LOOKS
    start_s = 0.0 if work.aps is None else work.warm_up_s
    num_agents = len(simulation.agents)
    simulation.agenda.add((Begin(start_s, gauges),))
    simulation.agenda.add((Look(start_s, gauges, step_s, until_s, simulation.observer, num_agents),))
    return gauges


def _outcome(
    question: Question, candidate: Candidate, done: Simulation, gauges: Gauges, demand: Demand, scale: int
) -> Outcome:
    seen, work, size = done.observer, done.spec.workload, done.cost.kv_bytes_per_token
    histograms, which = seen.histograms, question.limit_statistic
    ttft_s = histograms["ttft"].summary((50, 90, 99)).get(which, math.inf)
    tpot_s = histograms["tpot"].summary((50, 90, 99)).get(which, 0.0)
    elapsed_s = seen.end_s if work.aps is None else work.duration_s
    used = gauges.end(seen.end_s)
    rate = seen.num_requests * scale / elapsed_s  # busy forwards need not be full ones: what full ones would take
    used["prefill compute"] = prefill_utilisation(candidate, done.spec, done.cost, demand, rate)
    if question.is_online:
        used["decode step"] = tpot_s / work.tpot_slo_s
        turn = histograms["ttft"].mean + histograms["tpot"].mean * demand.generate_tokens + demand.think_s
        jct_s = demand.requests_per_agent * turn
        holds = is_steady(done) and ttft_s <= work.ttft_slo_s and tpot_s <= work.tpot_slo_s
    else:
        jct_s = seen.end_s
        holds = question.max_jct_s is None or jct_s <= question.max_jct_s
    return Outcome(
        candidate=candidate,
        seed=work.seed,
        holds=holds,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        jct_s=jct_s,
        is_steady=is_steady(done),
        utilisation=used,
        phases_s={name: histograms[name].mean for name in PHASES},
        working_set_bytes=seen.context.mean(seen.end_s) * size * scale,
        tokens_per_s=(seen.prompt_tokens + seen.generated_tokens) / elapsed_s * scale,
        generated_per_s=seen.generated_tokens / elapsed_s * scale,
        scale=scale,
        num_requests=seen.num_all_requests,
    )
