"""A decode engine by itself, with a model that counts: whenever a request is given up, its memory comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch

from dualpath.core.errors import EngineLostError, KvCorruptError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import Namespace, chain_keys, root_key
from dualpath.core.plan import Role
from dualpath.core.request import Request, SamplingParams, TokenEvent
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.decode import DecodeConfig, DecodeEngine
from dualpath.engine.integrity import Integrity
from dualpath.models.compute_stream import HostStream
from dualpath.models.seam import DecodeBatch, LayerStream, ModelSpec, PrefillItem
from dualpath.protocol.api import DecodeOrder, DecodeStep
from dualpath.store.header import HEADER_BYTES, payload_digests
from dualpath.store.open import open_store
from dualpath.testing.faulty_store import FaultyIo
from dualpath.traffic.fake_transport import FakeFabric
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.storage_nic import StorageNic

BLOCK = 4
VOCAB = 1000
GEOMETRY = KvGeometry(num_layers=2, block_tokens=BLOCK, bytes_per_token_layer=8)
NAMESPACE = Namespace("counting", "float32", GEOMETRY, "cpu")


class CountingModel:
    """Every token is followed by the next number."""

    spec = ModelSpec("counting", "counting", "0" * 32, 2, 8, torch.float32, VOCAB, 1000, ())
    device = torch.device("cpu")
    lost = None

    def prefill(self, items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
        raise NotImplementedError

    def decode(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(batch.token_ids + 1, VOCAB).float()


@pytest.fixture
def io() -> FaultyIo:
    return FaultyIo(open_store("memory://decode-engine", NAMESPACE, GEOMETRY).open_io(None, SystemRuntime()))


@pytest.fixture
async def engine(io: FaultyIo) -> AsyncIterator[DecodeEngine]:
    """Device memory for eight blocks. Nothing is held in the end."""
    clock = SystemRuntime()
    traffic = TrafficManager(
        engine_id=EngineId("decode-0"),
        node_id=NodeId("decode-0"),
        role=Role.DECODE,
        geometry=GEOMETRY,
        namespace_digest=NAMESPACE.digest,
        num_slots=16,
        num_write_slots=2,
        transport=FakeFabric().transport(PeerId("decode-0.1")),
        open_io=lambda _: io,
        storage_nic=StorageNic(None, clock),
        runtime=clock,
        storage_deadline_s=0.1,
    )
    engine = DecodeEngine(
        engine_id=EngineId("decode-0"),
        node_id=NodeId("decode-0"),
        model=CountingModel(),
        geometry=GEOMETRY,
        namespace=NAMESPACE,
        traffic=traffic,
        config=DecodeConfig(device_kv_tokens=8 * BLOCK),
    )
    await engine.start()
    yield engine
    await idle(engine)
    traffic.slots.check_integrity()
    traffic.write_slots.check_integrity()
    await engine.close()


async def idle(engine: DecodeEngine) -> None:
    """Until nothing is held. What is left over shows in the assertion."""
    for _ in range(500):
        stats = await engine.stats()
        held = stats.num_requests, stats.device_kv_used_bytes, stats.staging_slots_used
        if not any(held):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"(requests, device bytes, staging slots) held in the end: {held}")


async def handed_over(engine: DecodeEngine, name: str, num_prompt: int, max_tokens: int) -> DecodeOrder:
    """A request whose prompt lies in the decode buffer; its first token is 100."""
    request_id = RequestId(name)
    slots = await engine.reserve(request_id, GEOMETRY.blocks_for(num_prompt))
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    request = Request(request_id, tuple(range(num_prompt)), params)
    keys = tuple(chain_keys(root_key(NAMESPACE), request.prompt_token_ids, BLOCK))
    integrity = Integrity(engine.traffic, NAMESPACE)
    for slot, block in zip(slots, integrity.names(request, keys), strict=True):
        payload = engine.traffic.slot_view(slot)[HEADER_BYTES:]
        digests = payload_digests(payload, GEOMETRY, block.num_tokens)
        integrity.slot_header(slot)[:] = integrity.header(block, digests)
    return DecodeOrder(request, 0, TokenEvent(100), keys)


async def tokens(steps: AsyncIterator[DecodeStep]) -> list[int]:
    return [event.token_id async for step in steps for event in step.tokens]


@pytest.mark.parametrize("num_turns", range(12))
async def test_a_client_may_go_at_any_turn_of_the_event_loop(engine: DecodeEngine, num_turns: int) -> None:
    orders = [await handed_over(engine, f"r{i}", 6, 40) for i in range(3)]
    listeners = [asyncio.create_task(tokens(engine.decode(order))) for order in orders]
    for _ in range(num_turns):
        await asyncio.sleep(0)
    for listener, order in zip(listeners, orders, strict=True):
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        await engine.release(order.request.request_id)
    await idle(engine)
    order = await handed_over(engine, "next", 6, 10)
    assert await tokens(engine.decode(order)) == list(range(101, 110))
    await engine.release(order.request.request_id)


async def test_a_prompt_that_is_not_what_it_was_is_told_as_such(engine: DecodeEngine) -> None:
    order = await handed_over(engine, "r", 6, 10)
    engine.traffic.slot_view(engine.traffic.slots.granted[0])[HEADER_BYTES + 1] ^= 1
    with pytest.raises(KvCorruptError):
        await tokens(engine.decode(order))
    await engine.release(order.request.request_id)


async def test_storage_that_takes_no_write_to_its_end_keeps_no_device_memory(
    engine: DecodeEngine, io: FaultyIo
) -> None:
    io.hang_writes()
    async with asyncio.timeout(30):
        for number in range(5):
            order = await handed_over(engine, f"r{number}", 6, 13)
            assert await tokens(engine.decode(order)) == list(range(101, 113))
            await engine.release(order.request.request_id)
    io.unhang()


async def test_memory_that_a_stalled_batch_gives_back_goes_to_who_waits_for_it(
    engine: DecodeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, may_end = engine.traffic.copy, asyncio.Event()

    async def hang(*arguments: Any) -> int:
        monkeypatch.setattr(engine.traffic, "copy", copy)
        copied = await copy(*arguments)
        await may_end.wait()
        return copied

    monkeypatch.setattr(engine.traffic, "copy", hang)
    sizes = (("leaving", 6, 40), ("growing", 16, 40), ("waiting", 6, 10))
    leaving, growing, waiting = [await handed_over(engine, *size) for size in sizes]
    listener = asyncio.create_task(tokens(engine.decode(leaving)))
    for _ in range(20):
        await asyncio.sleep(0)
    listener.cancel()  # its two blocks are being filled, and come back later
    steps = engine.decode(growing)
    last = 100
    while last < 108:  # with 24 tokens it has the other six, and cannot go on
        last = max([last, *(event.token_id for event in (await anext(steps)).tokens)])
    listener = asyncio.create_task(tokens(engine.decode(waiting)))
    for _ in range(20):
        await asyncio.sleep(0)
    await engine.release(growing.request.request_id)
    async with asyncio.timeout(30):
        assert await listener == list(range(101, 110))
    may_end.set()
    for order in (leaving, waiting):
        await engine.release(order.request.request_id)


class CountingStream(HostStream):
    """What a device's stream is asked, in order."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def drain(self) -> None:
        self._told.append("drained")


async def test_a_failed_step_drains_the_device_before_its_blocks_are_anybodys(
    engine: DecodeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    engine._compute = CountingStream(told)

    def fail(*_: Any) -> torch.Tensor:
        told.append("failed")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._model, "decode", fail)
    free = engine._pool.free
    monkeypatch.setattr(engine._pool, "free", lambda blocks: (told.append("freed"), free(blocks)))
    steps = engine.decode(await handed_over(engine, "a", 5, 4))
    with pytest.raises(EngineLostError, match="out of memory"):
        await tokens(steps)
    await idle(engine)
    assert told == ["failed", "drained", "freed"]


async def test_memory_is_zero_before_anything_is_copied_into_it(
    engine: DecodeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros are written by the compute stream, copies come by another."""
    told: list[str] = []
    engine._compute = CountingStream(told)

    def start() -> None:
        told.append("traffic")
        raise RuntimeError("enough")

    monkeypatch.setattr(engine._traffic, "start", start)
    with pytest.raises(RuntimeError, match="enough"):
        await engine.start()
    assert told == ["drained", "traffic"]
