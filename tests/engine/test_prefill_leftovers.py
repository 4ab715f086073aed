"""A decode engine falls silent under a forward: the prefill engine goes on, and keeps what transfers can touch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dualpath.core.errors import EngineLostError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import EngineId, NodeId, RequestId, peer_id
from dualpath.core.keys import Namespace, chain_keys, root_key
from dualpath.core.plan import Role
from dualpath.core.request import Request, SamplingParams
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.prefill import PrefillConfig, PrefillEngine
from dualpath.models.init import init_model
from dualpath.models.load import load_model
from dualpath.protocol.api import PrefillOrder
from dualpath.store.header import HEADER_BYTES
from dualpath.store.open import open_store
from dualpath.traffic.fake_transport import FakeFabric
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.storage_nic import StorageNic

BLOCK_TOKENS = 16
PROMPT = tuple(32 + (i * 11 + i * i // 3) % 90 for i in range(3 * BLOCK_TOKENS + 5))
NUM_BLOCKS = 4
DECODE = [EngineId("decode-0"), EngineId("decode-1"), EngineId("decode-2")]


@dataclass
class Cluster:
    prefill: PrefillEngine
    decode: dict[EngineId, TrafficManager]
    fabric: FakeFabric
    namespace: Namespace
    num_orders: int = 0

    async def ask(self, decode: EngineId) -> tuple[RequestId, int, bytes]:
        """Prefill PROMPT for a decode engine: its first token, and what is in the engine's buffer then."""
        self.num_orders += 1
        request_id = RequestId(f"r{self.num_orders}")
        manager = self.decode[decode]
        slots = tuple(await manager.slots.acquire(NUM_BLOCKS, 1.0))
        request = Request(request_id, PROMPT, SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))
        keys = tuple(chain_keys(root_key(self.namespace), PROMPT, BLOCK_TOKENS))
        order = PrefillOrder(request, 0, frozenset(), manager.peer_id, slots, keys)
        tokens = [event async for event in self.prefill.prefill(order) if event]
        payload = self.payload(decode, slots)
        manager.slots.release(slots)
        return request_id, tokens[0].token_id, payload

    def payload(self, decode: EngineId, slots: tuple[int, ...]) -> bytes:
        """KV of the prompt's full blocks."""
        views = [np.frombuffer(self.decode[decode].slot_view(slot), dtype=np.uint8) for slot in slots[:-1]]
        return b"".join(view[HEADER_BYTES:].tobytes() for view in views)

    async def lose(self, decode: EngineId) -> RequestId:
        """The engine falls silent in the middle of a request."""
        self.fabric.hang(decode)
        with pytest.raises(EngineLostError):
            await self.ask(decode)
        return RequestId(f"r{self.num_orders}")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("llama", tmp_path_factory.mktemp("leftovers") / "model", layers=3)


@pytest.fixture
async def running(model_dir: Path) -> AsyncIterator[Cluster]:
    model = load_model(model_dir)
    geometry = KvGeometry(model.spec.num_layers, BLOCK_TOKENS, model.spec.bytes_per_token_layer)
    fabric, clock = FakeFabric(), SystemRuntime()
    namespace = Namespace("leftovers", "float32", geometry, "cpu")
    store = open_store("memory://leftovers", namespace.digest, geometry)

    def manager(engine_id: EngineId, role: Role) -> TrafficManager:
        return TrafficManager(
            engine_id=engine_id,
            node_id=NodeId(engine_id),
            role=role,
            geometry=geometry,
            namespace_digest=namespace.digest,
            num_slots=3 * NUM_BLOCKS,
            num_write_slots=1,
            transport=fabric.transport(peer_id(engine_id, "1")),
            open_io=lambda transport: store.open_io(transport.agent, SystemRuntime()),
            storage_nic=StorageNic(None, clock),
            runtime=clock,
        )

    decode = {engine_id: manager(engine_id, Role.DECODE) for engine_id in DECODE}
    prefill = PrefillEngine(
        engine_id=EngineId("prefill-0"),
        node_id=NodeId("prefill-0"),
        model=model,
        geometry=geometry,
        namespace=namespace,
        traffic=manager(EngineId("prefill-0"), Role.PREFILL),
        config=PrefillConfig(workspace_tokens=NUM_BLOCKS * BLOCK_TOKENS, transfer_deadline_s=0.2),
    )
    await prefill.start()
    for one in decode.values():
        one.start()
        await prefill.add_peer(one.metadata())
    yield Cluster(prefill, decode, fabric, namespace)
    for engine_id in DECODE:
        fabric.unhang(engine_id)
    await prefill.close()
    for one in decode.values():
        one.close()


async def released(prefill: PrefillEngine, request_id: RequestId) -> None:
    async with asyncio.timeout(10):
        while not await prefill.release(request_id):  # noqa: ASYNC110  (the engine has no event for it)
            await asyncio.sleep(0.01)


async def test_it_goes_on_in_its_spare_workspace_and_keeps_the_first(running: Cluster) -> None:
    _, token, payload = await running.ask(DECODE[1])
    lost = await running.lose(DECODE[0])
    for _ in range(3):
        done, again, payload_again = await running.ask(DECODE[1])
        assert (again, payload_again) == (token, payload)
        assert await running.prefill.release(done)
        assert not await running.prefill.release(lost), "its transfers may still write the decode buffer"
        assert running.prefill._workspace.in_use[1] > 0, "the first workspace is not free"
    await running.prefill.stats()
    running.fabric.unhang(DECODE[0])
    await released(running.prefill, lost)
    for decode in DECODE:
        assert (await running.ask(decode))[1:] == (token, payload)


async def test_without_a_spare_it_is_out_of_service_until_transfers_end(running: Cluster) -> None:
    _, token, payload = await running.ask(DECODE[1])
    lost = [await running.lose(decode) for decode in DECODE[:2]]
    with pytest.raises(EngineLostError, match="out of service"):
        await running.prefill.stats()
    with pytest.raises(EngineLostError, match="out of service"):
        await running.ask(DECODE[2])
    running.fabric.unhang(DECODE[1])
    await released(running.prefill, lost[1])
    assert (await running.ask(DECODE[2]))[1:] == (token, payload)
    assert not await running.prefill.release(lost[0])
    running.fabric.unhang(DECODE[0])
    await released(running.prefill, lost[0])
