"""Two real nodes in this process over tensors that stand for vLLM's KV, and vLLM's order of calls."""

from __future__ import annotations

import asyncio
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
from dualpath.vllm.worker.half import DecodeWorkerHalf, PrefillWorkerHalf
from dualpath.vllm.worker.kv_region import VllmKv, find_kv
from dualpath.vllm.worker.node import ModelFacts, Node
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
        for slot in slots:
            self.decode.traffic.slot_view(slot)[:] = bytes([POISON]) * len(self.decode.traffic.slot_view(slot))
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
        """One step of vLLM, on a thread as there. ``compute``: what its model does in a layer."""

        def run() -> None:
            half = side.half
            half.preempted(work.preempted)
            half.begin(work)
            is_prefill = isinstance(half, PrefillWorkerHalf)
            if is_prefill and work.loads:
                half.start_load()
            for layer in range(LAYERS) if is_prefill else ():
                half.wait_layer(layer)
                compute(layer)
                half.layer_computed(layer)
            if not (is_prefill and work.loads):
                half.start_load()
            half.end_step()

        await asyncio.to_thread(run)

    async def change(self, weights: Weights, reload: Callable[[str], None] = lambda _: None) -> None:
        """Of both, while neither computes."""
        for side in (self.prefill, self.decode):
            fingerprint = await side.line.name_weights(weights)
            await asyncio.to_thread(side.half.change_weights, weights, reload)
        self.namespace = replace(self.namespace, model_fingerprint=fingerprint)

    async def taken(self) -> tuple[set[str], set[str]]:
        """Steps without work until something has been taken."""
        async with asyncio.timeout(10):
            while not (found := self.decode.half.taken())[0]:  # noqa: ASYNC110  (step after step)
                await asyncio.sleep(0.005)
        return found

    async def left(self, side: Side, req_id: str) -> None:
        """Until vLLM may have the ended request's blocks back."""
        async with asyncio.timeout(10):
            ended = {req_id}
            while req_id not in side.half.finished(ended):
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
        made = self.prefill.fill(ids, seed)
        await self.step(self.prefill, StepWork(pushes=[Push(name, rid, 0, ids, is_last=True)]))
        assert [item async for item in line] == []
        writing = await self.persisting(request, 0)
        await self.step(self.decode, StepWork(loads=[Load(name, rid, 0, ids)]))
        assert await self.taken() == ({name}, set())
        assert torch.equal(self.decode.content(ids), made)
        await self.decode.line.stop(rid)
        await writing
        await self.left(self.prefill, name)
        await self.release(rid)
        return made


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


@asynccontextmanager
async def nodes(folder: Path, device: str = "cpu", **changes: Any) -> AsyncIterator[Nodes]:
    """Introduced to each other. On the way out nothing is held, or it is an AssertionError."""
    start = model_dir(folder / "start", 0)
    async with AsyncExitStack() as stack:
        sides = []
        for role, protocol in (("prefill", PrefillNodeLine), ("decode", DecodeNodeLine)):
            caches = kv_caches(device)
            found: VllmKv = find_kv(caches, BLOCK)
            namespace = Namespace("f" * 32, found.dtype, found.geometry, "test", found.layout)
            told, weights = settings(role, folder, **changes), NodeWeights(start, namespace, str(start))
            node = Node(told, namespace, found, ModelFacts("m", 4096), SECRET, weights)
            await asyncio.to_thread(node.start)
            stack.push_async_callback(asyncio.to_thread, node.close)
            channel = SocketChannel("127.0.0.1", node.port, SECRET)
            stack.push_async_callback(channel.close)
            link = NodeLink(NodeId(role), channel, LinkConfig(), lambda *_: None, lambda _: None)
            await link.start()
            stack.push_async_callback(link.close)
            half = PrefillWorkerHalf if role == "prefill" else DecodeWorkerHalf
            line = stub(protocol)(link, EngineId(f"{role[0]}0"))
            sides.append(Side(caches, node, line, half(node.engine)))  # type: ignore[arg-type]
        prefill, decode = sides
        await prefill.line.add_peer(decode.line.info.peer_metadata)
        await decode.line.add_peer(prefill.line.info.peer_metadata)
        it = Nodes(prefill, decode, namespace)
        yield it
        for side in sides:
            await idle(side)


async def idle(side: Side) -> None:
    """Slots come back a moment after the last write has been told."""
    for _ in range(400):
        if side.traffic.slots.num_used == 0:
            break
        await asyncio.sleep(0.005)
    side.check_idle()
