"""Trajectories from means meet these means."""

from __future__ import annotations

import pytest

from dualpath.core.errors import ConfigError
from dualpath.sim.plan.statistics import TurnStatistics, make_trajectories
from dualpath.trace.stats import describe


def test_means_are_met() -> None:
    found = describe(make_trajectories(TurnStatistics(40, 300, 120, 20_000), 60, seed=1))
    assert found.paper.turns == 40
    assert found.request_generate_tokens == pytest.approx(120, rel=0.02)
    assert found.paper.context_tokens == pytest.approx(20_000, rel=0.03)


def test_a_context_too_small_for_its_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="context_tokens"):
        TurnStatistics(40, 300, 120, 1000)
    with pytest.raises(ConfigError, match="append_tokens"):
        TurnStatistics(40, 0, 120)
