"""Seeded worlds: none goes wrong, each is the same again, and what goes wrong is made small and can be shown again."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dualpath.core.errors import StoreError, StoreFullError
from dualpath.core.ids import BlockKey, EngineId
from dualpath.engine.prefill import PrefillEngine
from dualpath.models.seam import LayerStream, PrefillItem
from dualpath.testing import explore, scenario
from dualpath.testing.ablations import ABLATIONS
from dualpath.testing.hash_model import VOCAB
from dualpath.testing.nodes import SimNode
from dualpath.testing.parts import FaultyStore, NodeWorks
from dualpath.testing.scenario import Agent, Turn
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
        outcome = run(replace(scenario.draw(seed), faults=(), updates=(), num_decode_slots=60, device_kv_tokens=400))
        assert outcome.violation is None
        assert outcome.num_failures == 0
        assert outcome.num_retries == 0


@pytest.mark.parametrize("text", ["9-3", "x", "1-", "-5"])
def test_bad_seeds_are_one_line_and_exit_code_2(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        explore.main([f"--seeds={text}"])
    assert stop.value.code == 2
    assert "seeds are a number or two" in capsys.readouterr().err


def test_a_request_that_ends_each_engine_it_is_given_to_ends_with_the_eighth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real links, leases and restarts between it and the others, who get all their tokens."""
    calm = replace(scenario.draw(0), is_remote=True, num_prefill=2, num_decode=1, restarts_after_s=3.0, faults=())
    poison = Agent(0, "", 0.1, 99, (Turn(12, 3),))
    others = tuple(Agent(number, "", 0.5 * number, number, (Turn(12, 4, 1.0),) * 3) for number in range(1, 5))
    dice = random.Random(f"prefix {calm.seed} 99")
    opening = [dice.randrange(VOCAB) for _ in range(12)]
    nodes: dict[str, SimNode] = {}
    start, build = SimNode._start, NodeWorks._prefill

    def registered(node: SimNode) -> None:
        nodes[node.name] = node
        start(node)

    def poisoned(works: NodeWorks, engine_id: EngineId) -> PrefillEngine:
        engine = build(works, engine_id)
        model = engine._model
        prefill = model.prefill

        def forward(items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
            if any(list(item.token_ids[:12]) == opening for item in items):
                nodes[works._name].kill()
            return prefill(items, stream)

        model.prefill = forward  # type: ignore[method-assign]
        return engine

    monkeypatch.setattr(SimNode, "_start", registered)
    monkeypatch.setattr(NodeWorks, "_prefill", poisoned)
    outcome = run(replace(calm, agents=(poison, *others), num_prefill_slots=60, num_decode_slots=60))
    failed = [line for line in outcome.trace if " failed: " in line]
    assert len(failed) == 1
    assert "a0.1 failed: given up after 8 engines were lost in a row" in failed[0]
    assert sum(" right: " in line for line in outcome.trace) == 4 * 3 + 2
    assert sum(" killed" in line for line in outcome.trace) == 8


def test_the_directory_is_full_and_silent_for_the_evictor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some world each of its calls fails, and goes well."""
    seen: set[tuple[str, object]] = set()

    def watch(name: str) -> None:
        real = getattr(FaultyStore, name)

        def call(self: FaultyStore, *keys: BlockKey) -> Any:
            try:
                answer = real(self, *keys)
            except StoreError as error:
                seen.add((name, type(error)))
                raise
            seen.add((name, answer))
            return answer

        monkeypatch.setattr(FaultyStore, name, call)

    watch("exists")
    watch("try_write")
    kinds = ("fail writes", "full", "fail directory") * 5
    faults = tuple(scenario.Fault(n, 0.1 + n / 2, kind, -1, 1.0, 0.5) for n, kind in enumerate(kinds))
    of_exists = {("exists", outcome) for outcome in (True, False, StoreError)}
    expected = of_exists | {("try_write", outcome) for outcome in (None, StoreError, StoreFullError)}
    for seed in range(30):
        world = replace(scenario.draw(seed), num_prefill=1, num_decode=1, engines_per_node=1, compute_scale=1.0)
        assert not run(replace(world, capacity_blocks=5, faults=faults)).violation
        if seen == expected:
            return
    assert seen == expected
