"""Figures 10 to 12: agents arrive; how many a second can be served, and where the time to first token goes."""

from __future__ import annotations

from dualpath.sim.paper.experiment import Experiment, Outcomes, note, online_660b
from dualpath.sim.paper.rows import Bars, Lines, Report, Row
from dualpath.sim.paper.run import Outcome, Run

RATES = {
    ("660B", "basic"): (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45),
    ("660B", "shorter"): (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65),
    ("27B", "basic"): (0.4, 0.5, 0.6, 0.7, 0.8),
    ("27B", "shorter"): (0.6, 0.8, 0.9, 1.0, 1.1, 1.3),
}
REDUCED_RATES = {
    ("660B", "basic"): (0.1, 0.2, 0.3, 0.35, 0.4, 0.45),
    ("660B", "shorter"): (0.1, 0.4, 0.45, 0.5, 0.6, 0.65),
    ("27B", "basic"): (0.5, 0.6, 0.7),
    ("27B", "shorter"): (0.9, 1.1, 1.3),
}
NAMES = {"basic": "Basic", "shorter": "DualPath"}
TTFT_SLO_S = 4.0
BASIC_WHY = (
    "does not reproduce: at 0.20 APS the storage NICs of two prefill nodes are about half busy, so bandwidth alone is"
    " not the limit; less HBM for KV would give it, but then Basic would be too slow offline"
)


def rates(is_full: bool) -> dict[tuple[str, str], tuple[float, ...]]:
    return RATES if is_full else REDUCED_RATES


def run_of(is_full: bool, model: str, system: str, aps: float) -> Run:
    if model == "660B":
        return online_660b(is_full, system, aps)
    window = (("workload.warm_up_s", 600.0), ("workload.duration_s", 600.0)) if is_full else REDUCED_27B_WINDOW
    return Run("27B", system, 1, 1, aps=aps, settings=window)


REDUCED_27B_WINDOW = (("workload.warm_up_s", 400.0), ("workload.duration_s", 150.0))


def _runs(is_full: bool) -> list[Run]:
    return [run_of(is_full, *key, aps) for key, found in rates(is_full).items() for aps in found]


def _report(outcomes: Outcomes, is_full: bool) -> Report:
    points = {
        key: [(aps, outcomes[run_of(is_full, *key, aps)]) for aps in found] for key, found in rates(is_full).items()
    }
    limits = {key: _capacity(found) for key, found in points.items()}
    where = note(
        is_full, "660B at half size, short windows", "the highest of the rates tried at which the means meet the SLO"
    )
    open_ended = [f"{NAMES[key[1]]} {key[0]}" for key, aps in limits.items() if aps == rates(is_full)[key][-1]]
    if open_ended:
        where += f"; the highest rate tried still held: {', '.join(open_ended)}"
    gains = {model: limits[model, "shorter"] / max(limits[model, "basic"], 1e-9) for model in ("660B", "27B")}
    why = f"{where}; {BASIC_WHY}"
    rows = [
        Row("online.660B.shorter", "660B, DualPath, capacity", "APS", 0.45, limits["660B", "shorter"], False,
            f"{where}; TPOT is the limit"),
        Row("online.660B.basic", "660B, Basic, capacity", "APS", 0.20, limits["660B", "basic"], False, why),
        Row("online.660B.gain", "660B, capacity, DualPath/Basic", "", 2.25, gains["660B"], False, why),
        Row("online.27B.gain", "27B, capacity, DualPath/Basic", "", 1.67, gains["27B"], False,
            f"{where}; two nodes' storage against one's bounds it by 2"),
        Row("online.mean", "capacity, DualPath/Basic, mean", "", 1.96, sum(gains.values()) / 2, False, why),
        *_shape_rows(points, where),
    ]  # fmt: skip
    return Report(rows, _figures(points, gains), "TTFT at most 4 s, TPOT at most 50 ms, in the mean over the window.")


def _shape_rows(points: dict[tuple[str, str], list[tuple[float, Outcome]]], where: str) -> list[Row]:
    ours, basic = dict(points["660B", "shorter"]), dict(points["660B", "basic"])
    low, high = ours[0.1], ours[0.45]
    ttst = (low.ttst_s or 0) / (basic[0.1].ttst_s or 1)
    tpot = (low.tpot_s or 0) / (basic[0.1].tpot_s or 1)
    return [
        Row("online.660B.flat", "660B, DualPath, TTFT at 0.45 APS", "s", None, high.ttft_s, False,
            f"{where}; {low.ttft_s:.2f} s at 0.1 APS: flat, where the paper's figure is flat, too"),
        Row("online.660B.basic.ttft", "660B, Basic, TTFT at 0.45 APS", "s", None, basic[0.45].ttft_s, False,
            f"{where}; the paper's explodes after 0.20 APS; here it does later"),
        Row("online.660B.ttst", "660B, TTST, DualPath/Basic at 0.1 APS", "", 1.0, ttst, False, "paper: 'as Basic'"),
        Row("online.660B.tpot", "660B, TPOT, DualPath/Basic at 0.1 APS", "", 1.0, tpot, False, "paper: 'as Basic'"),
    ]  # fmt: skip


def _capacity(points: list[tuple[float, Outcome]]) -> float:
    """The highest rate below which all that were tried held; 0: none did."""
    best = 0.0
    for aps, outcome in points:
        if not outcome.meets_slo:
            break
        best = aps
    return best


def _figures(points: dict[tuple[str, str], list[tuple[float, Outcome]]], gains: dict[str, float]) -> list[Bars | Lines]:
    figures: list[Bars | Lines] = [
        Bars("Capacity, DualPath/Basic", "", {"660B": 2.25, "27B": 1.67}, dict(gains)),
    ]
    limits = {
        "660B": {
            "Basic, limit": [(0.20, 0.0), (0.20, TTFT_SLO_S)],
            "DualPath, limit": [(0.45, 0.0), (0.45, TTFT_SLO_S)],
        },
        "27B": {},
    }
    for model in ("660B", "27B"):
        ours = {NAMES[s]: [(aps, one.ttft_s or 0.0) for aps, one in points[model, s]] for s in NAMES}
        top = 2 * TTFT_SLO_S
        shown = {name: [(x, min(y, top)) for x, y in line] for name, line in ours.items()}
        title = f"Time to first token, {model} (cut at {top:g} s)"
        figures.append(Lines(title, "APS", "s", limits[model], shown, TTFT_SLO_S, top))
    for system, name in NAMES.items():
        aps, one = points["660B", system][-1]
        parts = {phase: s for phase, s in (one.phases_s or {}).items() if phase != "decoding"}
        figures.append(Bars(f"TTFT breakdown, 660B, {name} at {aps:g} APS", "s", {}, parts))
    return figures


EXPERIMENT = Experiment("fig10_12", "Figures 10 to 12: online", _runs, _report)
