"""Two servers of two ranks each: four real nodes in this process, each over a tensor of its own, led by the first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.vllm.nodes import BLOCK, LAYERS, POISON, SECRET, Side, idle, kv_caches, model_dir, settings

from dualpath.core.ids import BlockKey, EngineId, NodeId, RequestId
from dualpath.core.keys import Namespace, chain_keys, root_key
from dualpath.core.request import Request, SamplingParams, TokenEvent
from dualpath.protocol.api import DecodeOrder, DecodeStep, PrefillOrder
from dualpath.protocol.client import stub
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.protocol.socket_channel import SocketChannel
from dualpath.store.open import open_store
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine
from dualpath.vllm.messages import Load, Push, StepWork
from dualpath.vllm.worker.half import DecodeWorkerHalf, PrefillWorkerHalf
from dualpath.vllm.worker.kv_region import VllmKv, find_kv
from dualpath.vllm.worker.namespace import find_namespace
from dualpath.vllm.worker.node import ModelFacts, Node
from dualpath.vllm.worker.weights import NodeWeights

NUM_RANKS = 2


class Table:
    """Where the ranks of one server meet."""

    def __init__(self, num_ranks: int) -> None:
        self._given: list[Any] = [None] * num_ranks
        self._barrier = threading.Barrier(num_ranks)

    def gather(self, rank: int, mine: Any) -> list[Any]:
        self._given[rank] = mine
        self._barrier.wait(20)
        found = list(self._given)
        self._barrier.wait(20)
        return found


@dataclass
class FakeRanks:
    """``worker.ranks.Ranks``."""

    rank: int
    num_ranks: int
    table: Table

    def gather(self, mine: Any) -> list[Any]:
        return self.table.gather(self.rank, mine)


@dataclass
class Server:
    ranks: list[Side]
    line: Any  # the first rank's

    def fill(self, block_ids: Sequence[int], seed: int, *, is_same: bool = False) -> list[torch.Tensor]:
        """What the ranks of a model might have computed."""
        return [side.fill(block_ids, seed if is_same else seed + 100 * n) for n, side in enumerate(self.ranks)]

    def content(self, block_ids: Sequence[int]) -> list[torch.Tensor]:
        return [side.content(block_ids) for side in self.ranks]

    async def step(self, work: StepWork, compute: Callable[[int, int], None] = lambda *_: None) -> None:
        """One step of vLLM, in all its workers at once. ``compute``: of a rank, what its model does in a layer."""
        layers = threading.Barrier(len(self.ranks))

        def run(rank: int) -> None:
            half = self.ranks[rank].half
            half.preempted(work.preempted)
            half.begin(work)
            is_prefill = isinstance(half, PrefillWorkerHalf)
            if is_prefill and work.loads:
                half.start_load()
            for layer in range(LAYERS) if is_prefill else ():
                half.wait_layer(layer)
                compute(rank, layer)
                layers.wait(20)  # as its all-reduce does
                half.layer_computed(layer)
            if not (is_prefill and work.loads):
                half.start_load()
            half.end_step()

        with ThreadPoolExecutor(len(self.ranks)) as pool:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(pool, run, rank) for rank in range(len(self.ranks))))

    async def left(self, req_id: str) -> None:
        """Until all ranks have said that the ended request's blocks can go."""
        async with asyncio.timeout(10):
            for side in self.ranks:
                ended = {req_id}
                while req_id not in side.half.finished(ended):
                    ended = set()
                    await asyncio.sleep(0.005)


