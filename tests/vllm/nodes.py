"""Real nodes in this process over tensors that stand for vLLM's KV, one for each rank, and vLLM's order of calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dualpath.core.ids import BlockKey, EngineId, NodeId, RequestId
from dualpath.core.keys import Namespace, chain_keys, root_key
from dualpath.core.request import Request, SamplingParams, TokenEvent
from dualpath.core.weights import Weights
from dualpath.protocol.api import DecodeOrder, DecodeStep, PrefillOrder
from dualpath.protocol.client import stub
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.protocol.socket_channel import SocketChannel
from dualpath.traffic.manager import TrafficManager
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine
from dualpath.vllm.messages import Load, Push, Save, StepWork
from dualpath.vllm.settings import ConnectorSettings
from dualpath.vllm.together import each
from dualpath.vllm.worker.half import DecodeWorkerHalf, PrefillWorkerHalf
from dualpath.vllm.worker.kv_region import VllmKv, find_kv
from dualpath.vllm.worker.namespace import find_namespace
from dualpath.vllm.worker.node import ModelFacts, Node
from dualpath.vllm.worker.staged_prefill import StagedPrefill
from dualpath.vllm.worker.weights import NodeWeights

LAYERS, BLOCKS, HEADS, BLOCK, CONTENT = 4, 24, 2, 64, 8
SECRET = b"a secret of sixteen bytes"
POISON = 0xAB


def kv_caches(device: str = "cpu", num_layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """As vLLM's CPU backend lays it out: one allocation, per layer ``[blocks, heads, tokens, content]``."""
    whole = torch.zeros((num_layers, BLOCKS, HEADS, BLOCK, CONTENT), dtype=torch.float32, device=device)
    return {f"model.layers.{layer}.self_attn.attn": whole[layer] for layer in range(num_layers)}


@dataclass
class Side:
    """A node, what vLLM's worker has beside it, and its control line."""

    kv: dict[str, torch.Tensor]
    node: Node
    line: Any
    half: Any
    others: list[Side] = field(default_factory=list)  # the other ranks of the server; this one has its line

    @property
    def ranks(self) -> list[Side]:
        return [self, *self.others]

    @property
    def traffic(self) -> TrafficManager:
        return self.node.engine.parts.traffic

    def content(self, block_ids: Sequence[int]) -> torch.Tensor:
        """[layers, blocks, ...], a copy on the CPU."""
        return torch.stack([layer[list(block_ids)].cpu() for layer in self.kv.values()])

    def fill(self, block_ids: Sequence[int], seed: int) -> torch.Tensor:
        """What a model might have computed."""
        made = torch.rand(
            (LAYERS, len(block_ids), HEADS, BLOCK, CONTENT), generator=torch.Generator().manual_seed(seed)
        )
        for layer, cache in enumerate(self.kv.values()):
            cache[list(block_ids)] = made[layer].to(cache.device)
        return made

    def check_idle(self) -> None:
        self.node.engine.check_idle()
        slots = self.traffic.slots
        slots.check_integrity()
        assert slots.num_used == 0, f"{slots.num_used} slots of {self.traffic.engine_id} are in use"


