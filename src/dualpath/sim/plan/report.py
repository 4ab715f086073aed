"""The planner's answer in words: a sentence, a table of the clusters considered, where each resource stands."""

from __future__ import annotations

from dualpath.sim.plan.answer import Answer
from dualpath.sim.plan.evaluate import Outcome
from dualpath.sim.plan.search import Found

MILLION = 1e6
MAX_ROWS = 24  # of the table
GB = 1e9
HEAD = (
    "system",
    "P",
    "D",
    "GPUs",
    "SNICs",
    "staging",
    "TTFT s",
    "TPOT ms",
    "JCT s",
    "holds",
    "most used",
    "waits most",
)


def sentence(found: Answer) -> str:
    """The recommendation, or why there is none."""
    if found.best is None:
        return no_recommendation(found)
    best, one = found.best, found.best.candidate
    cluster = (
        f"{one.prefill_nodes} prefill and {one.decode_nodes} decode nodes of {one.engines_per_node} GPUs,"
        f" {one.snics} storage NIC{'s' if one.snics > 1 else ''} of {one.snic_gbps:g} Gb/s and"
        f" {one.staging_bytes / GB:g} GB of staging memory each, path policy {one.system}"
    )
    plural = "s" if len(found.check) > 1 else ""
    seeds = ", ".join(range_text(name, values) for name, values in seed_ranges(found).items())
    price, generated = cost_per_million(found, best), cost_per_million_generated(found, best)
    costs = "" if price is None else f"; {price:.3g} per million tokens, prompts and their hits included"
    costs += "" if generated is None else f", {generated:.3g} per million generated"
    others = [
        f"{other.system} needs {other.best.candidate.num_gpus} GPUs" if other.best else f"{other.system} finds none"
        for other in found.found
        if other.system != one.system
    ]
    return (
        f"Recommended: {cluster} ({one.num_gpus} GPUs): with {len(found.check)} other seed{plural} {seeds};"
        f" most used is {best.binding} ({best.utilisation[best.binding]:.0%}), working set"
        f" {best.working_set_bytes / GB:.0f} GB{costs}." + (f" ({'; '.join(others)}.)" if others else "")
    )


def no_recommendation(found: Answer) -> str:
    """What stands in the way."""
    nodes = found.question.space.max_nodes
    tried = [outcome for one in found.found for outcome in one.tried]
    if not tried:
        names: dict[str, int] = {}
        for one in found.found:
            for name, count in one.ruled_out.items():
                names[name] = names.get(name, 0) + count
        most = max(names, key=lambda name: names[name]) if names else "the number of nodes"
        return (
            f"No cluster of up to {nodes} nodes can hold the limits: by its bounds alone, {most} is too small in most."
        )
    nearest = min(tried, key=lambda outcome: _shortfall(found, outcome))
    why = f"{nearest.binding} is used most ({nearest.utilisation[nearest.binding]:.0%})"
    if found.question.is_online:
        why += f" and requests wait longest {_phase(nearest)}"
    return f"No cluster of up to {nodes} nodes holds the limits: nearest is {nearest.candidate}, where {why}."


def lines(found: Answer) -> list[str]:
    """The table as text, and what there is to say about it."""
    rows = table(found)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*text, *notes(found)]


def table(found: Answer) -> list[tuple[str, ...]]:
    """A head, then of every system the cheapest that hold and those just below."""
    return [HEAD, *[_row(found, outcome) for outcome in shown(found, MAX_ROWS)]]


def notes(found: Answer) -> list[str]:
    """How many clusters were looked at, and how the table's figures came about."""
    total = sum(len(one.tried) for one in found.found)
    ruled = sum(sum(one.ruled_out.values()) for one in found.found)
    more = ", not all shown" if total > len(shown(found, MAX_ROWS)) else ""
    text = [f"{total} clusters simulated, {ruled} ruled out by bounds{more}"]
    if found.check and found.question.is_online:
        text.append("each with one seed in a short window; the recommendation again with other seeds in longer ones")
    return [*text, *[f"held with one seed only: {candidate}" for candidate in found.rejected]]


