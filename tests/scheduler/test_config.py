"""Numbers that make no sense are refused by the name of their setting."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.scheduler.config import SchedulerConfig

NODE = NodeId("n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, -1) for name in ("alpha_tokens", "max_retries", "expected_output_tokens", "max_finished_records")),
        *(
            (name, value)
            for name in ("queue_timeout_s", "pause_s", "watch_interval_s")
            for value in (0.0, -1.0, math.nan)
        ),
        *((name, 0) for name in ("beta_tokens", "max_queued_requests")),
        *(("nic_bytes_per_s", {NODE: rate}) for rate in (0.0, -1.0, math.nan)),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        SchedulerConfig(**{name: value})


def test_the_least_that_makes_sense_is_taken() -> None:
    config = SchedulerConfig(
        alpha_tokens=0,
        max_retries=0,
        expected_output_tokens=0,
        max_finished_records=0,
        beta_tokens=1,
        max_queued_requests=1,
        pause_s=1e-9,
        nic_bytes_per_s={NODE: 1e-9},
    )
    assert config.nic_rate(NODE) == 1e-9
    assert config.nic_rate(NodeId("other")) == config.default_nic_bytes_per_s
