"""The planner's answer as JSON and as one HTML page."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dualpath.report.page import page
from dualpath.report.svg import Mark, stacked_bars
from dualpath.sim.plan import report
from dualpath.sim.plan.answer import Answer
from dualpath.sim.plan.evaluate import Outcome
from dualpath.sim.plan.search import Found


def answer_json(found: Answer) -> dict[str, Any]:
    """Times in seconds; a time that nothing was measured for is null."""
    ranges = {
        name: dict(zip(("min", "mean", "max"), seen, strict=True)) for name, seen in report.seed_ranges(found).items()
    }
    question = found.question
    return {
        "recommendation": None if found.best is None else _outcome(found, found.best),
        "sentence": report.sentence(found),
        "assumptions": report.assumptions(found),
        "other_seeds": {"seeds": [one.seed for one in found.check], **ranges},
        "rejected_by_other_seeds": [dataclasses.asdict(one) for one in found.rejected],
        "demand": dataclasses.asdict(found.demand) | {"kv_bytes_per_token": found.kv_bytes_per_token},
        "systems": {one.system: _system(found, one) for one in found.found},
        "space": dataclasses.asdict(question.space),
        "prices": dataclasses.asdict(question.prices),
        "workload": dataclasses.asdict(question.base.workload),
        "model": dataclasses.asdict(question.base.model),
        "max_jct_s": question.max_jct_s,
        "limit_statistic": question.limit_statistic,
    }


def answer_html(found: Answer) -> str:
    """One page without external resources."""
    head, *rows = report.table(found)
    return page(
        "plan.html",
        title="Cluster plan",
        sentence=report.sentence(found),
        assumptions=report.assumptions(found),
        use=None if found.best is None else _use(found.best),
        head=head,
        rows=rows,
        notes=report.notes(found),
    )


def _use(best: Outcome) -> str:
    used = sorted(best.utilisation.items(), key=lambda one: -one[1])
    bars = {name: [100 * value] for name, value in used if value >= 0.001}
    return stacked_bars(bars, ["used"], "%", [Mark(100, "full")], label="use of every resource")


def _system(found: Answer, one: Found) -> dict[str, Any]:
    return {
        "best": None if one.best is None else _outcome(found, one.best),
        "considered": [_outcome(found, outcome) for outcome in one.tried],
        "ruled_out_by": one.ruled_out,
        "impossible": one.impossible,
    }


def _outcome(found: Answer, outcome: Outcome) -> dict[str, Any]:
    one = outcome.candidate
    values = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return values | {
        "candidate": dataclasses.asdict(one) | {"num_gpus": one.num_gpus},
        "binding": outcome.binding,
        "longest_phase": outcome.longest_phase,
        "price_per_hour": one.price_per_hour(found.question.prices),
        "price_per_million_tokens": report.cost_per_million(found, outcome),
        "price_per_million_generated_tokens": report.cost_per_million_generated(found, outcome),
    }
