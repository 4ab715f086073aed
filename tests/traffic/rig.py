"""What traffic tests build on: two engines over any transport and store, known bytes, and a clock that tests move."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, peer_id
from dualpath.core.plan import Role
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.store.contract import BlockStore, IoRequest, IoTicket, StoreIo
from dualpath.store.header import HEADER_BYTES, write_header
from dualpath.store.open import open_store
from dualpath.testing.faulty_store import FaultyIo
from dualpath.traffic.contract import Transport
from dualpath.traffic.fake_transport import FakeFabric
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.nixl_transport import NixlTransport
from dualpath.traffic.storage_nic import StorageNic

GEOMETRY = KvGeometry(num_layers=3, block_tokens=4, bytes_per_token_layer=128)
OBJECT_BYTES = HEADER_BYTES + GEOMETRY.full_block_bytes
UNIT_BYTES = GEOMETRY.layer_block_bytes
NAMESPACE = b"n" * 16
ROOT = BlockKey(b"r" * 16)
PREFILL, DECODE = EngineId("prefill-0"), EngineId("decode-0")
PREFILL_PEER, DECODE_PEER = peer_id(PREFILL, "1"), peer_id(DECODE, "1")
_names = itertools.count()


class ManualClock(SystemRuntime):
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s

    def unix_s(self) -> float:
        return self.time_s

    async def sleep_s(self, seconds: float) -> None:
        end_s = self.time_s + seconds
        while self.time_s < end_s:  # noqa: ASYNC110  (the clock is moved from any thread)
            await asyncio.sleep(0.001)


class SpyIo(FaultyIo):
    """Remembers in which order reads were started."""

    def __init__(self, inner: StoreIo, clock: Clock) -> None:
        super().__init__(inner, clock)
        self.started: list[BlockKey] = []

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        self.started.extend(request.key for request in requests)
        return super().submit_reads(requests)


@dataclass
class Engine:
    """One traffic manager with its fault-injecting store I/O; the device region has as many units as staging."""

    manager: TrafficManager
    io: SpyIo
    device: torch.Tensor  # uint8 [units, unit bytes]

    def payload(self, slot: int) -> npt.NDArray[np.uint8]:
        """The Full Block in a staging slot: uint8 [layers, unit bytes]."""
        view = np.frombuffer(self.manager.slot_view(slot), dtype=np.uint8)
        return view[HEADER_BYTES:].reshape(GEOMETRY.num_layers, UNIT_BYTES)

    def take(self, count: int) -> list[int]:
        return asyncio.run(self.manager.slots.acquire(count, 1.0))

    def fill(self, slots: Sequence[int], seed: int = 0) -> list[bytes]:
        """Random bytes into each slot; returns them."""
        random = np.random.default_rng(seed)
        for slot in slots:
            self.payload(slot)[:] = random.integers(0, 256, (GEOMETRY.num_layers, UNIT_BYTES), dtype=np.uint8)
        return [self.payload(slot).tobytes() for slot in slots]

    def write(self, keys: Sequence[BlockKey], slots: Sequence[int]) -> None:
        for transfer in self.manager.write_blocks([(k, ROOT, s) for k, s in zip(keys, slots, strict=True)]):
            assert transfer.future.result(5) == OBJECT_BYTES


@dataclass
class Rig:
    """A prefill and a decode engine that know each other."""

    store: BlockStore
    fabric: FakeFabric | None
    prefill: Engine
    decode: Engine
    more: list[Engine] = field(default_factory=list)

    @property
    def engines(self) -> list[Engine]:
        return [self.prefill, self.decode, *self.more]

    def object_bytes(self, key: BlockKey, slot: int) -> bytes:
        """A stored object with the payload of this decode slot."""
        view = self.decode.manager.slot_view(slot)
        write_header(view, NAMESPACE, key, ROOT, GEOMETRY)
        return bytes(view)

    def close(self) -> None:
        for engine in self.engines:
            engine.io.unhang()
            engine.manager.close()
            engine.manager.slots.check_integrity()
            engine.manager.write_slots.check_integrity()


def make_store(kind: str, directory: Path) -> BlockStore:
    """``kind``: memory, files (in ``directory``), or any store's URL."""
    urls = {"memory": f"memory://traffic-{next(_names)}", "files": f"file://{directory}/blocks"}
    return open_store(urls.get(kind, kind), NAMESPACE, GEOMETRY)


def make_engine(
    engine_id: EngineId,
    role: Role,
    transport: Transport,
    store: BlockStore,
    *,
    clock: SystemRuntime | None = None,
    nic: StorageNic | None = None,
    num_slots: int = 8,
    num_pages: int = 0,
    **settings: Any,
) -> Engine:
    clock = clock or SystemRuntime()
    ios: list[SpyIo] = []

    def open_io(transport: Transport) -> StoreIo:
        ios.append(SpyIo(store.open_io(transport.agent, clock), clock))
        return ios[0]

    manager = TrafficManager(
        engine_id=engine_id,
        node_id=NodeId("node-0"),
        role=role,
        geometry=GEOMETRY,
        namespace_digest=NAMESPACE,
        num_slots=num_slots,
        num_write_slots=2,
        transport=transport,
        open_io=open_io,
        storage_nic=nic or StorageNic(None, clock),
        runtime=clock,
        **settings,
    )
    device = torch.zeros(num_slots * GEOMETRY.num_layers, UNIT_BYTES, dtype=torch.uint8)
    manager.register_device(device)
    if num_pages:
        manager.register_pages(num_pages)
    manager.start()
    return Engine(manager, ios[0], device)


def make_rig(
    transport: str, store: str, directory: Path, *, clock: SystemRuntime | None = None, **settings: Any
) -> Rig:
    blocks = make_store(store, directory)
    fabric = FakeFabric(clock) if transport == "fake" else None
    make: Callable[[PeerId], Transport] = fabric.transport if fabric else NixlTransport
    prefill = make_engine(PREFILL, Role.PREFILL, make(PREFILL_PEER), blocks, clock=clock, **settings)
    decode = make_engine(DECODE, Role.DECODE, make(DECODE_PEER), blocks, clock=clock, **settings)
    prefill.manager.add_peer(decode.manager.metadata())
    decode.manager.add_peer(prefill.manager.metadata())
    return Rig(blocks, fabric, prefill, decode)


def key_of(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(16, "big"))


def wait_until(condition: Callable[[], bool], deadline_s: float = 5.0) -> None:
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true"
        time.sleep(0.001)


def traffic_threads() -> list[str]:
    endings = ("-traffic", "-hash", "-digest", "-copy")
    return [thread.name for thread in threading.enumerate() if thread.name.endswith(endings)]