@dataclass
class Nodes:
    prefill: Side
    decode: Side
    namespace: Namespace  # of the weights that orders are for
    written: dict[str, list[DecodeStep]] = field(default_factory=dict)

    def request(self, name: str, tokens: Sequence[int]) -> Request:
        return Request(RequestId(name), tuple(tokens), SamplingParams(max_tokens=8))

    def keys(self, request: Request) -> tuple[BlockKey, ...]:
        return tuple(chain_keys(root_key(self.namespace), request.prompt_token_ids, BLOCK))

    async def read(self, request: Request, num_hits: int, on_prefill: Sequence[int]) -> PrefillOrder:
        """Slots, and the first ``num_hits`` blocks from storage: those of ``on_prefill`` there, the others here."""
        rid, keys = request.request_id, self.keys(request)
        num_blocks = -(-len(request.prompt_token_ids) // BLOCK)
        slots = await self.decode.line.reserve(rid, num_blocks)
        for side in self.decode.ranks:
            for slot in slots:
                side.traffic.slot_view(slot)[:] = bytes([POISON]) * len(side.traffic.slot_view(slot))
        await self.prefill.line.reserve(rid, len(on_prefill), num_blocks)
        far = [block for block in range(num_hits) if block not in on_prefill]
        digest = self.namespace.digest
        here = await self.prefill.line.read(rid, [(block, keys[block]) for block in on_prefill], digest)
        there = await self.decode.line.read(rid, [(block, keys[block]) for block in far], digest)
        assert (here.ok, there.ok) == (frozenset(on_prefill), frozenset(far))
        peer = self.decode.line.info.peer_id
        root = root_key(self.namespace)
        return PrefillOrder(request, num_hits * BLOCK, frozenset(on_prefill), peer, slots, keys, root, digest)

    async def persisting(self, request: Request, num_hits: int) -> asyncio.Task[None]:
        """Begins to persist; the task ends when the line does."""
        root, digest = root_key(self.namespace), self.namespace.digest
        order = DecodeOrder(request, num_hits * BLOCK, TokenEvent(1), self.keys(request), root, digest)
        steps = self.written[request.request_id] = []
        items = self.decode.line.persist(order)
        steps.append(await anext(items))

        async def rest() -> None:
            async for step in items:
                steps.append(step)

        return asyncio.create_task(rest())

    async def step(self, side: Side, work: StepWork, compute: Callable[[int], None] = lambda _: None) -> None:
        """One step of vLLM, in each worker on a thread as there. ``compute``: what the first one's model does in a
        layer, at whose end all wait for each other."""
        layers = threading.Barrier(len(side.ranks))

        def run(half: Any) -> None:
            half.preempted(work.preempted)
            half.begin(work)
            is_prefill = isinstance(half, PrefillWorkerHalf)
            if is_prefill and work.loads:
                half.start_load()
            for layer in range(LAYERS) if is_prefill else ():
                half.wait_layer(layer)
                if half is side.half:
                    compute(layer)
                layers.wait(20)
                half.layer_computed(layer)
            if not (is_prefill and work.loads):
                half.start_load()
            half.end_step()

        await each(asyncio.to_thread(run, one.half) for one in side.ranks)

    async def change(self, weights: Weights, reload: Callable[[str], None] = lambda _: None) -> None:
        """Of both, while neither computes."""
        for side in (self.prefill, self.decode):
            fingerprint = await side.line.name_weights(weights)
            for one in side.ranks:
                await asyncio.to_thread(one.half.change_weights, weights, reload)
        self.namespace = replace(self.namespace, model_fingerprint=fingerprint)

    async def taken(self) -> tuple[set[str], set[str]]:
        """Steps without work until all ranks have taken something: what, and what of it failed in any."""
        received, failed = list[set[str]](), set[str]()
        async with asyncio.timeout(10):
            for side in self.decode.ranks:
                while not (found := side.half.taken())[0]:  # noqa: ASYNC110  (step after step)
                    await asyncio.sleep(0.005)
                received.append(found[0])
                failed |= found[1]
        return set.intersection(*received), failed

    async def left(self, side: Side, req_id: str) -> None:
        """Until vLLM may have the ended request's blocks back, by the word of all ranks."""
        async with asyncio.timeout(10):
            for one in side.ranks:
                ended = {req_id}
                while req_id not in one.half.finished(ended):
                    ended = set()
                    await asyncio.sleep(0.005)

    async def release(self, rid: RequestId) -> None:
        async with asyncio.timeout(10):
            while not await self.prefill.line.release(rid):  # noqa: ASYNC110  (as the scheduler does)
                await asyncio.sleep(0.005)
        await self.decode.line.release(rid)

    async def turn(self, name: str, tokens: Sequence[int], seed: int) -> torch.Tensor:
        """A whole prompt without hits, computed, handed over, taken and stored; what its KV is."""
        request = self.request(name, tokens)
        rid, num_blocks = request.request_id, -(-len(tokens) // BLOCK)
        order = await self.read(request, 0, ())
        line = self.prefill.line.hand_over(order)
        assert await anext(line)
        ids = tuple(range(1, num_blocks + 1))
        made = self.compute(ids, seed)
        await self.step(self.prefill, StepWork(pushes=[Push(name, rid, 0, ids, is_last=True)]))
        assert [item async for item in line] == []
        writing = await self.persisting(request, 0)
        await self.step(self.decode, StepWork(loads=[Load(name, rid, 0, ids)]))
        assert await self.taken() == ({name}, set())
        for side, expected in zip(self.decode.ranks, made, strict=True):
            assert torch.equal(side.content(ids), expected)
        await self.decode.line.stop(rid)
        await writing
        await self.left(self.prefill, name)
        await self.release(rid)
        return made[0]

    def compute(self, block_ids: Sequence[int], seed: int) -> list[torch.Tensor]:
        """What each rank of the prefill server might have made."""
        is_split = self.namespace.num_ranks > 1
        return [side.fill(block_ids, seed + 100 * n * is_split) for n, side in enumerate(self.prefill.ranks)]

    def told(self, request: Request, what: str) -> list[BlockKey]:
        """Of one kind, in all steps of the decode line."""
        return [key for step in self.written[request.request_id] for key in getattr(step, what)]


def save(name: str, block: int, block_id: int, tokens: Sequence[int]) -> Save:
    return Save(name, RequestId(name), block, block_id, tuple(tokens))


def settings(role: Any, folder: Path, **changes: Any) -> ConnectorSettings:
    told: dict[str, Any] = {"num_slots": 16, "num_write_slots": 4, "transfer_s": 5.0, "slot_s": 5.0} | changes
    return ConnectorSettings(role=role, engine_id=f"{role[0]}0", port=0, store_url=f"file://{folder}/store", **told)


def model_dir(where: Path, seed: int) -> Path:
    """A model of one weight, whose files are all that there is of it."""
    where.mkdir(exist_ok=True)
    (where / "config.json").write_text('{"model_type": "none"}')
    weight = torch.rand(8, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weight}, where / "model.safetensors")
    return where


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


@asynccontextmanager
async def nodes(
    folder: Path, device: str = "cpu", *, num_ranks: int = 1, is_same: bool = False, **changes: Any
) -> AsyncIterator[Nodes]:
    """Introduced to each other. ``is_same``: the ranks' KV, as with MLA. On the way out nothing is held, or it is an
    AssertionError."""
    model_dir(folder / "start", 0)
    async with AsyncExitStack() as stack:
        prefill, decode = [
            await _server(stack, role, folder, device, num_ranks, changes, is_same=is_same)
            for role in ("prefill", "decode")
        ]
        await prefill.line.add_peer(decode.line.info.peer_metadata)
        await decode.line.add_peer(prefill.line.info.peer_metadata)
        yield Nodes(prefill, decode, prefill.node.report().namespace)
        for side in (*prefill.ranks, *decode.ranks):
            await _idle(side)


async def _server(
    stack: AsyncExitStack, role: str, folder: Path, device: str, num_ranks: int, told: dict[str, Any], *, is_same: bool
) -> Side:
    """Its first rank, which knows the others."""
    start, caches = folder / "start", [kv_caches(device) for _ in range(num_ranks)]
    table = Table(num_ranks)
    ranks = [FakeRanks(rank, num_ranks, table) if num_ranks > 1 else None for rank in range(num_ranks)]

    def make(rank: int) -> Node:
        found: VllmKv = find_kv(caches[rank], BLOCK)
        namespace = find_namespace(start, found, "0", ("eager", "TEST"), num_ranks, is_same=is_same)
        weights = NodeWeights(start, namespace, str(start), rank=rank)
        model = ModelFacts("m", 4096)
        node = Node(settings(role, folder, **told), namespace, found, model, SECRET, weights, ranks=ranks[rank])
        node.start()
        return node

    made = await asyncio.gather(*(asyncio.to_thread(make, rank) for rank in range(num_ranks)))
    for node in made:
        stack.push_async_callback(asyncio.to_thread, node.close)
    channel: Any = SocketChannel("127.0.0.1", made[0].port, SECRET)
    stack.push_async_callback(channel.close)
    link = NodeLink(NodeId(role), channel, LinkConfig(), lambda *_: None, lambda _: None)
    await link.start()
    stack.push_async_callback(link.close)
    line = stub(PrefillNodeLine if role == "prefill" else DecodeNodeLine)(link, EngineId(f"{role[0]}0"))
    sides = []
    for cache, node, one in zip(caches, made, ranks, strict=True):
        engine = node.engine
        if isinstance(engine, StagedPrefill):
            half: Any = PrefillWorkerHalf(engine, None if one is None else one.gather)
        else:
            half = DecodeWorkerHalf(engine)
        sides.append(Side(cache, node, line, half))
    sides[0].others = sides[1:]
    return sides[0]


async def _idle(side: Side) -> None:
    """Slots come back a moment after the last write has been told."""
    for _ in range(400):
        if side.traffic.slots.num_used == 0:
            break
        await asyncio.sleep(0.005)
    side.check_idle()
