"""Section 8.2: the KV that all running agents will ask for again, at two rates of arrival, 660B."""

from __future__ import annotations

from functools import cache

from dualpath.sim.paper.experiment import Experiment, Outcomes, note, online_660b
from dualpath.sim.paper.rows import Report, Row, bars_of
from dualpath.sim.paper.run import Outcome, Run
from dualpath.trace.load import load_trace

PAPER_GB = {0.1: 69.0, 0.45: 681.0}
LAW = (
    "as the paper computes it: arrival rate, mean JCT (turns of a mean agent, each as long as the simulated mean) and"
    " half the final length"
)
COUNTED = "token by token, of all live agents: more, since long agents live longest; few agents, so it varies by chance"


def _runs(is_full: bool) -> list[Run]:
    return [online_660b(is_full, "shorter", aps) for aps in PAPER_GB]


def _report(outcomes: Outcomes, is_full: bool) -> Report:
    scale = 1 if is_full else 2  # half the arrivals: half the working set
    by_law, counted = [], []
    for aps, paper in PAPER_GB.items():
        run = online_660b(is_full, "shorter", aps)
        one, token_bytes = outcomes[run], run.spec.model.kv_bytes_per_token or 0
        where = note(is_full, "JCT of half the arrivals on 1P2D", LAW)
        law_gb = aps * _agent_s(one) * _mean_total_tokens() / 2 * token_bytes / 1e9
        by_law.append(Row(f"working_set.{aps:g}", f"{aps:g} APS", "GB", paper, law_gb, False, where))
        where = note(is_full, "half the arrivals, doubled; 600 s", COUNTED)
        counted_gb = scale * one.working_set_bytes / 1e9
        counted.append(
            Row(f"working_set.{aps:g}.counted", f"{aps:g} APS, counted", "GB", None, counted_gb, False, where)
        )
    return Report([*by_law, *counted], [bars_of("Working set", "GB", by_law)])


def _agent_s(one: Outcome) -> float:
    """Mean JCT, without the bias of counting only agents that end within the window."""
    return _mean_turns() * sum((one.phases_s or {}).values())


@cache
def _trace() -> tuple[float, float]:
    found = load_trace("synth:64K")
    return (
        sum(len(one.rounds) for one in found) / len(found),
        sum(one.total_tokens for one in found) / len(found),
    )


def _mean_turns() -> float:
    return _trace()[0]


def _mean_total_tokens() -> float:
    return _trace()[1]


EXPERIMENT = Experiment("working_set", "Section 8.2: working set (660B)", _runs, _report)
