"""Never a wrong token: every family and read path, alone and together, across a restart, against transformers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dualpath.models.init import FAMILIES, init_model
from tests.e2e.cluster_kit import Conversation, all_zero, cluster, conversations, hold, settings

PATHS = ("prefill", "decode", "shorter", "split")
NUM_TURNS = 6
KEPT_BACK = 1  # turns held only after the restart


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Conversation]]:
    directory = tmp_path_factory.mktemp(request.param) / "model"
    model_dir = init_model(request.param, directory, layers=3)
    truth = conversations(model_dir, 8, NUM_TURNS + KEPT_BACK)
    assert len({token for c in truth for answer in c.answers for token in answer}) > 10, "degenerate model"
    return model_dir, truth


@pytest.mark.parametrize("path", PATHS)
async def test_tokens_equal_transformers_generate(family, path, tmp_path):
    model_dir, truth = family
    config = settings(model_dir, f"file://{tmp_path}", path=path)
    async with cluster(config) as embedded:
        await hold(embedded, truth[0], "alone", num_turns=NUM_TURNS)
        await asyncio.gather(*(hold(embedded, c, "pair", num_turns=NUM_TURNS) for c in truth[1:3]))
        await asyncio.gather(*(hold(embedded, c, "eight", num_turns=NUM_TURNS) for c in truth))
        await all_zero(embedded)
    async with cluster(config) as embedded:
        after = [hold(embedded, c, "eight", NUM_TURNS, KEPT_BACK) for c in truth]
        after.append(hold(embedded, truth[0], "alone", NUM_TURNS, KEPT_BACK))
        for (record,) in await asyncio.gather(*after):
            assert record.num_hit_tokens > 0
        await all_zero(embedded)
