"""Serving with KV in S3: hits over turns and restarts, and right tokens while the server is away, silent or back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dualpath.config import DeadlineConfig
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import BLOCK_TOKENS, Conversation, all_zero, ask, cluster, conversations, settings
from tests.store.s3_server import S3Server, s3_server, set_credentials

NUM_TURNS = 6


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("qwen2", tmp_path_factory.mktemp("s3") / "model", layers=3)


@pytest.fixture(scope="module")
def conversation(model_dir: Path) -> Conversation:
    (found,) = conversations(model_dir, 1, num_turns=NUM_TURNS, seed=3)
    return found


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    set_credentials(monkeypatch, tmp_path)
    with s3_server(tmp_path / "s3") as server:
        yield server


def whole_blocks(conversation: Conversation, turn: int) -> int:
    """Tokens of the turn's prompt whose KV a healthy store has."""
    earlier = len(conversation.prompt(turn - 1)) + conversation.num_tokens if turn else 0
    return earlier // BLOCK_TOKENS * BLOCK_TOKENS


async def test_hits_over_turns_outages_and_restarts(model_dir, conversation, server):
    config = settings(model_dir, server.url("kv", timeout_s=2))
    config = replace(config, deadlines=DeadlineConfig(storage_read_s=1.0, transfer_s=10, slot_s=30))
    async with cluster(config) as embedded:

        async def turn(number: int) -> int:
            reply = await ask(embedded, conversation.prompt(number), conversation.num_tokens)
            assert reply.token_ids == conversation.answers[number], f"turn {number}: another answer than transformers'"
            return reply.record.num_hit_tokens

        async def total(name: str) -> int:
            return sum(getattr(engine, name) for engine in (await embedded.service.stats()).engines)

        assert await turn(0) == 0
        assert await turn(1) == whole_blocks(conversation, 1) > 0

        await all_zero(embedded)
        server.kill()
        assert await turn(2) == 0
        await all_zero(embedded)
        assert await total("blocks_failed") > 0
        assert await total("blocks_not_persisted") > 0

        server.start()
        assert await turn(2) == whole_blocks(conversation, 2) > 0
        assert await turn(3) == whole_blocks(conversation, 3)

        await all_zero(embedded)
        server.stop()
        assert await turn(4) == 0
        server.go_on()
        async with asyncio.timeout(60):
            while await total("transfers_lingering"):  # noqa: ASYNC110  (no event says so)
                await asyncio.sleep(0.05)
        await all_zero(embedded)
        assert await turn(4) > 0
    async with cluster(config) as embedded:
        assert await turn(5) > 0


async def test_a_server_killed_in_the_middle_of_many_requests(model_dir, server):
    """Requests in every phase; all of them finish, and with the tokens of a store that nobody disturbed."""
    prompts = [[32 + (i * 7 + n * 13 + i * i // 5) % 90 for i in range(6 * BLOCK_TOKENS + n)] for n in range(6)]
    async with cluster(settings(model_dir, "memory://undisturbed")) as embedded:
        truth = [(await ask(embedded, prompt, 24)).token_ids for prompt in prompts]
    async with cluster(settings(model_dir, server.url("kv", timeout_s=2), storage_nic_mbps=20)) as embedded:
        await asyncio.gather(*(ask(embedded, prompt[: 4 * BLOCK_TOKENS], 2) for prompt in prompts))
        running = [asyncio.create_task(ask(embedded, prompt, 24)) for prompt in prompts]
        await asyncio.sleep(0.05)
        server.kill()
        await asyncio.sleep(0.5)
        server.start()
        assert [(await reply).token_ids for reply in running] == truth
        await all_zero(embedded)
