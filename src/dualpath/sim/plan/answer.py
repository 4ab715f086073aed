"""From a question to an answer: a search for every system, in processes, and the winner simulated with other seeds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace

from dualpath.core.errors import ConfigError
from dualpath.sim.plan.candidates import Candidate, groups, ladders
from dualpath.sim.plan.demand import Demand
from dualpath.sim.plan.evaluate import Outcome, evaluate, workload_demand
from dualpath.sim.plan.question import Question
from dualpath.sim.plan.search import Found, SystemSearch
from dualpath.sim.workers import simulating_processes

Progress = Callable[[str], None]
CHECK_REQUESTS = 2  # the final check may simulate so many times as many requests as the search: a larger scale
MAX_REJECTED = 4  # winners that did not hold with other seeds; then there is no answer


@dataclass(frozen=True, slots=True)
class Answer:
    question: Question
    demand: Demand
    kv_bytes_per_token: int
    found: list[Found]  # by system, in the question's order
    best: Outcome | None  # of all that hold, the cheapest
    check: list[Outcome]  # of it, with other seeds
    rejected: list[Candidate]  # held in the search, but not with other seeds


def answer(question: Question, num_workers: int, progress: Progress) -> Answer:
    """Raises ConfigError where no cluster can hold the model or the longest request."""
    space = question.space
    start = replace(question, space=replace(space, systems=space.systems[:1]))
    sizes = groups(question.base, start.space, _longest_tokens(question))
    budget = max(1, question.max_simulations // len(space.systems))
    known: dict[Candidate, Outcome] = {}
    rejected: list[Candidate] = []
    # Processes go first: threads wait for them.
    with ThreadPoolExecutor(len(space.systems)) as threads, simulating_processes(num_workers) as pool:

        def simulate(candidate: Candidate) -> Outcome:
            if candidate not in known:
                known[candidate] = pool.submit(evaluate, question, candidate, question.base.workload.seed).result()
                progress(describe(question, known[candidate]))
            outcome = known[candidate]
            return replace(outcome, holds=False) if candidate in rejected else outcome

        while True:  # what does not hold with other seeds does not hold: search on from there
            searches = [
                SystemSearch(question, list(ladders(space, system, sizes)), system, simulate, budget)
                for system in space.systems
            ]
            found = list(threads.map(SystemSearch.run, searches))
            held = [one.best for one in found if one.best is not None]
            best = min(held, key=lambda outcome: _key(question, outcome), default=None)
            check = [] if best is None else _check(question, best, pool, progress)
            if best is None or all(one.holds for one in check) or len(rejected) == MAX_REJECTED:
                break
            rejected.append(best.candidate)
    if not all(one.holds for one in check):
        best, check = None, []
    if not any(one.tried for one in found):
        reasons = [one.impossible for one in found if one.impossible]
        if reasons:
            raise ConfigError(reasons[0])
    demand, cost = workload_demand(question, _any_candidate(question, sizes[0]))
    return Answer(question, demand, cost.kv_bytes_per_token, found, best, check, rejected)


def describe(question: Question, outcome: Outcome) -> str:
    """One line for somebody who waits."""
    times = f"TTFT {outcome.ttft_s:.2f} s, TPOT {outcome.tpot_s * 1000:.1f} ms" if question.is_online else ""
    times = times or f"JCT {outcome.jct_s:.0f} s"
    return f"{outcome.candidate}: {times}, {'holds' if outcome.holds else 'fails'}"


def _check(question: Question, best: Outcome, pool: ProcessPoolExecutor, progress: Progress) -> list[Outcome]:
    """The same candidate with other seeds, in windows that fit what was measured."""
    larger = replace(question, max_requests=CHECK_REQUESTS * question.max_requests)
    first = question.base.workload.seed + 1
    seeds = range(first, first + question.num_seeds)
    tasks = [pool.submit(evaluate, larger, best.candidate, seed, best.jct_s) for seed in seeds]
    check = [task.result() for task in tasks]
    for one in check:
        progress(f"seed {one.seed}: {describe(question, one)}")
    return check


def _key(question: Question, outcome: Outcome) -> tuple[float, ...]:
    key = outcome.candidate.cost_key(question.prices)
    if question.has_no_limit:
        return ((key[0] if question.prices.are_given else key[1]) * outcome.jct_s, outcome.jct_s)
    return (*key, outcome.ttft_s if question.is_online else outcome.jct_s)


def _any_candidate(question: Question, group_engines: int) -> Candidate:
    space = question.space
    nodes = max(1, group_engines // space.engines_per_node)
    nic = (space.snics[0], space.snic_gbps[0], space.staging_bytes[0])
    return Candidate(space.systems[0], nodes, nodes, space.engines_per_node, group_engines, *nic)


def _longest_tokens(question: Question) -> int:
    work = replace(question.base.workload, aps=None, agents=200)
    return max(one.total_tokens for one in question.trajectories(work, 200))
