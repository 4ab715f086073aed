"""A prefill and a decode engine with the real scheduler on virtual time, for faults at exact places.

The model's next token depends on every byte of KV, so a wrong byte that is used is a wrong token; at the end every
stored object is computed again and compared.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dualpath.core.ids import EngineId, NodeId, PeerId, RequestId, peer_id
from dualpath.core.plan import Role
from dualpath.core.request import Request, RequestRecord, SamplingParams
from dualpath.engine.decode import DecodeConfig, DecodeEngine
from dualpath.engine.prefill import PrefillConfig, PrefillEngine
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.scheduler import Scheduler
from dualpath.store import memory
from dualpath.store.header import HEADER_BYTES, object_bytes
from dualpath.store.index import BlockIndex
from dualpath.store.memory import MemoryStore
from dualpath.testing.checks import check_engines, check_stored
from dualpath.testing.client import Book
from dualpath.testing.hash_model import BLOCK_TOKENS, GEOMETRY, NAMESPACE, VOCAB, HashModel
from dualpath.testing.loop import VirtualLoop
from dualpath.testing.runtime import VirtualRuntime
from dualpath.traffic.contract import Op
from dualpath.traffic.fake_transport import FakeFabric, Fate
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.storage_nic import StorageNic

PREFILL, DECODE = EngineId("prefill-0"), EngineId("decode-0")
_urls = itertools.count()
Scenario = Callable[["Pair"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: list[int]
    record: RequestRecord

    @property
    def num_hit_blocks(self) -> int:
        return self.record.num_hit_tokens // BLOCK_TOKENS


class Pair:
    """``fates`` are met by the next transfers of their kind, one each: (operation, is it of headers, fate)."""

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        path: str = "split",
        max_batch_tokens: int = 8192,
        streams_layers: bool = True,
        verifies: bool = True,
    ) -> None:
        self.runtime = VirtualRuntime(loop, 0)
        self.fates: list[tuple[Op, bool, Fate]] = []
        self.fabric = FakeFabric(self.runtime, delay_s=0.001, judge=self._judge, at=loop.call_at)
        self.url = f"memory://pair-{next(_urls)}"
        self.store = MemoryStore(self.url, NAMESPACE.digest, GEOMETRY)
        self.book = Book()
        self._path = path
        self.prefill = PrefillEngine(
            engine_id=PREFILL,
            node_id=NodeId("prefill"),
            model=HashModel(self.runtime),
            geometry=GEOMETRY,
            namespace=NAMESPACE,
            traffic=self._traffic(PREFILL, Role.PREFILL),
            config=PrefillConfig(
                128, verifies, streams_layers, max_batch_tokens, slot_deadline_s=5.0, transfer_deadline_s=1.0
            ),
            runtime=self.runtime,
        )
        self.decode = DecodeEngine(
            engine_id=DECODE,
            node_id=NodeId("decode"),
            model=HashModel(self.runtime),
            geometry=GEOMETRY,
            namespace=NAMESPACE,
            traffic=self._traffic(DECODE, Role.DECODE),
            config=DecodeConfig(400, verifies, slot_deadline_s=5.0),
            runtime=self.runtime,
        )

    def _traffic(self, engine_id: EngineId, role: Role) -> TrafficManager:
        return TrafficManager(
            engine_id=engine_id,
            node_id=NodeId(role.value),
            role=role,
            geometry=GEOMETRY,
            namespace_digest=NAMESPACE.digest,
            num_slots=60,
            num_write_slots=2 if role is Role.DECODE else 0,
            transport=self.fabric.transport(peer_id(engine_id, "1")),
            open_io=lambda _: self.store.open_io(None, self.runtime),
            storage_nic=StorageNic(None, self.runtime),
            runtime=self.runtime,
            storage_deadline_s=1.0,
            transfer_deadline_s=1.0,
        )

    async def start(self) -> None:
        await self.prefill.start()
        await self.decode.start()
        scheduler = self.scheduler = Scheduler(
            prefill_engines=[self.prefill],
            decode_engines=[self.decode],
            index=BlockIndex(object_bytes(GEOMETRY), self.runtime),
            store=self.store,
            namespace=NAMESPACE,
            model_name="hash",
            max_context_tokens=400,
            config=SchedulerConfig(path_policy=self._path, default_nic_bytes_per_s=1e6),
            runtime=self.runtime,
        )
        self.service, self.desk = scheduler.service, scheduler.desk
        await scheduler.start()

    async def ask(self, prompt: Sequence[int], num_tokens: int = 6) -> Answer:
        """Every token is compared with the right one."""
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        request = Request(RequestId(f"r{len(self.book.sequences)}"), tuple(prompt), params)
        right = self.book.truth.answer(prompt, num_tokens)
        self.book.sequences[request.request_id] = ("", (*prompt, *right))
        tokens = [event.token_id async for event in self.service.generate(request)]
        assert tokens == right, "a wrong token"
        record = self.service.record(request.request_id)
        assert record is not None
        return Answer(tokens, record)

    @property
    def num_corrupt(self) -> int:
        return sum(engine.traffic.stats().kv_corrupt for engine in (self.prefill, self.decode))

    async def rest(self) -> int:
        """Wait until all writes have ended; nothing is held, nothing wrong is stored. Returns how many blocks are."""
        await asyncio.sleep(30.0)
        check_engines([self.prefill, self.decode])
        return check_stored(self.store, self.book, set())

    async def close(self) -> None:
        await self.scheduler.close(1.0)
        await self.prefill.close()
        await self.decode.close()
        memory.forget(self.url)

    def _judge(self, op: Op, initiator: PeerId, peer: PeerId, num_bytes: int) -> Fate:
        is_of_headers = num_bytes % HEADER_BYTES == 0  # a layer of all that fits the workspace is less
        for index, (fated_op, of_headers, fate) in enumerate(self.fates):
            if (fated_op, of_headers) == (op, is_of_headers):
                del self.fates[index]
                return fate
        return Fate()


def flip(view: memoryview, byte: int) -> None:
    view[byte] ^= 0x10


def flip_unit(traffic: TrafficManager, region_name: str, unit: int) -> None:
    """A bit of a Layer Block in one of an engine's regions."""
    address = int(traffic._memory.regions[region_name].addresses[unit])
    ctypes.c_uint8.from_address(address + 5).value ^= 0x10


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    return [(seed * 311 + i * 17 + i * i // 3) % VOCAB for i in range(num_tokens)]


def run(scenario: Scenario, **settings: object) -> None:
    """Hold a scenario with a pair that has just been started."""
    loop = VirtualLoop(0)
    loop.max_steps = 1_000_000

    async def hold() -> None:
        pair = Pair(loop, **settings)  # type: ignore[arg-type]
        await pair.start()
        await scenario(pair)
        await pair.close()

    loop.run_until_complete(hold())
    loop.close()
