"""Phases: the legal ways, and where the time goes."""

from __future__ import annotations

import pytest

from dualpath.core.phase import LEGAL, TERMINAL, Phase, Timeline


def test_a_request_walks_forward_and_its_time_is_accounted_for():
    timeline = Timeline()
    order = [p for p in Phase if p not in TERMINAL] + [Phase.FINISHED]
    for i, phase in enumerate(order):
        timeline.enter(phase, float(i * i))
    durations = timeline.durations_s(1000.0)
    assert durations == {p.value: 2.0 * i + 1 for i, p in enumerate(order[:-1])}


def test_a_lost_engine_sends_it_back_to_the_queue_and_times_add_up():
    timeline = Timeline()
    for phase, t in [(Phase.QUEUED, 0), (Phase.PLACED, 1), (Phase.QUEUED, 3), (Phase.FAILED, 10)]:
        timeline.enter(phase, t)
    assert timeline.durations_s(99) == {"queued": 8.0, "placed": 2.0}


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_nothing_follows_an_end(phase):
    assert LEGAL[phase] == frozenset()
    timeline = Timeline([(Phase.QUEUED, 0.0), (phase, 1.0)])
    with pytest.raises(ValueError, match="illegal"):
        timeline.enter(Phase.QUEUED, 2.0)


def test_no_step_is_skipped():
    timeline = Timeline([(Phase.QUEUED, 0.0)])
    with pytest.raises(ValueError, match="illegal"):
        timeline.enter(Phase.READING, 1.0)
    with pytest.raises(ValueError, match="starts queued"):
        Timeline().enter(Phase.READING, 1.0)
