"""The planner's answer as JSON and as one HTML page."""

from __future__ import annotations

import dataclasses
import math
from html import escape
from typing import Any

from dualpath.bench.report_css import CSS
from dualpath.bench.svg import Mark, stacked_bars
from dualpath.sim.plan import report
from dualpath.sim.plan.answer import Answer
from dualpath.sim.plan.evaluate import Outcome
from dualpath.sim.plan.search import Found

# Bars of one kind have one colour; the last two columns are words.
EXTRA_CSS = """
body{max-width:1100px} .use{max-width:760px} .use rect{fill:var(--k3)}
td:nth-last-child(-n+3),th:nth-last-child(-n+3){text-align:left}
"""


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
    parts = [f"<h1>Cluster plan</h1><p>{escape(report.sentence(found))}</p>"]
    parts += [f'<p class="dim">{escape(text)}</p>' for text in report.assumptions(found)]
    if found.best is not None:
        used = sorted(found.best.utilisation.items(), key=lambda one: -one[1])
        bars = {name: [100 * value] for name, value in used if value >= 0.001}
        drawing = stacked_bars(bars, ["used"], "%", [Mark(100, "full")], label="use of every resource")
        parts.append(
            f"<section><h2>Use of the recommendation's resources</h2><figure class='use'>{drawing}</figure></section>"
        )
    parts.append(f"<section><h2>Clusters considered</h2>{_table(found)}</section>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>Cluster plan</title><style>{CSS}{EXTRA_CSS}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _table(found: Answer) -> str:
    first, *rest = report.table(found)
    head = "".join(f"<th>{escape(name)}</th>" for name in first)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rest)
    below = "".join(f'<p class="dim">{escape(text)}</p>' for text in report.notes(found))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>{below}'


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
