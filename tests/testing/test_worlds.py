"""Seeded worlds: none goes wrong, each is the same again, and what goes wrong is made small and can be shown again."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dualpath.testing import explore, scenario
from dualpath.testing.ablations import ABLATIONS
from dualpath.testing.world import run

NUM_SEEDS = 240


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("part", range(6))
def test_no_seed_goes_wrong(part: int) -> None:
    seeds = range(part * NUM_SEEDS // 6, (part + 1) * NUM_SEEDS // 6)
    summary = explore.explore(seeds)
    assert not summary.found, f"see it again: {explore.replay_command(scenario.draw(summary.found[0].seed))}"
    assert summary.num_seeds == len(seeds)
    assert summary.num_answers > 3 * len(seeds)


def test_a_seed_is_the_same_again_whatever_hashes_are() -> None:
    seeds = (3, 11, 25, 26)
    program = (
        "import logging; logging.disable(50)\n"
        "from dualpath.testing.explore import run_seed\n"
        f"print([run_seed(seed).digest for seed in {seeds}])\n"
    )
    here = f"{[explore.run_seed(seed).digest for seed in seeds]}\n"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        there = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert there.stdout == here


def test_what_is_found_is_made_smaller_and_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    with ABLATIONS["without-storage-checksums"]():
        seed = next(seed for seed in range(200) if run(scenario.draw(seed)).violation)
        whole = scenario.draw(seed)
        smallest = explore.shrink(whole)
        assert len(smallest.faults) < len(whole.faults) or len(smallest.agents) < len(whole.agents)
        command = explore.replay_command(smallest).split()
        assert explore.main(command[command.index("--seeds") :]) == 1
    shown = capsys.readouterr().out
    assert "violation: " in shown
    assert "fault" in shown
    assert explore.main(command[command.index("--seeds") :]) == 0, "with the safeguard nothing goes wrong"


def test_without_faults_nothing_is_tried_twice() -> None:
    for seed in range(6):
        outcome = run(replace(scenario.draw(seed), faults=(), num_decode_slots=60, device_kv_tokens=400))
        assert outcome.violation is None
        assert outcome.num_failures == 0
        assert outcome.num_retries == 0


@pytest.mark.parametrize("text", ["9-3", "x", "1-", "-5"])
def test_bad_seeds_are_one_line_and_exit_code_2(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        explore.main([f"--seeds={text}"])
    assert stop.value.code == 2
    assert "seeds are a number or two" in capsys.readouterr().err
