"""The arithmetic of reports: percentiles, balance, windows, steadiness, the search for a capacity."""

from __future__ import annotations

import statistics

import pytest

from dualpath.bench.nic_watch import NicLog
from dualpath.bench.serving import Limits, Seen, is_hopeless, is_steady, point, seen_requests, ttft_over_time
from dualpath.bench.workload import vocabulary
from dualpath.core.errors import ConfigError
from dualpath.report.capacity import capacity_aps, find_capacity
from dualpath.report.summary import percentile, phase_summary, snic_max_avg, summarize
from dualpath.report.svg import number, ticks
from dualpath.trace.arrivals import arrival_times_s

LIMITS = Limits(ttft_s=4.0, tpot_s=0.05)


def test_percentiles_interpolate_between_neighbours():
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0) == 1.0
    assert percentile(values, 50) == statistics.median(values) == 2.5
    assert percentile(values, 100) == 4.0
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_summary_leaves_out_what_is_unknown():
    assert summarize([None, 2.0, 4.0]) == {"p50": 3.0, "p90": 3.8, "p99": pytest.approx(3.98), "mean": 3.0}
    assert summarize([None]) == {}


def test_a_phase_that_a_request_skipped_counts_as_zero():
    phases = phase_summary([{"queued": 1.0, "reading": 2.0}, {"queued": 3.0}])
    assert phases["queued"]["mean"] == 2.0
    assert phases["reading"]["mean"] == 1.0


def test_balance_is_one_at_best_and_the_number_of_nodes_at_worst():
    assert snic_max_avg({"a": [5, 5], "b": [5, 5]}) == 1.0
    assert snic_max_avg({"a": [9, 9], "b": [0, 0], "c": [0, 0]}) == 3.0
    assert snic_max_avg({"a": [3, 0], "b": [1, 0]}, fraction=1.0) == 1.5, "idle windows have no busiest node"
    assert snic_max_avg({"a": [0], "b": [0]}) is None
    assert snic_max_avg({}) is None


def test_balance_looks_at_the_first_80_percent():
    even_then_not = {"a": [1] * 8 + [2, 2], "b": [1] * 8 + [0, 0]}
    assert snic_max_avg(even_then_not) == 1.0
    assert snic_max_avg(even_then_not, fraction=1.0) == pytest.approx(1.2)


def test_ttft_over_time_is_the_mean_of_each_part_of_the_window():
    seen = [Seen(at_s, ttft_s, True, {}) for at_s, ttft_s in ((0.0, 1.0), (0.9, 3.0), (6.5, 5.0), (12.4, 7.0))]
    assert ttft_over_time(seen, 12.0) == [(0.5, 2.0), (6.5, 5.0), (11.5, 7.0)]
    assert ttft_over_time([], 12.0) == []
    assert ttft_over_time([*seen, Seen(6.6, 0.1, False, {})], 12.0) == [(0.5, 2.0), (11.5, 7.0)], "one still waits"


def test_windows_add_up_to_what_was_read():
    log = NicLog([(0.0, {"n": 0}), (0.5, {"n": 100}), (1.5, {"n": 300}), (2.25, {"n": 300}), (2.6, {"n": 370})])
    series = log.series(2.5)["n"]
    assert series == pytest.approx([200.0, 100.0, 70.0])
    assert log.series(2.0)["n"] == pytest.approx([200.0, 170.0]), "what came in just after the end is not lost"
    assert NicLog().series(1.0) == {}


def test_arrivals_are_poisson_and_repeatable():
    moments = list(arrival_times_s(5.0, 400.0, seed=1))
    assert moments == list(arrival_times_s(5.0, 400.0, seed=1))
    assert moments != list(arrival_times_s(5.0, 400.0, seed=2))
    assert len(moments) / 400.0 == pytest.approx(5.0, rel=0.1)
    assert moments == sorted(moments)
    assert moments[-1] < 400.0


def _seen(ttfts_s: list[float]) -> list[Seen]:
    record = {
        "tpot_s": 0.02,
        "ttst_s": 0.02,
        "phases_s": {"queued": 0.1},
        "num_prompt_tokens": 100,
        "num_hit_tokens": 50,
    }
    return [Seen(float(i), ttft_s, True, record) for i, ttft_s in enumerate(ttfts_s)]


def test_a_growing_queue_is_unsteady_and_noise_is_not():
    assert is_steady(_seen([1.0, 1.2, 0.9, 1.1] * 10), LIMITS)
    assert not is_steady(_seen([0.1 * i for i in range(40)]), LIMITS)
    assert is_steady(_seen([0.01 * i for i in range(40)]), LIMITS), "growth far below the limit is no overload"


def test_a_point_meets_the_limits_by_its_means():
    assert point(0.5, _seen([1.0] * 9 + [20.0]), LIMITS)["meets_slo"]
    assert not point(0.5, _seen([5.0] * 10), LIMITS)["meets_slo"]
    assert not point(0.5, [], LIMITS)["meets_slo"]
    assert is_hopeless(_seen([9.0] * 20), LIMITS)
    assert not is_hopeless(_seen([9.0] * 19), LIMITS)


def test_requests_still_waiting_count_with_their_wait_so_far():
    common = {"tpot_s": None, "ttst_s": None, "phases_s": {}, "num_prompt_tokens": 1, "num_hit_tokens": 0}
    records = [
        {"arrived_unix_s": 90.0, "ttft_s": 1.0, "outcome": "finished", **common},  # in the warm-up
        {"arrived_unix_s": 104.0, "ttft_s": None, "outcome": "running", **common},
        {"arrived_unix_s": 101.0, "ttft_s": 2.0, "outcome": "finished", **common},
        {"arrived_unix_s": 102.0, "ttft_s": None, "outcome": "cancelled", **common},
    ]
    seen = seen_requests(records, 100.0, 110.0)
    assert [(one.arrived_s, one.ttft_s, one.has_token) for one in seen] == [(1.0, 2.0, True), (4.0, 6.0, False)]


@pytest.mark.parametrize(("true_aps", "low", "high"), [(3.3, 0.1, 64.0), (100.0, 0.1, 64.0), (0.05, 0.1, 64.0)])
async def test_the_search_brackets_the_capacity(true_aps, low, high):
    async def measure(rate: float) -> dict[str, object]:
        return {"aps": rate, "meets_slo": rate <= true_aps}

    points = await find_capacity(measure, low, high, 0.1)
    found = capacity_aps(points)
    if true_aps < low:
        assert found is None
        assert len(points) == 1
    elif true_aps > high:
        assert found == high
    else:
        assert true_aps / 1.1 <= found <= true_aps


def test_axes_have_round_numbers():
    assert ticks(14.2) == [0, 5, 10, 15]
    assert ticks(0.0) == [0.0, 1.0]
    assert [number(value) for value in (0, 0.0123, 1.234, 98.7, 12345)] == ["0", "0.0123", "1.23", "98.7", "12345"]


def test_made_up_prompts_keep_clear_of_special_tokens():
    assert vocabulary(264) == range(32, 127)
    assert vocabulary(151_936) == range(1000, 30_000)
    with pytest.raises(ConfigError, match="too small"):
        vocabulary(64)
