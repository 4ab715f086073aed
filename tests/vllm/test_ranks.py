"""Servers of several ranks: a block is every rank's part, and what fails in one rank has failed in all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.vllm.nodes import BLOCK, Nodes, Side, nodes

from dualpath.core.errors import ConfigError, DeadlineExceededError, OtherWeightsError, TransferTimeoutError
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.latency import LatencyCounts
from dualpath.core.plan import Role
from dualpath.core.request import Request
from dualpath.core.runtime import SystemRuntime
from dualpath.core.stats import EngineStats
from dualpath.engine.stats import of_ranks
from dualpath.protocol.api import DecodeStep
from dualpath.store.open import open_store
from dualpath.vllm.messages import Load, Push, StepWork
from dualpath.vllm.worker import ranks
from dualpath.vllm.worker.layer_loads import LayerLoads
from dualpath.vllm.worker.ranked_decode import RankedDecode

NUM_RANKS = 2
TOKENS = list(range(5 * BLOCK))
IDS = (7, 8, 9, 10, 11)


def contents(side: Side, block_ids: tuple[int, ...]) -> list[torch.Tensor]:
    return [rank.content(block_ids) for rank in side.ranks]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(*both) for both in zip(found, expected, strict=True))


def stored(both: Nodes, folder: Path) -> set[BlockKey]:
    """Whole blocks."""
    store = open_store(f"file://{folder}/store", both.namespace, both.namespace.geometry)
    return {block.key for block in store.list_blocks()}


@asynccontextmanager
async def second_turn(both: Nodes, on_prefill: tuple[int, ...]) -> AsyncIterator[tuple[Request, Any]]:
    """Four blocks of five are hits, read on these sides; the prefill server has been told."""
    request = both.request("b", TOKENS)
    line = both.prefill.line.hand_over(await both.read(request, 4, on_prefill))
    assert await anext(line)
    yield request, line
    await both.left(both.prefill, "b")
    await both.release(request.request_id)


def loading(request: Request) -> StepWork:
    """The step that loads the hit and computes the rest."""
    rid = request.request_id
    return StepWork(loads=[Load("b", rid, 0, IDS[:4])], pushes=[Push("b", rid, 0, IDS, is_last=True)])


async def taken_over(both: Nodes, request: Request) -> None:
    """The decode server takes the prompt, and stores what is new of it."""
    writing = await both.persisting(request, 4)
    await both.step(both.decode, StepWork(loads=[Load("b", request.request_id, 0, IDS)]))
    assert await both.taken() == ({"b"}, set())
    await both.decode.line.stop(request.request_id)
    await writing


async def test_ranks_hand_over_store_and_load_their_own_parts(tmp_path: Path) -> None:
    """A second turn reads half of the blocks on each side; every rank gets back what it had computed."""
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        await both.turn("a", TOKENS[: 4 * BLOCK + 9], 1)
        made = contents(both.prefill, (1, 2, 3, 4))
        assert both.namespace.num_ranks == NUM_RANKS
        assert not torch.equal(*made)
        first = both.request("a", TOKENS[: 4 * BLOCK + 9])
        keys = both.keys(first)
        assert both.told(first, "writing") == list(keys)
        assert sorted(both.told(first, "durable")) == sorted(keys)
        assert both.told(first, "not_persisted") == []
        assert stored(both, tmp_path) == set(keys)

        async with second_turn(both, (0, 2)) as (request, line):
            new = both.compute(IDS[4:], 50)
            await both.step(both.prefill, loading(request))
            assert [item async for item in line] == []
            expected = [torch.cat(parts, dim=1) for parts in zip(made, new, strict=True)]
            assert equal(contents(both.prefill, IDS), expected)
            await taken_over(both, request)
            assert equal(contents(both.decode, IDS), expected)
            assert both.told(request, "durable") == [both.keys(request)[4]]


async def test_what_one_rank_could_not_load_no_rank_pushes(tmp_path: Path) -> None:
    """Ranks add up what they compute: a rank whose own load was right has computed nonsense from the other's."""
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        await both.turn("a", TOKENS[: 4 * BLOCK], 1)
        made = contents(both.prefill, (1, 2, 3, 4))
        async with second_turn(both, (0, 1, 2, 3)) as (request, line):
            other = both.prefill.ranks[1]
            damaged = other.node.engine._staged.slots(request.request_id)[2]
            other.traffic.slot_view(damaged)[-5] ^= 1
            both.compute(IDS[4:], 666)
            await both.step(both.prefill, loading(request))
            assert [side.half.load_errors for side in both.prefill.ranks] == [set(IDS[:4])] * NUM_RANKS
            assert [side.half.failures.req_ids for side in both.prefill.ranks] == [{"b"}] * NUM_RANKS

            for side, right in zip(both.prefill.ranks, made, strict=True):  # vLLM computes the prompt again
                for layer, cache in enumerate(side.kv.values()):
                    cache[list(IDS[:4])] = right[layer]
            new = both.compute(IDS[4:], 50)
            again = StepWork(pushes=[Push("b", request.request_id, 0, IDS, is_last=True)])
            await both.step(both.prefill, again)
            assert [item async for item in line] == []
            await taken_over(both, request)
            expected = [torch.cat(parts, dim=1) for parts in zip(made, new, strict=True)]
            assert equal(contents(both.decode, IDS), expected)


