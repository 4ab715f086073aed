"""Table 3: the same load per node on few and on many nodes, 660B."""

from __future__ import annotations

from dualpath.sim.paper.experiment import (
    REDUCED_660B,
    REDUCED_WINDOW,
    Experiment,
    Outcomes,
    note,
    online_660b,
    run_660b,
)
from dualpath.sim.paper.rows import Report, Row, bars_of
from dualpath.sim.paper.run import Run

SMALL_APS, LARGE_APS, TIMES = 0.4, 8.8, 22
REDUCED_TIMES = 3  # of the reduced small cluster: 3P6D


def _small(is_full: bool) -> Run:
    return run_660b(is_full, "shorter", 2048)


def _large(is_full: bool) -> Run:
    if is_full:
        return Run("660B", "shorter", 48, 96, 48 * 1024)
    return Run("660B", "shorter", 2, 4, 2048)


def _large_online(is_full: bool) -> Run:
    if is_full:
        return Run("660B", "shorter", 44, 88, aps=LARGE_APS, settings=REDUCED_WINDOW)
    return Run(
        "660B", "shorter", REDUCED_TIMES, 2 * REDUCED_TIMES, aps=SMALL_APS / 2 * REDUCED_TIMES, settings=REDUCED_WINDOW
    )


def _runs(is_full: bool) -> list[Run]:
    return [_small(is_full), _large(is_full), online_660b(is_full, "shorter", SMALL_APS), _large_online(is_full)]


def _report(outcomes: Outcomes, is_full: bool) -> Report:
    small, large = outcomes[_small(is_full)], outcomes[_large(is_full)]
    few, many = outcomes[online_660b(is_full, "shorter", SMALL_APS)], outcomes[_large_online(is_full)]
    half = note(is_full, REDUCED_660B)
    offline, online = note(is_full, "2P4D, 2K agents"), note(is_full, "3P6D at the same load per node")
    drop = "; ".join(part for part in (online, "the paper's drop of TTST and TPOT with size is not explained") if part)
    rows = [
        Row("table3.offline.small", "2P4D, 2K agents, JCT", "s", 3167, small.jct_s, True, half),
        Row("table3.offline.large", "48P96D, 48K agents, JCT", "s", 3201, large.jct_s, False, offline),
        Row("table3.offline.equal", "JCT, large/small", "", 3201 / 3167, large.jct_s / small.jct_s, False, offline),
        Row("table3.small.ttft", "2P4D, 0.4 APS, TTFT", "s", 1.739, few.ttft_s, True, half),
        Row("table3.small.ttst", "2P4D, 0.4 APS, TTST", "s", 0.228, few.ttst_s, True, half),
        Row("table3.small.tpot", "2P4D, 0.4 APS, TPOT", "s", 0.039, few.tpot_s, True, half),
        Row("table3.large.ttft", "44P88D, 8.8 APS, TTFT", "s", 1.847, many.ttft_s, False, online),
        Row("table3.large.ttst", "44P88D, 8.8 APS, TTST", "s", 0.194, many.ttst_s, False, drop),
        Row("table3.large.tpot", "44P88D, 8.8 APS, TPOT", "s", 0.036, many.tpot_s, False, drop),
        Row("table3.scheduler", "scheduler at 1,152 GPUs", "CPU cores", 10, None, False,
            "a bound on the live scheduler's CPU time, which simulated time says nothing about"),
    ]  # fmt: skip
    return Report(rows, [bars_of("JCT", "s", rows[:2]), bars_of("Latencies", "s", rows[3:9])])


EXPERIMENT = Experiment("table3", "Table 3: scale (660B)", _runs, _report)
