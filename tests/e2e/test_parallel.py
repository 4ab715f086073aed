"""A prefill engine whose model runs on two processes, inside a cluster: every path, hits and misses, tokens as ever."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import all_zero, cluster, conversations, hold, settings

pytestmark = pytest.mark.timeout(300)  # processes that import torch, on machines with other work

NUM_TURNS = 4


def followers() -> list[str]:
    """Command lines of the processes that we started to run models with."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue  # not a process, or one that has ended
        if parent == str(os.getpid()) and "dualpath.models.parallel.follower" in words:
            found.append(" ".join(words))
    return found


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
async def test_tokens_equal_transformers_generate(family: str, tmp_path: Path) -> None:
    model_dir = init_model(family, tmp_path / "model", layers=3)
    truth = conversations(model_dir, 3, NUM_TURNS)
    for path in ("prefill", "decode", "split"):
        config = settings(model_dir, f"file://{tmp_path}/{path}", path=path, decode=1, tensor_parallel=2)
        async with cluster(config) as embedded:
            assert len(followers()) == 1
            records = await asyncio.gather(*(hold(embedded, one, "together") for one in truth))
            assert all(record.num_hit_tokens for record in records[0][1:])
            await all_zero(embedded)
        assert followers() == []


async def test_blocks_are_the_same_for_one_process_and_two(tmp_path: Path) -> None:
    """What two processes stored is a hit for one, and the other way round: rows on storage have no ranks."""
    model_dir = init_model("llama", tmp_path / "model", layers=3)
    (talk,) = conversations(model_dir, 1, NUM_TURNS)
    for turn in range(NUM_TURNS):
        ranks = 1 + turn % 2
        config = settings(model_dir, f"file://{tmp_path}/kv", decode=1, tensor_parallel=ranks)
        async with cluster(config) as embedded:
            await hold(embedded, talk, "", first_turn=turn, num_turns=1)


async def test_two_prefill_engines_in_a_process_are_refused(tmp_path: Path) -> None:
    config = settings(init_model("llama", tmp_path / "model"), "memory://", prefill=2, tensor_parallel=2)
    with pytest.raises(ConfigError, match="a process can have one prefill engine of 2 ranks, not 2"):
        async with cluster(config):
            pass
    assert followers() == []
