"""Gateways and the scheduler as parts that die: whose streams break, whose go on, and what is given back."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.testing.test_ablations import SEEN_AT

from dualpath.testing import scenario
from dualpath.testing.ablations import ABLATIONS
from dualpath.testing.scenario import Agent, Fault, Scenario, Turn
from dualpath.testing.world import Outcome, run

LONG = Turn(num_appended=20, num_tokens=120)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def world(kind: str, *, num_gateways: int) -> Scenario:
    """A calm one: an agent for each gateway, with a long answer, and one fault in the middle of it."""
    drawn = next(s for s in map(scenario.draw, range(1000)) if s.num_gateways and s.streams_layers)
    agents = tuple(Agent(number, "", 0.5, number, (LONG,)) for number in range(num_gateways))
    return replace(
        drawn,
        num_gateways=num_gateways,
        num_prefill_slots=60,
        num_decode_slots=60,
        num_write_slots=2,
        workspace_tokens=160,
        device_kv_tokens=400,
        max_batch_tokens=8192,
        compute_scale=30.0,
        agents=agents,
        faults=(Fault(0, 1.0, kind, 0, 1.0, 1.0),),
    )


def moment(outcome: Outcome, words: str) -> float:
    return float(next(line for line in outcome.trace if words in line).split()[0])


@pytest.mark.parametrize("kind", ["restart scheduler", "stop scheduler", "cut desk"])
def test_running_requests_go_on_while_the_scheduler_is_away(kind: str) -> None:
    outcome = run(world(kind, num_gateways=2))
    assert outcome.violation is None
    assert (outcome.num_answers, outcome.num_retries, outcome.num_failures) == (4, 0, 0)
    assert not any("lost its connection" in line for line in outcome.trace)
    for agent in range(2):
        assert moment(outcome, f"a{agent}.1 right") > moment(outcome, "fault 0") + 0.5, "it was running meanwhile"


def test_a_gateway_that_dies_loses_its_own_streams_only() -> None:
    """The world's own checks say that what its requests held is given back."""
    outcome = run(world("kill gateway", num_gateways=2))
    assert outcome.violation is None
    assert [line.split()[1] for line in outcome.trace if "lost its connection" in line] == ["a0.1"]
    assert outcome.num_retries == 0
    assert moment(outcome, "a1.1 right") > moment(outcome, "gateway0#1 killed")
    assert any("a0.2 right" in line for line in outcome.trace), "another connection, the same answer"


def test_a_gateway_that_stands_still_for_too_long_is_given_up_and_begins_again() -> None:
    drawn = world("stop gateway", num_gateways=2)
    outcome = run(replace(drawn, faults=(replace(drawn.faults[0], for_s=8.0),)))
    assert outcome.violation is None
    assert outcome.num_failures == 0
    assert any("a0.1 right" in line and not line.endswith(" 0 retries") for line in outcome.trace)
    assert any("a1.1 right" in line and line.endswith(" 0 retries") for line in outcome.trace)


@pytest.mark.parametrize("seed", [200147, 200169])
def test_seeds_that_found_something(seed: int) -> None:
    """A gateway whose first scheduler ended too early to tell it anything; one that was given up and came back."""
    assert run(scenario.draw(seed)).violation is None


def test_a_world_that_ends_badly_leaves_nothing_that_speaks_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still running in it is collected before its end is told, with all that it begins in its turn."""
    unraisable: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    with ABLATIONS["gateways-never-hear-of-the-end-of-a-pause"](), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        outcome = run(scenario.draw(SEEN_AT["gateways-never-hear-of-the-end-of-a-pause"]))
        gc.collect()
    assert outcome.violation is not None
    assert [str(one.message) for one in warned] == []
    assert not unraisable