def shown(found: Answer, max_rows: int) -> list[Outcome]:
    """Of each system the simulated clusters that cost least around the best one, cheap to expensive."""
    per_system = max(2, max_rows // max(1, len(found.found)))
    rows: list[Outcome] = []
    for one in found.found:
        ordered = sorted(one.tried, key=lambda outcome: outcome.candidate.cost_key(found.question.prices))
        near = ordered if one.best is None else sorted(ordered, key=lambda outcome: _distance(found, one, outcome))
        kept = set(map(id, near[-per_system:] if one.best is None else near[:per_system]))
        rows += [outcome for outcome in ordered if id(outcome) in kept]
    return rows


def cost_per_million(found: Answer, outcome: Outcome) -> float | None:
    """Price of a million tokens, prompt and generated together, at this load; None without prices."""
    if not found.question.prices.are_given or not outcome.tokens_per_s:
        return None
    return outcome.candidate.price_per_hour(found.question.prices) / 3600 / outcome.tokens_per_s * MILLION


def cost_per_million_generated(found: Answer, outcome: Outcome) -> float | None:
    """The same price, of generated tokens alone; None without prices."""
    if not found.question.prices.are_given or not outcome.generated_per_s:
        return None
    return outcome.candidate.price_per_hour(found.question.prices) / 3600 / outcome.generated_per_s * MILLION


def seed_ranges(found: Answer) -> dict[str, tuple[float, float, float]]:
    """(least, mean, most) of each time over the check's seeds, in seconds."""
    names = ("ttft_s", "tpot_s", "jct_s")
    values = {name: [float(getattr(one, name)) for one in found.check] for name in names}
    return {name: (min(seen), sum(seen) / len(seen), max(seen)) for name, seen in values.items() if seen}


def range_text(name: str, values: tuple[float, float, float]) -> str:
    label, factor, unit = {"ttft_s": ("TTFT", 1, "s"), "tpot_s": ("TPOT", 1000, "ms"), "jct_s": ("JCT", 1, "s")}[name]
    least, mean, most = (_short(value * factor) for value in values)
    return f"{label} {mean} {unit} ({least} to {most})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def assumptions(found: Answer) -> list[str]:
    """What the figures rest on and a user may know better."""
    model, best = found.question.base.model, found.best
    text = []
    if model.efficiency is not None:
        text.append(
            f"assumed: kernels reach {model.efficiency:.0%} of peak, {model.prefill_base_s:g} s for every forward,"
            f" {model.decode_base_s:g} s for every decode step beside them; measure yours and give --spec"
        )
    if best is not None and best.scale > 1:
        text.append(f"simulated at 1/{best.scale} of nodes and load")
    return text


def resource_lines(found: Answer) -> list[str]:
    """Where every resource of the recommendation stands."""
    if found.best is None:
        return []
    used = sorted(found.best.utilisation.items(), key=lambda one: -one[1])
    return [
        "use of the recommendation's resources:",
        *[f"  {name:26}{value:>7.1%}" for name, value in used if value > 0],
    ]


def _row(found: Answer, outcome: Outcome) -> tuple[str, ...]:
    one = outcome.candidate
    return (
        ("* " if found.best is outcome else "  ") + one.system,
        str(one.prefill_nodes),
        str(one.decode_nodes),
        str(one.num_gpus),
        f"{one.snics} x {one.snic_gbps:g}G",
        f"{one.staging_bytes / GB:g} GB",
        f"{outcome.ttft_s:.2f}",
        f"{outcome.tpot_s * 1000:.1f}",
        f"{outcome.jct_s:.0f}",
        "yes" if outcome.holds else "no",
        f"{outcome.binding} {outcome.utilisation[outcome.binding]:.0%}",
        _phase(outcome),
    )


def _phase(outcome: Outcome) -> str:
    return {
        "queued": "for engines",
        "placed": "for staging",
        "reading": "for reads",
        "ready": "for a forward",
        "prefilling": "in prefill",
    }[outcome.longest_phase]


def _distance(found: Answer, one: Found, outcome: Outcome) -> float:
    assert one.best is not None
    best, key = one.best.candidate.cost_key(found.question.prices), outcome.candidate.cost_key(found.question.prices)
    return abs(key[0] - best[0]) * MILLION + abs(key[1] - best[1]) * 1000 + abs(key[2] - best[2]) / 1000


def _shortfall(found: Answer, outcome: Outcome) -> float:
    work = found.question.base.workload
    if found.question.is_online:
        return max(outcome.ttft_s / work.ttft_slo_s, outcome.tpot_s / work.tpot_slo_s)
    return outcome.jct_s
