"""A trajectory stays where it was; new ones go where the least is to do."""

from __future__ import annotations

import pytest

from dualpath.core.errors import DualPathError
from dualpath.ray.sticky import StickyPlacement


def test_a_trajectory_stays_and_new_ones_spread() -> None:
    placement = StickyPlacement(3)
    first = [placement.begin(name) for name in "abc"]
    assert sorted(first) == [0, 1, 2]
    for replica in first:
        placement.end(replica)
    for _ in range(5):
        assert [placement.begin(name) for name in "abc"] == first
    for _ in range(5):
        placement.end(first[1])
    assert placement.begin("d") == first[1], "the others are busy"


def test_idle_replicas_share_trajectories_that_come_one_by_one() -> None:
    placement = StickyPlacement(2)
    found = []
    for number in range(6):
        found.append(placement.begin(str(number)))
        placement.end(found[-1])
    assert sorted(found) == [0, 0, 0, 1, 1, 1]


def test_what_a_lost_replica_had_goes_on_elsewhere_and_stays_there() -> None:
    placement = StickyPlacement(2)
    lost = placement.begin("a")
    placement.lose(lost)
    assert placement.alive == [1 - lost]
    assert placement.begin("a") == placement.begin("a") == 1 - lost
    placement.lose(1 - lost)
    with pytest.raises(DualPathError, match="no replica is left"):
        placement.begin("a")


def test_silent_trajectories_are_forgotten() -> None:
    placement = StickyPlacement(2, max_known=2)
    home = placement.begin("a")
    for name in "bc":
        placement.end(placement.begin(name))
    assert placement.begin("a") == 1 - home, "forgotten, it went where nothing runs"
