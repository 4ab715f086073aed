"""Damage and abuse: whatever happens to blocks, to storage or to clients, tokens stay right and nothing leaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from dualpath.core.ids import RequestId
from dualpath.core.keys import chain_keys, root_key
from dualpath.core.request import Request, SamplingParams
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import BLOCK_TOKENS, all_zero, ask, cluster, settings

PROMPT = [32 + (i * 11 + i * i // 3) % 90 for i in range(10 * BLOCK_TOKENS + 5)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("qwen2", tmp_path_factory.mktemp("faults") / "model", layers=3)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096 + len(data) // 3] ^= 0x10
    file.write_bytes(data)


def flip_a_header_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def swap_payload(file: Path) -> None:
    """A healthy object of another key under this one's name."""
    other = next(f for f in sorted(file.parent.parent.rglob("*.kv")) if f != file)
    file.write_bytes(other.read_bytes())


DAMAGES: list[Callable[[Path], None]] = [flip_a_bit, flip_a_header_bit, truncate, empty, swap_payload, Path.unlink]


@pytest.mark.parametrize("path", ["prefill", "decode", "split"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
async def test_damaged_blocks_change_no_token_and_are_counted(damage, path, model_dir, tmp_path):
    async with cluster(settings(model_dir, f"file://{tmp_path}", path=path, decode=1)) as embedded:
        first = await ask(embedded, PROMPT, 6)
        await all_zero(embedded)
        turn = [*PROMPT, *first.token_ids, *range(50, 90)]
        truth = await ask(embedded, turn, 8, salt="elsewhere")
        await all_zero(embedded)
        key = chain_keys(root_key(embedded.namespace), PROMPT, BLOCK_TOKENS)[3]
        (file,) = tmp_path.rglob(f"{key.hex()}*")
        damage(file)
        reply = await ask(embedded, turn, 8)
        assert reply.token_ids == truth.token_ids
        assert reply.record.num_hit_tokens == 3 * BLOCK_TOKENS
        assert reply.record.num_recomputed_blocks > 0
        await all_zero(embedded)
        stats = await embedded.service.stats()
        assert sum(e.blocks_missing + e.blocks_corrupt for e in stats.engines) == 1
        # It was written again, and serves the next turn.
        again = await ask(embedded, [*turn, *reply.token_ids, 60], 4)
        assert again.record.num_hit_tokens >= len(turn) // BLOCK_TOKENS * BLOCK_TOKENS


async def test_a_store_that_takes_no_writes_costs_hits_but_no_request(model_dir, tmp_path):
    async with cluster(settings(model_dir, f"file://{tmp_path}")) as embedded:
        truth = await ask(embedded, PROMPT, 40)
        await all_zero(embedded)
    other = tmp_path / "other"
    async with cluster(settings(model_dir, f"file://{other}")) as embedded:
        import shutil

        shutil.rmtree(other)
        other.write_text("in the way")
        reply = await ask(embedded, PROMPT, 40)
        assert reply.token_ids == truth.token_ids
        await all_zero(embedded)
        stats = await embedded.service.stats()
        assert sum(e.blocks_not_persisted for e in stats.engines) > 0
        again = await ask(embedded, [*PROMPT, *reply.token_ids], 4)
        assert again.record.num_hit_tokens == 0


async def test_cancelled_requests_leave_nothing_behind(model_dir):
    async with cluster(settings(model_dir, "memory://cancel", storage_nic_mbps=50)) as embedded:
        await ask(embedded, PROMPT, 4)

        async def give_up(number: int, after_s: float) -> None:
            params = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
            request = Request(RequestId(f"cancel-{number}"), (*PROMPT, 40 + number), params)
            stream = embedded.service.generate(request)

            async def consume() -> None:
                async for _ in stream:
                    pass

            task = asyncio.create_task(consume())
            await asyncio.sleep(after_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await stream.aclose()  # type: ignore[attr-defined]

        await asyncio.gather(*(give_up(i, 0.004 * i) for i in range(30)))
        await all_zero(embedded)
        reply = await ask(embedded, [*PROMPT, 40], 4)
        assert len(reply.token_ids) == 4


async def test_tenants_do_not_share_blocks(model_dir):
    async with cluster(settings(model_dir, "memory://salt")) as embedded:
        await ask(embedded, PROMPT, 4, salt="a")
        assert (await ask(embedded, [*PROMPT, 40], 4, salt="b")).record.num_hit_tokens == 0
        assert (await ask(embedded, [*PROMPT, 40], 4, salt="a")).record.num_hit_tokens > 0


async def test_sampling_is_the_same_whatever_the_path_and_company(model_dir):
    sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "seed": 5, "num_logprobs": 2}
    answers = []
    for path in ("prefill", "decode", "split"):
        async with cluster(settings(model_dir, f"memory://sampling-{path}", path=path)) as embedded:
            await ask(embedded, PROMPT, 2)
            company = [ask(embedded, PROMPT[i : i + 60], 30, temperature=1.0, seed=i) for i in range(3)]
            reply, *_ = await asyncio.gather(ask(embedded, [*PROMPT, 50], 30, **sampling), *company)
            answers.append(reply.token_ids)
            other = await ask(embedded, [*PROMPT, 50], 30, **(sampling | {"seed": 6}))
            assert other.token_ids != reply.token_ids
    assert answers[0] == answers[1] == answers[2]


async def test_a_turn_cut_short_by_its_client_is_still_found_by_the_next(model_dir, tmp_path):
    """A stop string ends a turn this way: the gateway closes the stream."""
    async with cluster(settings(model_dir, f"file://{tmp_path}", storage_nic_mbps=20)) as embedded:
        params = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
        stream = embedded.service.generate(Request(RequestId("cut"), tuple(PROMPT), params))
        tokens = []
        async for event in stream:
            tokens.append(event.token_id)
            if len(tokens) == 30:
                break
        await stream.aclose()
        reply = await ask(embedded, [*PROMPT, *tokens, 60, 61], 4)
        kept = (len(PROMPT) + len(tokens) - 1) // BLOCK_TOKENS * BLOCK_TOKENS  # the last token's own KV was not needed
        assert reply.record.num_hit_tokens >= kept
        await all_zero(embedded)