async def test_a_rank_that_breaks_off_lets_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM hears of its error when the first rank has answered, which waits for what the others gather."""
    end = LayerLoads.end

    def end_badly(self: LayerLoads) -> None:
        end(self)
        if self._parts.weights._rank == 1:
            raise RuntimeError("a test's fault")

    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        await both.turn("a", TOKENS[: 4 * BLOCK], 1)
        async with second_turn(both, (0, 1, 2, 3)) as (request, line):
            monkeypatch.setattr(LayerLoads, "end", end_badly)
            with pytest.raises(RuntimeError, match="a test's fault"):
                await both.step(both.prefill, loading(request))
            first, second = (side.half for side in both.prefill.ranks)
            assert first.load_errors == set(IDS[:4])
            for task in second._pins:  # its process would end
                second._tasks.unpin(task)
            await line.aclose()


async def test_a_block_is_stored_when_every_rank_has_stored_its_part(tmp_path: Path) -> None:
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        digest = both.namespace.part(1).digest.hex()
        where = next(path for path in (tmp_path / "store").rglob("*") if digest in path.name)
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
        assert stored(both, tmp_path) == set()


async def test_a_part_that_is_gone_is_a_block_that_is_gone(tmp_path: Path) -> None:
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        await both.turn("a", TOKENS[: 3 * BLOCK], 1)
        request = both.request("b", TOKENS[: 3 * BLOCK + 5])
        rid, keys, part = request.request_id, both.keys(request), both.namespace.part(1)
        open_store(f"file://{tmp_path}/store", part, part.geometry).delete(keys[1])
        await both.decode.line.reserve(rid, 4)
        for line in (both.decode.line, both.prefill.line):
            found = await line.read(rid, [(block, keys[block]) for block in range(3)], both.namespace.digest)
            assert (found.ok, found.gone, found.failed) == ({0, 2}, {1}, set())
        await both.release(rid)


async def test_a_slot_is_granted_when_it_is_free_in_every_rank(tmp_path: Path) -> None:
    """The other rank may be copying out of it still, while the first one has let go of it."""
    async with nodes(tmp_path, num_ranks=NUM_RANKS, slot_s=2.0) as both:
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


class _LateRead:
    """It has failed, and may still write."""

    quiescent: Future[None] = Future()

    def __await__(self) -> Iterator[int]:
        raise TransferTimeoutError("a test's fault")
        yield


async def test_a_late_read_of_one_rank_moves_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others would go by the former number: the attempt ends instead."""
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        await both.decode.line.reserve("a", 2)
        other = both.decode.ranks[1]
        monkeypatch.setattr(other.traffic, "read_blocks", lambda *_, **__: [_LateRead()])
        with pytest.raises(DeadlineExceededError, match="1 blocks are late, and they cannot get other slots"):
            await both.decode.line.read("a", [(0, BlockKey(bytes(16)))])
        assert [side.traffic.slots.num_used for side in both.decode.ranks] == [2, 2]
        await both.decode.line.release("a")


