"""A failing store is said at once and then once an interval, with the number of failures between."""

import logging

import pytest
from tests.traffic.rig import ManualClock

from dualpath.core.repeated_warning import RepeatedWarning


def test_the_first_is_said_at_once_and_the_rest_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    start_s = clock.time_s
    warning = RepeatedWarning(logging.getLogger("dualpath.test"), clock, interval_s=10.0)
    for _ in range(500):
        warning.log("block lost")
    assert caplog.messages == ["block lost"]
    clock.time_s = start_s + 9.9
    warning.log("block lost")
    assert len(caplog.messages) == 1
    clock.time_s = start_s + 10.0
    warning.log("server gone")
    assert caplog.messages[1:] == ["server gone (500 more like it before)"]
    clock.time_s = start_s + 20.0
    warning.log("server gone")
    assert caplog.messages[2:] == ["server gone"]
