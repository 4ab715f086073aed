"""The search against a world that is known: it finds the cheapest cluster that holds, without trying them all."""

from __future__ import annotations

from tests.sim.plan.specs import planned_spec

from dualpath.sim.plan.candidates import Candidate, ladders
from dualpath.sim.plan.evaluate import Outcome
from dualpath.sim.plan.question import Prices, Question, Space
from dualpath.sim.plan.search import Found, SystemSearch


def outcome_of(candidate: Candidate, holds: bool, jct_s: float = 1.0) -> Outcome:
    used, phases = {"decode step": 0.5}, {"queued": 0.0}
    return Outcome(candidate, 0, holds, 1.0, 0.01, jct_s, True, used, phases, 0.0, 1.0, 1.0, 1, 1)


def search(least_nodes: int, question: Question) -> tuple[Found, list[Candidate]]:
    """In a world where so many nodes hold, one fewer with two storage NICs each."""
    asked: list[Candidate] = []

    def world(candidate: Candidate) -> Outcome:
        asked.append(candidate)
        return outcome_of(candidate, candidate.num_nodes >= least_nodes - (candidate.snics == 2))

    space = question.space
    one = SystemSearch(question, list(ladders(space, "split", [2])), "split", world, 100)
    return one.run(), asked


def question(prices: Prices | None = None, max_nodes: int = 40) -> Question:
    space = Space(engines_per_node=2, max_nodes=max_nodes, snics=(1, 2))
    return Question(planned_spec(workload={"aps": 0.001}), space, prices or Prices())


def test_the_fewest_gpus_win_without_prices_and_few_clusters_are_tried() -> None:
    for least in (3, 4, 9, 17, 40):
        found, asked = search(least, question())
        assert found.best is not None
        assert (found.best.candidate.num_nodes, found.best.candidate.snics) == (least - 1, 2)
        assert len(asked) <= 45


def test_dear_storage_nics_make_the_larger_cluster_the_cheaper_one() -> None:
    found, _ = search(9, question(Prices(gpu_hour=1.0, snic_hour=10.0)))
    assert found.best is not None
    assert (found.best.candidate.num_nodes, found.best.candidate.snics) == (9, 1)


def test_nothing_holds() -> None:
    found, asked = search(100, question(max_nodes=8))
    assert found.best is None
    assert max(candidate.num_nodes for candidate in asked) == 8


def test_bounds_rule_out_what_need_not_be_simulated() -> None:
    heavy = Question(planned_spec(workload={"aps": 50.0}), Space(engines_per_node=2, max_nodes=4))
    one = SystemSearch(heavy, list(ladders(heavy.space, "split", [2])), "split", lambda c: outcome_of(c, True), 100)
    found = one.run()
    assert not found.tried
    assert sum(found.ruled_out.values()) == 2 * (1 + 2 + 3)


def test_a_job_without_a_limit_is_planned_for_its_cost() -> None:
    def world(candidate: Candidate) -> Outcome:
        return outcome_of(candidate, True, jct_s=100.0 if candidate.num_nodes < 4 else 10.0)

    job = Question(planned_spec(workload={"agents": 8}), Space(engines_per_node=2, max_nodes=10, snics=(1,)))
    found = SystemSearch(job, list(ladders(job.space, "split", [2])), "split", world, 100).run()
    assert found.best is not None
    assert found.best.candidate.num_nodes >= 4