class _Rank:
    """A decode engine that tells what it is given."""

    parts = SimpleNamespace(whole=None)

    def __init__(self) -> None:
        self.steps: asyncio.Queue[DecodeStep | None] = asyncio.Queue()

    async def persist(self, order: Any) -> AsyncIterator[DecodeStep]:
        while (step := await self.steps.get()) is not None:
            yield step

    async def stop(self, request_id: RequestId) -> None:
        """All has been given."""


async def test_what_was_written_is_told_before_a_stop_is_answered() -> None:
    """Whoever has an answer's end finds its blocks in the next turn."""
    own, other, order = _Rank(), _Rank(), SimpleNamespace(request=SimpleNamespace(request_id=RequestId("a")))
    engine, keys = RankedDecode(own, [other]), (BlockKey(b"a" * 16), BlockKey(b"b" * 16))  # type: ignore[arg-type, list-item]
    for rank in (own, other):
        rank.steps.put_nowait(DecodeStep())
    told = engine.persist(order)  # type: ignore[arg-type]
    assert await anext(told) == DecodeStep()
    for key in keys:
        own.steps.put_nowait(DecodeStep(writing=(key,)))
    assert await anext(told) == DecodeStep(writing=keys[:1])
    stopping = asyncio.create_task(engine.stop(RequestId("a")))
    await asyncio.sleep(0.02)
    assert not stopping.done(), "the second block has not been told"
    assert await anext(told) == DecodeStep(writing=keys[1:])
    for rank in (own, other):
        rank.steps.put_nowait(None)
    assert await anext(told) == DecodeStep(not_persisted=keys), "nobody has said more of them"
    await stopping
    await told.aclose()  # type: ignore[attr-defined]


async def test_where_all_ranks_have_the_same_kv_one_of_them_stores_it(tmp_path: Path) -> None:
    """MLA: one latent for all heads."""
    async with nodes(tmp_path, num_ranks=NUM_RANKS, is_same=True) as both:
        made = await both.turn("a", TOKENS[: 4 * BLOCK], 1)
        request = both.request("a", TOKENS[: 4 * BLOCK])
        assert both.namespace.num_ranks == 1
        assert sorted(both.told(request, "durable")) == sorted(both.keys(request))
        assert [side.traffic.stats().storage_write_bytes > 0 for side in both.decode.ranks] == [True, False]
        async with second_turn(both, (1, 2)) as (request, line):
            both.compute(IDS[4:], 50)
            await both.step(both.prefill, loading(request))
            assert [item async for item in line] == []
            assert equal(contents(both.prefill, IDS[:4]), [made] * NUM_RANKS)


async def test_ranks_of_different_shapes_do_not_serve(tmp_path: Path) -> None:
    """What one stores as a part would not be one of the other's blocks."""
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        with pytest.raises(ConfigError, match="ranks have KV of different shapes"):
            await both.decode.node._join([(1, b"another namespace")])


async def test_a_peer_is_removed_from_every_rank(tmp_path: Path) -> None:
    """Else what one of them has sent may arrive in memory that has been given to others."""
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        peer = both.decode.line.info.peer_id
        assert [side.traffic.stats().peers for side in both.prefill.ranks] == [(peer,)] * NUM_RANKS
        await both.prefill.line.remove_peer(peer)
        assert [side.traffic.stats().peers for side in both.prefill.ranks] == [()] * NUM_RANKS
        with pytest.raises(ConfigError, match="1 ranks on the other side, 2 here: they must be equal"):
            await both.prefill.line.add_peer(both.decode.ranks[0].node.engine.info.peer_metadata)


