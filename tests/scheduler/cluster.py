"""A service over fake engines, and what every scenario checks at its end: nothing is held anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.scheduler.fakes import FakeDecode, FakePrefill, FakeStorage, sampled
from tests.scheduler.fixtures import GEOMETRY, NAMESPACE, keys_of
from tests.scheduler.virtual_time import LoopRuntime

from dualpath.core.ids import EngineId
from dualpath.core.request import Request, RequestRecord, TokenEvent
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.desk import Desk
from dualpath.scheduler.scheduler import Scheduler
from dualpath.scheduler.service import Service
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex


@dataclass
class Cluster:
    scheduler: Scheduler
    index: BlockIndex
    storage: FakeStorage
    prefill: list[FakePrefill]
    decode: list[FakeDecode]

    @property
    def desk(self) -> Desk:
        return self.scheduler.desk

    @property
    def service(self) -> Service:
        return self.scheduler.service

    async def run(self, request: Request) -> list[int]:
        return [event.token_id async for event in self.service.generate(request)]

    def start(self, request: Request) -> asyncio.Task[list[int]]:
        return asyncio.create_task(self.run(request))

    def record(self, request: Request) -> RequestRecord:
        record = self.service.record(request.request_id)
        assert record is not None
        return record

    def store_prompt(self, tokens: tuple[int, ...]) -> None:
        """As if an earlier turn had left these tokens' blocks."""
        parent = None
        for key in keys_of(tokens):
            self.index.begin_write(key, parent)
            self.index.publish(key)
            self.storage.blocks.add(key)
            parent = key

    async def quiet(self) -> None:
        """Until all background work has ended, and everybody has been told."""
        while self.service._tasks._work or self.desk.tasks._work:
            assert await self.service._tasks.wait(600.0)
            assert await self.desk.tasks.wait(600.0)
        await asyncio.sleep(0.001)

    def check_nothing_held(self) -> None:
        self.desk.engine_loads.check_integrity()
        self.index.check_integrity()
        assert self.desk.engine_loads.is_idle
        assert not any(seat.stays for seat in self.desk.seats)
        assert not self.index._pins
        assert not self.index._deletions._writers, "an attempt's writes have no end"
        for engine in (*self.prefill, *self.decode):
            assert not engine.violations, engine.violations
            assert engine.trouble or engine.holds_nothing, engine.info.engine_id


@asynccontextmanager
async def cluster(
    *,
    prefill: int = 1,
    decode: int = 1,
    prefill_slots: int = 64,
    decode_slots: int = 64,
    device_tokens: int = 1 << 16,
    config: SchedulerConfig | None = None,
    start: bool = True,
) -> AsyncIterator[Cluster]:
    storage = FakeStorage()
    decoders: dict[EngineId, FakeDecode] = {}
    for i in range(decode):
        engine = FakeDecode(f"d{i}", storage, decode_slots, device_tokens)
        decoders[engine.info.engine_id] = engine
    prefills = [FakePrefill(f"p{i}", storage, decoders, prefill_slots) for i in range(prefill)]
    runtime = LoopRuntime()
    index = BlockIndex(object_bytes(GEOMETRY), runtime)
    scheduler = Scheduler(
        prefill_engines=prefills,
        decode_engines=list(decoders.values()),
        index=index,
        store=storage,
        namespace=NAMESPACE,
        model_name="fake",
        max_context_tokens=4096,
        config=config,
        runtime=runtime,
    )
    if start:
        await scheduler.start()
    built = Cluster(scheduler, index, storage, prefills, list(decoders.values()))
    yield built
    await built.quiet()
    built.check_nothing_held()
    await built.scheduler.close(0.0)
    assert len(built.service._tasks) == len(built.desk.tasks) == 0


def expected(request: Request) -> list[int]:
    """What an uninterrupted run yields."""
    start = len(request.prompt_token_ids)
    return [sampled(request, start + i) for i in range(request.sampling.max_tokens)]


async def until_phase(built: Cluster, request: Request, phase: str, timeout_s: float = 60.0) -> None:
    """Wait until the request is in the phase."""
    async with asyncio.timeout(timeout_s):
        while True:
            record = built.service.record(request.request_id)
            if record is not None and phase in record.phases_s:
                return
            await asyncio.sleep(0.001)


async def take(stream: AsyncIterator[TokenEvent], count: int) -> list[int]:
    return [(await anext(stream)).token_id for _ in range(count)]
