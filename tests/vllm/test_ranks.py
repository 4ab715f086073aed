"""Servers of several ranks: a block is every rank's part, and what fails in one rank has failed in all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from tests.vllm.nodes import BLOCK
from tests.vllm.ranked_nodes import NUM_RANKS, servers

from dualpath.core.errors import ConfigError, DeadlineExceededError
from dualpath.store.open import open_store
from dualpath.vllm.messages import Load, Push, StepWork
from dualpath.vllm.worker.layer_loads import LayerLoads

TOKENS = list(range(5 * BLOCK))


async def test_ranks_hand_over_store_and_load_their_own_parts(tmp_path: Path) -> None:
    """A second turn reads half of the blocks on each side; every rank gets back what it had computed."""
    async with servers(tmp_path) as both:
        made = await both.turn("a", TOKENS[: 4 * BLOCK + 9], 1)
        assert both.namespace.num_ranks == NUM_RANKS
        assert not torch.equal(made[0], made[1])
        first = both.request("a", TOKENS[: 4 * BLOCK + 9])
        keys = both.keys(first)
        assert both.told(first, "writing") == list(keys)
        assert sorted(both.told(first, "durable")) == sorted(keys)
        assert both.told(first, "not_persisted") == []
        assert both.stored() == set(keys)

        request = both.request("b", TOKENS)
        rid = request.request_id
        order = await both.read(request, 4, (0, 2))
        line = both.prefill.line.hand_over(order)
        assert await anext(line)
        ids = (7, 8, 9, 10, 11)
        new = both.prefill.fill(ids[4:], 50)
        work = StepWork(loads=[Load("b", rid, 0, ids[:4])], pushes=[Push("b", rid, 0, ids, is_last=True)])
        await both.prefill.step(work)
        assert [item async for item in line] == []
        for rank in range(NUM_RANKS):
            expected = torch.cat([made[rank][:, :4], new[rank]], dim=1)
            assert torch.equal(both.prefill.ranks[rank].content(ids), expected)
        writing = await both.persisting(request, 4)
        await both.decode.step(StepWork(loads=[Load("b", rid, 0, ids)]))
        assert await both.taken() == [({"b"}, set())] * NUM_RANKS
        for found, expected in zip(both.decode.content(ids), both.prefill.content(ids), strict=True):
            assert torch.equal(found, expected)
        await both.decode.line.stop(rid)
        await writing
        assert both.told(request, "durable") == [both.keys(request)[4]]
        await both.prefill.left("b")
        await both.release(rid)
        stats = await both.decode.line.stats()
        assert stats.storage_write_bytes == sum(side.traffic.stats().storage_write_bytes for side in both.decode.ranks)


async def test_what_one_rank_could_not_load_no_rank_pushes(tmp_path: Path) -> None:
    """Ranks add up what they compute: a rank whose own load was right has computed nonsense from the other's."""
    async with servers(tmp_path) as both:
        made = await both.turn("a", TOKENS[: 4 * BLOCK], 1)
        request = both.request("b", TOKENS)
        rid = request.request_id
        order = await both.read(request, 4, (0, 1, 2, 3))
        damaged = both.prefill.ranks[1].node.engine._staged.slots(rid)[2]
        both.prefill.ranks[1].traffic.slot_view(damaged)[-5] ^= 1
        line = both.prefill.line.hand_over(order)
        assert await anext(line)
        ids = (7, 8, 9, 10, 11)
        for side in both.prefill.ranks:
            side.fill(ids[4:], 666)
        work = StepWork(loads=[Load("b", rid, 0, ids[:4])], pushes=[Push("b", rid, 0, ids, is_last=True)])
        await both.prefill.step(work)
        assert [side.half.load_errors for side in both.prefill.ranks] == [set(ids[:4])] * NUM_RANKS
        assert [side.half.failures.req_ids for side in both.prefill.ranks] == [{"b"}] * NUM_RANKS

        for rank, side in enumerate(both.prefill.ranks):  # vLLM computes the prompt again
            for layer, cache in enumerate(side.kv.values()):
                cache[list(ids[:4])] = made[rank][layer, :4]
        new = both.prefill.fill(ids[4:], 50)
        await both.prefill.step(StepWork(pushes=[Push("b", rid, 0, ids, is_last=True)]))
        assert [item async for item in line] == []
        await both.decode.step(StepWork())
        writing = await both.persisting(request, 4)
        await both.decode.step(StepWork(loads=[Load("b", rid, 0, ids)]))
        assert await both.taken() == [({"b"}, set())] * NUM_RANKS
        for rank in range(NUM_RANKS):
            expected = torch.cat([made[rank][:, :4], new[rank]], dim=1)
            assert torch.equal(both.decode.ranks[rank].content(ids), expected)
        await both.decode.line.stop(rid)
        await writing
        await both.prefill.left("b")
        await both.release(rid)