async def test_blocks_of_weights_that_a_rank_does_not_know_are_not_read(tmp_path: Path) -> None:
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        await both.decode.line.reserve("a", 1)
        unknown = replace(both.namespace, model_fingerprint="0" * 32).digest
        with pytest.raises(OtherWeightsError):
            await both.decode.line.read("a", [(0, BlockKey(bytes(16)))], unknown)
        await both.decode.line.release("a")


# -- ranks that end, stand still, or start again ----------------------------------------------------------------------


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    return codes


async def _until(exits: list[int]) -> None:
    async with asyncio.timeout(10):
        while not exits:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_rank_that_is_lost_ends_the_server(
    tmp_path: Path, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM cannot go on without it; nor can what it holds be known."""
    monkeypatch.setattr(ranks, "_STOP_S", 0.1)
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        await asyncio.to_thread(both.prefill.ranks[1].node.close)
        await _until(exits)
        assert set(exits) == {ranks.ABANDONED}


async def test_ranks_that_are_told_to_stop_miss_none_of_each_other(tmp_path: Path, exits: list[int]) -> None:
    async with nodes(tmp_path, num_ranks=NUM_RANKS) as both:
        for side in reversed(both.prefill.ranks):
            await asyncio.to_thread(side.node.close)
    assert exits == []


async def test_a_rank_ends_when_the_first_one_is_silent(tmp_path: Path, exits: list[int]) -> None:
    """Whoever waits for the server's lease may take it for gone then."""
    async with nodes(tmp_path, num_ranks=NUM_RANKS, lease_s=3.0) as both:
        await asyncio.sleep(1.5)
        assert exits == []
        ((link, _),) = both.decode.node._others._links
        asyncio.run_coroutine_threadsafe(link.close(), both.decode.node._loop).result(5)
        await _until(exits)
        assert set(exits) == {ranks.ABANDONED}


@pytest.mark.parametrize("lease_s", [3.0, 10.0, 60.0, 600.0])
def test_all_ranks_have_ended_when_the_lease_has(lease_s: float) -> None:
    """The first one leaves when its scheduler is silent, the others when it is."""
    assert ranks.patience_s(lease_s) >= lease_s / 2
    assert ranks.patience_s(lease_s) + ranks.silence_s(lease_s) <= lease_s - min(2.0, lease_s / 6)


async def test_a_rank_waits_for_the_end_of_the_former_one() -> None:
    """It could still move KV in this one's name."""
    name, runtime = "p0 127.0.0.1:1 rank 1, of a test", SystemRuntime()
    former = await ranks.claim(name, runtime)
    with pytest.raises(ConfigError, match="rank 1, of a test of a former server has not ended"):
        await ranks.claim(name, runtime, 0.1)
    waiting = asyncio.create_task(ranks.claim(name, runtime))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    former.close()
    (await waiting).close()


def test_counters_of_an_engine_are_those_of_its_ranks() -> None:
    """Every field of the snapshot is one of one engine, added up, or the largest."""
    latency = LatencyCounts((1, 2), 0.5)
    one = EngineStats(
        EngineId("d0"),
        NodeId("n"),
        Role.DECODE,
        storage_read_bytes=5,
        kv_transfer_bytes={"a": 1},
        staging_slots=16,
        staging_slots_used=3,
        storage_read_latency=latency,
        peers=(PeerId("p"),),
    )
    other = replace(one, kv_transfer_bytes={"a": 2, "b": 1}, staging_slots_used=4, storage_write_latency=latency)
    found = of_ranks([one, other])
    assert (found.storage_read_bytes, found.staging_slots, found.staging_slots_used) == (10, 16, 4)
    assert found.kv_transfer_bytes == {"a": 3, "b": 1}
    assert found.storage_read_latency == LatencyCounts((2, 4), 1.0)
    assert found.storage_write_latency == latency
    assert found.peers == (PeerId("p"),)
    counted = {field.name for field in fields(EngineStats) if field.name.endswith("_bytes") or "blocks_" in field.name}
    sevens: Any = dict.fromkeys(counted - {"kv_transfer_bytes"}, 7)
    doubled = of_ranks([replace(one, **sevens)] * 2)
    assert {getattr(doubled, name) for name in sevens} == {14}
