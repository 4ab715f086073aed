"""The systems of the comparisons: the same tokens from all but the oracle, each with its own memory and bytes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.core.errors import ConfigError
from dualpath.core.plan import Role
from dualpath.models.init import init_model
from dualpath.scheduler.policy.systems import SYSTEMS
from dualpath.serving.serve import run
from tests.e2e.cluster_kit import (
    BLOCK_TOKENS,
    Conversation,
    Reply,
    all_zero,
    ask,
    cluster,
    conversations,
    hold,
    settings,
)

LAYERS = 4
HISTORY = [32 + (i * 7 + i * i // 5) % 90 for i in range(12 * BLOCK_TOKENS)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("qwen3", tmp_path_factory.mktemp("systems") / "model", layers=LAYERS)


@pytest.fixture(scope="module")
def truth(model_dir: Path) -> list[Conversation]:
    return conversations(model_dir, 4, 3)


async def prefill_peak_blocks(embedded: EmbeddedCluster) -> int:
    """Layer Blocks of device memory that the prefill engines ever had in use."""
    stats = await embedded.service.stats()
    peak_bytes = sum(e.device_kv_peak_bytes for e in stats.engines if e.role is Role.PREFILL)
    return peak_bytes // embedded.geometry.layer_block_bytes


@pytest.mark.parametrize("system", [name for name, policy in SYSTEMS.items() if not policy.skips_io])
async def test_every_system_gives_transformers_tokens(system, model_dir, truth, tmp_path):
    config = settings(model_dir, f"file://{tmp_path}", system=system, prefill=2)
    async with cluster(config) as embedded:
        await asyncio.gather(*(hold(embedded, c, "") for c in truth))
        await all_zero(embedded)
        stats = await embedded.service.stats()
        assert all(e.num_forwards for e in stats.engines), "an engine had nothing to do"


async def test_basic_holds_all_layers_of_whole_requests_while_they_are_read(model_dir, tmp_path):
    """Two requests that fit together when layers are streamed have to take turns when they are not."""
    num_blocks = len(HISTORY) // BLOCK_TOKENS + 1
    peaks = {}
    for system in ("basic", "layerwise"):
        config = settings(model_dir, f"file://{tmp_path}/{system}", system=system, decode=1, storage_nic_mbps=20)
        async with cluster(config) as embedded:
            await ask(embedded, HISTORY, 1)
            reading = asyncio.create_task(ask(embedded, [*HISTORY, 40, 41], 2))
            used = 0
            while not reading.done():
                await asyncio.sleep(0.01)
                stats = await embedded.service.stats()
                used = max(used, *(e.device_kv_used_bytes for e in stats.engines if e.storage_read_bytes == 0))
            assert (await reading).record.storage_read_bytes["decode"] == 0
            await all_zero(embedded)
            peaks[system] = await prefill_peak_blocks(embedded)
            if system == "basic":
                assert used >= num_blocks * embedded.geometry.full_block_bytes, "nothing reserved during the read"
    assert peaks == {"basic": LAYERS * num_blocks, "layerwise": 2 * num_blocks}


async def test_basic_batches_what_its_memory_holds(model_dir, truth):
    """With room for one longest context all requests still get through, and memory never overflows."""
    config = settings(model_dir, "memory://tight", system="basic", decode=1)
    config = replace(config, memory=replace(config.memory, max_context_tokens=256))
    async with cluster(config) as embedded:
        await asyncio.gather(*(hold(embedded, c, salt, num_turns=2) for c in truth for salt in ("a", "b")))
        await all_zero(embedded)
        assert await prefill_peak_blocks(embedded) <= LAYERS * embedded.geometry.blocks_for(256)


async def test_no_transfer_of_basic_runs_beside_its_compute(model_dir, tmp_path):
    import json

    from dualpath.config import ObserveConfig

    config = settings(model_dir, "memory://overlap", system="basic", decode=1)
    config = replace(config, observe=ObserveConfig(trace_out=tmp_path / "trace.json"))
    async with cluster(config) as embedded:
        await ask(embedded, HISTORY, 1)
        await ask(embedded, [*HISTORY, 40], 1)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    process = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    mine = [e for e in events if e["ph"] == "X" and process[e["pid"]] == "prefill0"]
    compute = [e for e in mine if e["name"].startswith("compute layer")]
    moves = [e for e in mine if e["name"] in ("push", "copy")]
    assert {e["name"] for e in moves} == {"push", "copy"}
    assert len(compute) == 2 * LAYERS
    for move in moves:
        overlaps = [c for c in compute if move["ts"] < c["ts"] + c["dur"] and c["ts"] < move["ts"] + move["dur"]]
        assert not overlaps, f"{move} beside {overlaps}"


async def oracle_turns(embedded: EmbeddedCluster) -> tuple[Reply, Reply]:
    first = await ask(embedded, HISTORY, 8)
    return first, await ask(embedded, [*HISTORY, *first.token_ids, 40, 41], 8)


async def test_the_oracle_moves_nothing_but_later_turns_hit(model_dir, tmp_path, caplog):
    async with cluster(settings(model_dir, f"file://{tmp_path}", system="oracle")) as embedded:
        _, second = await oracle_turns(embedded)
        assert second.record.num_hit_tokens == (len(HISTORY) + 8) // BLOCK_TOKENS * BLOCK_TOKENS
        assert len(second.token_ids) == 8
        await all_zero(embedded)
        stats = await embedded.service.stats()
        for e in stats.engines:
            moved = (e.storage_read_bytes, e.storage_write_bytes, e.local_copy_bytes, *e.kv_transfer_bytes.values())
            assert not any(moved), e
        assert stats.index_blocks > 0
    assert not list(tmp_path.rglob("*.kv")), "an invalid block was stored"
    assert any("every answer is invalid" in record.message for record in caplog.records)


async def test_the_oracle_neither_stores_over_nor_evicts_what_others_stored(model_dir, tmp_path):
    config = settings(model_dir, f"file://{tmp_path}", system="split")
    async with cluster(config) as embedded:
        await ask(embedded, HISTORY, 8)
    stored = {path: path.read_bytes() for path in tmp_path.rglob("*.kv")}
    assert stored
    small = replace(config.store, capacity_bytes=1)
    async with cluster(replace(config, store=small, cluster=replace(config.cluster, system="oracle"))) as embedded:
        first, _ = await oracle_turns(embedded)
        assert first.record.num_hit_tokens > 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.kv")} == stored


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v32"])
async def test_the_oracle_s_nonsense_is_finite_in_every_kind_of_attention(family, tmp_path):
    directory = init_model(family, tmp_path / "model", layers=2)
    async with cluster(settings(directory, f"memory://{family}", system="oracle")) as embedded:
        first = await ask(embedded, HISTORY, 4, temperature=1.0, seed=1)
        second = await ask(embedded, [*HISTORY, *first.token_ids, 40], 8, temperature=1.0, seed=1)
        assert second.record.num_hit_tokens > 0
        assert len(second.token_ids) == 8
        await all_zero(embedded)


def test_the_server_refuses_the_oracle_unless_told_otherwise(model_dir):
    with pytest.raises(ConfigError, match="invalid answers"):
        run(settings(model_dir, "memory://refused", system="oracle"))