async def test_a_rank_that_breaks_off_lets_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM hears of its error when the first rank has answered, which waits for what the others gather."""
    end = LayerLoads.end

    def end_badly(self: LayerLoads) -> None:
        end(self)
        if self._parts.weights._rank == 1:
            raise RuntimeError("a test's fault")

    async with servers(tmp_path) as both:
        await both.turn("a", TOKENS[: 4 * BLOCK], 1)
        request = both.request("b", TOKENS)
        rid = request.request_id
        order = await both.read(request, 4, (0, 1, 2, 3))
        line = both.prefill.line.hand_over(order)
        assert await anext(line)
        monkeypatch.setattr(LayerLoads, "end", end_badly)
        ids = (7, 8, 9, 10, 11)
        work = StepWork(loads=[Load("b", rid, 0, ids[:4])], pushes=[Push("b", rid, 0, ids, is_last=True)])
        with pytest.raises(RuntimeError, match="a test's fault"):
            await both.prefill.step(work)
        first, second = (side.half for side in both.prefill.ranks)
        assert first.load_errors == set(ids[:4])
        for task in second._pins:  # its process would end
            second._tasks.unpin(task)
        await line.aclose()
        await both.release(rid)


async def test_the_first_rank_may_take_its_time_to_come(tmp_path: Path) -> None:
    """It waits for all ranks that start; later its silence means that it is gone."""
    async with servers(tmp_path) as both:
        first, second = (side.node for side in both.decode.ranks)
        assert second._patience_s(20.0) == 20.0
        second._process.is_met = False
        assert second._patience_s(20.0) > 120.0
        assert first._patience_s(20.0) == 20.0


async def test_a_block_is_stored_when_every_rank_has_stored_its_part(tmp_path: Path) -> None:
    async with servers(tmp_path) as both:
        broken = open_store(f"file://{tmp_path}/store", both.namespace.parts()[1], both.namespace.parts()[1].geometry)
        where = next(path for path in (tmp_path / "store").rglob("*") if broken.namespace_digest.hex() in path.name)
        for path in where.rglob("*"):
            if path.is_dir():
                path.rmdir()
        where.rmdir()
        where.write_text("no directory")
        await both.turn("a", TOKENS[: 2 * BLOCK], 1)
        request = both.request("a", TOKENS[: 2 * BLOCK])
        assert both.told(request, "durable") == []
        assert sorted(both.told(request, "not_persisted")) == sorted(both.keys(request))
        where.unlink()
        assert both.stored() == set()


async def test_a_part_that_is_gone_is_a_block_that_is_gone(tmp_path: Path) -> None:
    async with servers(tmp_path) as both:
        await both.turn("a", TOKENS[: 3 * BLOCK], 1)
        request = both.request("b", TOKENS[: 3 * BLOCK + 5])
        keys, part = both.keys(request), both.namespace.parts()[1]
        open_store(f"file://{tmp_path}/store", part, part.geometry).delete(keys[1])
        await both.decode.line.reserve(request.request_id, 4)
        for line in (both.decode.line, both.prefill.line):
            asked = [(block, keys[block]) for block in range(3)]
            found = await line.read(request.request_id, asked, both.namespace.digest)
            assert (found.ok, found.gone, found.failed) == ({0, 2}, {1}, set())
        await both.release(request.request_id)


async def test_a_slot_is_granted_when_it_is_free_in_every_rank(tmp_path: Path) -> None:
    """The other rank may be copying out of it still, while the first one has let go of it."""
    async with servers(tmp_path, slot_s=2.0) as both:
        first, second = both.decode.ranks
        slots = await both.decode.line.reserve("a", 3)
        assert first.traffic.slots.granted == second.traffic.slots.granted == sorted(slots)
        second.traffic.slots.hold(slots)
        await both.decode.line.release("a")
        assert first.traffic.slots.num_used == 0
        others = await both.decode.line.reserve("others", 13)  # nobody waits for those that linger
        assert set(others).isdisjoint(slots)
        assert first.traffic.slots.num_used == 13 + len(slots)
        await both.decode.line.release("others")
        with pytest.raises(DeadlineExceededError, match="staging slots became free"):
            await both.decode.line.reserve("b", 16)
        await both.decode.line.release("b")
        waiting = asyncio.create_task(both.decode.line.reserve("c", 16))
        await asyncio.sleep(0.1)
        second.traffic.slots.unhold(slots)
        assert sorted(await waiting) == list(range(16))
        await both.decode.line.release("c")


async def test_where_all_ranks_have_the_same_kv_one_of_them_stores_it(tmp_path: Path) -> None:
    """MLA: one latent for all heads."""
    async with servers(tmp_path, is_same=True) as both:
        made = await both.turn("a", TOKENS[: 4 * BLOCK], 1, is_same=True)
        request = both.request("a", TOKENS[: 4 * BLOCK])
        assert both.namespace.num_ranks == 1
        assert sorted(both.told(request, "durable")) == sorted(both.keys(request))
        assert [side.traffic.stats().storage_write_bytes > 0 for side in both.decode.ranks] == [True, False]
        again = both.request("b", TOKENS)
        rid = again.request_id
        order = await both.read(again, 4, (1, 2))
        line = both.prefill.line.hand_over(order)
        assert await anext(line)
        ids = (7, 8, 9, 10, 11)
        both.prefill.fill(ids[4:], 50, is_same=True)
        work = StepWork(loads=[Load("b", rid, 0, ids[:4])], pushes=[Push("b", rid, 0, ids, is_last=True)])
        await both.prefill.step(work)
        assert [item async for item in line] == []
        for side in both.prefill.ranks:
            assert torch.equal(side.content(ids[:4]), made[0])
        await both.release(rid)
        await both.prefill.left("b")


async def test_servers_of_unequal_ranks_are_not_introduced(tmp_path: Path) -> None:
    async with servers(tmp_path) as both:
        with pytest.raises(ConfigError, match="1 ranks on the other side, 2 here: they must be equal"):
            await both.prefill.line.add_peer(both.decode.ranks[0].node.engine.info.peer_metadata)


async def test_a_rank_that_is_lost_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM cannot go on without it; nor can what it holds be known."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with servers(tmp_path) as both:
        monkeypatch.setattr("os._exit", lambda code: loop.call_soon_threadsafe(ended.set))
        await asyncio.to_thread(both.prefill.ranks[1].node.close)
        async with asyncio.timeout(10):
            await ended.wait()
