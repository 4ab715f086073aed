"""Two engines on every node: one storage NIC and one reading queue for both, and still never a wrong token."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.core.plan import Role
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import BLOCK_TOKENS, all_zero, ask, cluster, conversations, hold, settings

HISTORY = [32 + (i * 7 + i * i // 5) % 90 for i in range(20 * BLOCK_TOKENS)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("llama", tmp_path_factory.mktemp("nodes") / "model", layers=2)


async def engines_used(embedded: EmbeddedCluster) -> dict[str, int]:
    stats = await embedded.service.stats()
    return {e.engine_id: e.num_forwards for e in stats.engines}


@pytest.mark.parametrize("system", ["basic", "split"])
async def test_all_engines_work_and_tokens_are_right(system, model_dir, tmp_path):
    config = settings(model_dir, f"file://{tmp_path}", system=system, prefill=1, decode=1, engines_per_node=2)
    truth = conversations(model_dir, 4, 3)
    async with cluster(config) as embedded:
        await asyncio.gather(*(hold(embedded, c, "") for c in truth))
        await all_zero(embedded)
        used = await engines_used(embedded)
        assert set(used) == {"prefill0-0", "prefill0-1", "decode0-0", "decode0-1"}
        assert all(used.values()), used


async def test_the_engines_of_a_node_share_its_nic(model_dir, tmp_path):
    """Reads on two engines of one node take as long as on one engine: what the NIC's rate says."""
    mbps = 40.0
    config = settings(
        model_dir, f"file://{tmp_path}", path="prefill", prefill=1, decode=1, engines_per_node=2, storage_nic_mbps=mbps
    )
    async with cluster(config) as embedded:
        await ask(embedded, HISTORY, 1)
        start_s = time.monotonic()
        asks = [asyncio.create_task(ask(embedded, [*HISTORY, i], 1)) for i in range(40, 46)]
        most = 0
        while not all(task.done() for task in asks):
            snapshots = [embedded.desk.engine_loads.of(e.info.engine_id) for e in embedded.prefill_engines]
            assert len({s.read_queue_tokens for s in snapshots}) == 1, "one queue a node"
            most = max(most, snapshots[0].read_queue_tokens)
            await asyncio.sleep(0.005)
        took_s = time.monotonic() - start_s
        stats = await embedded.service.stats()
        read = [e.storage_read_bytes for e in stats.engines if e.role is Role.PREFILL]
        assert all(read), "one of the two engines read nothing"
        assert most > len(HISTORY), "the queue never held what both engines read"
        assert took_s > 0.9 * sum(read) * 8 / (mbps * 1e6), f"{sum(read)} bytes in {took_s:.2f} s"