@dataclass
class Servers:
    prefill: Server
    decode: Server
    namespace: Namespace  # of the whole servers
    folder: Path
    written: dict[str, list[DecodeStep]] = field(default_factory=dict)

    def request(self, name: str, tokens: Sequence[int]) -> Request:
        return Request(RequestId(name), tuple(tokens), SamplingParams(max_tokens=8))

    def keys(self, request: Request) -> tuple[BlockKey, ...]:
        return tuple(chain_keys(root_key(self.namespace), request.prompt_token_ids, BLOCK))

    def stored(self) -> set[BlockKey]:
        """Whole blocks."""
        store = open_store(f"file://{self.folder}/store", self.namespace, self.namespace.geometry)
        return {block.key for block in store.list_blocks()}

    async def read(self, request: Request, num_hits: int, on_prefill: Sequence[int]) -> PrefillOrder:
        rid, keys, digest = request.request_id, self.keys(request), self.namespace.digest
        num_blocks = -(-len(request.prompt_token_ids) // BLOCK)
        slots = await self.decode.line.reserve(rid, num_blocks)
        for side in self.decode.ranks:
            for slot in slots:
                side.traffic.slot_view(slot)[:] = bytes([POISON]) * len(side.traffic.slot_view(slot))
        await self.prefill.line.reserve(rid, len(on_prefill), num_blocks)
        far = [block for block in range(num_hits) if block not in on_prefill]
        here = await self.prefill.line.read(rid, [(block, keys[block]) for block in on_prefill], digest)
        there = await self.decode.line.read(rid, [(block, keys[block]) for block in far], digest)
        assert (here.ok, there.ok) == (frozenset(on_prefill), frozenset(far))
        peer = self.decode.line.info.peer_id
        root = root_key(self.namespace)
        return PrefillOrder(request, num_hits * BLOCK, frozenset(on_prefill), peer, slots, keys, root, digest)

    async def persisting(self, request: Request, num_hits: int) -> asyncio.Task[None]:
        root, digest = root_key(self.namespace), self.namespace.digest
        order = DecodeOrder(request, num_hits * BLOCK, TokenEvent(1), self.keys(request), root, digest)
        steps = self.written[request.request_id] = []
        items = self.decode.line.persist(order)
        steps.append(await anext(items))

        async def rest() -> None:
            async for step in items:
                steps.append(step)

        return asyncio.create_task(rest())

    def told(self, request: Request, name: str) -> list[BlockKey]:
        return [key for step in self.written[request.request_id] for key in getattr(step, name)]

    async def taken(self) -> list[tuple[set[str], set[str]]]:
        """By each rank."""
        found = []
        async with asyncio.timeout(10):
            for side in self.decode.ranks:
                while not (one := side.half.taken())[0]:  # noqa: ASYNC110  (step after step)
                    await asyncio.sleep(0.005)
                found.append(one)
        return found

    async def release(self, rid: RequestId) -> None:
        async with asyncio.timeout(10):
            while not await self.prefill.line.release(rid):  # noqa: ASYNC110  (as the scheduler does)
                await asyncio.sleep(0.005)
        await self.decode.line.release(rid)

    async def turn(self, name: str, tokens: Sequence[int], seed: int, *, is_same: bool = False) -> list[torch.Tensor]:
        """A whole prompt without hits, computed, handed over, taken and stored; each rank's KV of it."""
        request = self.request(name, tokens)
        rid, num_blocks = request.request_id, -(-len(tokens) // BLOCK)
        order = await self.read(request, 0, ())
        line = self.prefill.line.hand_over(order)
        assert await anext(line)
        ids = tuple(range(1, num_blocks + 1))
        made = self.prefill.fill(ids, seed, is_same=is_same)
        await self.prefill.step(StepWork(pushes=[Push(name, rid, 0, ids, is_last=True)]))
        assert [item async for item in line] == []
        writing = await self.persisting(request, 0)
        await self.decode.step(StepWork(loads=[Load(name, rid, 0, ids)]))
        assert await self.taken() == [({name}, set())] * NUM_RANKS
        for found, expected in zip(self.decode.content(ids), made, strict=True):
            assert torch.equal(found, expected)
        await self.decode.line.stop(rid)
        await writing
        await self.prefill.left(name)
        await self.release(rid)
        return made


async def _server(stack: AsyncExitStack, role: str, folder: Path, told: dict[str, Any], *, is_same: bool) -> Any:
    start, table = folder / "start", Table(NUM_RANKS)
    caches = [kv_caches() for _ in range(NUM_RANKS)]

    def make(rank: int) -> Node:
        found: VllmKv = find_kv(caches[rank], BLOCK)
        namespace = find_namespace(start, found, "0", ("eager", "TEST"), NUM_RANKS, is_same=is_same)
        weights = NodeWeights(start, namespace, str(start), rank=rank)
        ranks = FakeRanks(rank, NUM_RANKS, table)
        node = Node(
            settings(role, folder, **told), namespace, found, ModelFacts("m", 4096), SECRET, weights, None, ranks
        )
        node.start()
        return node

    nodes = await asyncio.gather(*(asyncio.to_thread(make, rank) for rank in range(NUM_RANKS)))
    for node in reversed(nodes):
        stack.push_async_callback(asyncio.to_thread, node.close)
    protocol = PrefillNodeLine if role == "prefill" else DecodeNodeLine
    channel = SocketChannel("127.0.0.1", nodes[0].port, SECRET)
    stack.push_async_callback(channel.close)
    link = NodeLink(NodeId(role), channel, LinkConfig(), lambda *_: None, lambda _: None)
    await link.start()
    stack.push_async_callback(link.close)
    line = stub(protocol)(link, EngineId(f"{role[0]}0"))
    sides = []
    for rank, node in enumerate(nodes):
        half: Any = DecodeWorkerHalf
        if role == "prefill":
            gather = FakeRanks(rank, NUM_RANKS, table).gather
            half = PrefillWorkerHalf(node.engine, gather)  # type: ignore[arg-type]
        else:
            half = DecodeWorkerHalf(node.engine)  # type: ignore[arg-type]
        sides.append(Side(caches[rank], node, line, half))
    return Server(sides, line), link.report.namespace


@asynccontextmanager
async def servers(folder: Path, *, is_same: bool = False, **told: Any) -> AsyncIterator[Servers]:
    """Introduced to each other. ``is_same``: as with MLA. On the way out nothing is held."""
    model_dir(folder / "start", 0)
    async with AsyncExitStack() as stack:
        prefill, namespace = await _server(stack, "prefill", folder, told, is_same=is_same)
        decode, same = await _server(stack, "decode", folder, told, is_same=is_same)
        assert namespace == same
        await prefill.line.add_peer(decode.line.info.peer_metadata)
        await decode.line.add_peer(prefill.line.info.peer_metadata)
        yield Servers(prefill, decode, namespace, folder)
        for side in (*prefill.ranks, *decode.ranks):
            await idle(side)
