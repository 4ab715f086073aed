"""Where the bytes go: each path's counters, split, two layers of device memory at any depth, the trace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.config import MemoryConfig, ObserveConfig
from dualpath.core.plan import Role
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import BLOCK_TOKENS, MIB, all_zero, ask, cluster, settings

HISTORY = [32 + (i * 7 + i * i // 5) % 90 for i in range(20 * BLOCK_TOKENS)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("qwen3", tmp_path_factory.mktemp("paths") / "model", layers=4)


async def two_turns(embedded: EmbeddedCluster) -> tuple[dict[str, int], dict[str, int], int]:
    """Store a history, then read it back: (storage bytes, transfer bytes) of the second turn, and its hit length."""
    await ask(embedded, HISTORY, 1)
    before = await counters(embedded)
    reply = await ask(embedded, [*HISTORY, 40, 41, 42], 4)
    await all_zero(embedded)
    after = await counters(embedded)
    storage, transfers = ({k: a[k] - b.get(k, 0) for k in a} for a, b in zip(after, before, strict=True))
    assert reply.record.storage_read_bytes == storage
    return storage, transfers, reply.record.num_hit_tokens


async def counters(embedded: EmbeddedCluster) -> tuple[dict[str, int], dict[str, int]]:
    stats = await embedded.service.stats()
    storage = {role.value: sum(e.storage_read_bytes for e in stats.engines if e.role is role) for role in Role}
    transfers = {
        direction: sum(e.kv_transfer_bytes.get(direction, 0) for e in stats.engines)
        for direction in ("decode_to_prefill", "prefill_to_decode")
    }
    return storage, transfers


@pytest.mark.parametrize("path", ["prefill", "decode", "split"])
async def test_bytes_take_the_path_they_are_told_to(path, model_dir, tmp_path):
    async with cluster(settings(model_dir, f"file://{tmp_path}", path=path, decode=1)) as embedded:
        storage, transfers, hit_tokens = await two_turns(embedded)
        geometry = embedded.geometry
    num_blocks = hit_tokens // BLOCK_TOKENS
    assert num_blocks == len(HISTORY) // BLOCK_TOKENS
    object_bytes = 4096 + geometry.full_block_bytes  # between engines, too, a block's header goes with it
    prefill_blocks = {"prefill": num_blocks, "decode": 0, "split": num_blocks // 2}[path]
    assert storage == {"prefill": prefill_blocks * object_bytes, "decode": (num_blocks - prefill_blocks) * object_bytes}
    # The decode buffer lacks the hits read on the prefill side and the block with the new tokens, no more.
    assert transfers == {
        "decode_to_prefill": (num_blocks - prefill_blocks) * object_bytes,
        "prefill_to_decode": (prefill_blocks + 1) * object_bytes,
    }


async def test_shorter_uses_both_sides_over_time(model_dir, tmp_path):
    async with cluster(settings(model_dir, f"file://{tmp_path}", path="shorter", storage_nic_mbps=20)) as embedded:
        import asyncio

        await ask(embedded, HISTORY, 1)
        await asyncio.gather(*(ask(embedded, [*HISTORY, i], 1) for i in range(40, 48)))
        storage, _ = await counters(embedded)
    assert storage["prefill"] > 0
    assert storage["decode"] > 0


@pytest.mark.parametrize("layers", [2, 6])
async def test_prefill_device_memory_is_two_layers_whatever_the_depth(layers, tmp_path):
    deep = init_model("llama", tmp_path / "model", layers=layers)
    async with cluster(settings(deep, "memory://depth", decode=1)) as embedded:
        await two_turns(embedded)
        stats = await embedded.service.stats()
        (prefill,) = [e for e in stats.engines if e.role is Role.PREFILL]
        blocks = embedded.geometry.blocks_for(len(HISTORY) + 3)
        assert prefill.device_kv_peak_bytes == 2 * blocks * embedded.geometry.layer_block_bytes
        assert prefill.device_kv_used_bytes == 0


async def test_a_prompt_longer_than_a_batch_is_prefilled_in_pieces_and_gives_the_same_tokens(model_dir):
    whole, pieces = settings(model_dir, "memory://whole"), settings(model_dir, "memory://pieces")
    small = replace(pieces.memory, prefill_batch_tokens=37)
    answers = []
    for config in (whole, replace(pieces, memory=small)):
        async with cluster(config) as embedded:
            first = await ask(embedded, HISTORY, 12)
            second = await ask(embedded, [*HISTORY, *first.token_ids, *range(40, 120)], 12)
            assert second.record.num_hit_tokens > 0
            answers.append((first.token_ids, second.token_ids))
            await all_zero(embedded)
    assert answers[0] == answers[1]


async def test_requests_preempted_for_device_memory_come_back_with_the_same_tokens(model_dir):
    import asyncio

    config = settings(model_dir, "memory://preempt", decode=1)
    tight = MemoryConfig(
        max_context_tokens=256, prefill_staging_bytes=32 * MIB, decode_staging_bytes=32 * MIB, decode_kv_tokens=320
    )
    prompts = [HISTORY[i * 20 : i * 20 + 70] for i in range(6)]
    async with cluster(config) as roomy:
        truth = [(await ask(roomy, prompt, 90)).token_ids for prompt in prompts]
    async with cluster(replace(config, memory=tight, store=replace(config.store, url="memory://tight"))) as embedded:
        replies = await asyncio.gather(*(ask(embedded, prompt, 90) for prompt in prompts))
        await all_zero(embedded)
    assert [reply.token_ids for reply in replies] == truth


async def test_the_trace_shows_every_layer_and_transfer(model_dir, tmp_path):
    config = replace(
        settings(model_dir, f"file://{tmp_path}/kv", path="decode", decode=1),
        observe=ObserveConfig(trace_out=tmp_path / "trace.json"),
    )
    async with cluster(config) as embedded:
        await two_turns(embedded)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {"forward", "compute layer 0", "compute layer 3", "step"} <= names
    assert {"pull", "push", "storage read", "storage write", "copy"} <= names
    loads = [e for e in events if e["name"] == "pull"]
    assert len(loads) == 5, "one pull of headers and one per layer, of the one forward that had a history"
