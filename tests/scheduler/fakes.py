"""Engines without a model: they keep the contract of dualpath.protocol.api, take virtual time, and fail on command.

They check what real engines rely on: slots before reads, every hit block where the order says it is, no decode slot
given away while bytes may still arrive in it, nobody told of rest where there is none, and nothing held at the end.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.scheduler.fixtures import BLOCK, GEOMETRY, NAMESPACE

from dualpath.core.errors import (
    DualPathError,
    EngineGoneError,
    EngineLostError,
    EngineSilentError,
    PathBrokenError,
    PreemptedError,
    TransferError,
)
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId, peer_id
from dualpath.core.keys import chain_keys, child_key, root_key
from dualpath.core.plan import Role
from dualpath.core.request import FinishReason, Request, TokenEvent
from dualpath.core.runtime import Runtime
from dualpath.core.stats import EngineStats
from dualpath.core.weights import Weights
from dualpath.protocol.api import DecodeOrder, DecodeStep, EngineInfo, PrefillOrder, ReadOutcome
from dualpath.store.contract import StoredBlock, StoreIo
from dualpath.store.header import object_bytes

STOP_TOKEN = 7


def sampled(request: Request, position: int) -> int:
    """A function of (seed, position) and of everything before it."""
    assert request.sampling.seed is not None
    return 1000 + (request.sampling.seed * 31 + position * 7919) % 9973


def token_event(request: Request, tokens: Sequence[int], num_generated: int) -> TokenEvent:
    """The token behind ``tokens``, the ``num_generated``-th that these engines make for the request."""
    reason = FinishReason.LENGTH if num_generated >= request.sampling.max_tokens else None
    return TokenEvent(sampled(request, len(tokens)), finish_reason=reason)


@dataclass
class FakeStorage:
    """What is durable, whoever wrote it. Also the BlockStore of the service; its blocks have no bytes."""

    blocks: set[BlockKey] = field(default_factory=set)
    deleted: list[BlockKey] = field(default_factory=list)
    url: str = "fake://"
    namespace_digest: bytes = NAMESPACE.digest
    geometry: KvGeometry = GEOMETRY

    def open_io(self, agent: Any, runtime: Runtime) -> StoreIo:
        raise NotImplementedError

    def list_blocks(self) -> Iterator[StoredBlock]:
        return (StoredBlock(key, object_bytes(self.geometry), 0.0) for key in sorted(self.blocks))

    def exists(self, key: BlockKey) -> bool:
        return key in self.blocks

    def read_header(self, key: BlockKey) -> bytes:
        raise NotImplementedError

    def delete(self, key: BlockKey) -> None:
        self.blocks.discard(key)
        self.deleted.append(key)

    def used_bytes(self) -> int:
        return len(self.blocks) * object_bytes(self.geometry)

    def free_bytes(self) -> int | None:
        return None

    def try_write(self, num_bytes: int | None = None) -> None:
        """There is room."""

    def close(self) -> None: ...


@dataclass
class Slots:
    """A staging buffer: first come, first served."""

    capacity: int
    held: dict[RequestId, int] = field(default_factory=dict)
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)

    @property
    def free(self) -> int:
        return self.capacity - sum(self.held.values())

    async def acquire(self, request_id: RequestId, count: int) -> None:
        assert count <= self.capacity
        if self.waiting or count > self.free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append((count, turn))
            try:
                await turn
            except asyncio.CancelledError:
                self.waiting = deque(item for item in self.waiting if item[1] is not turn)
                self.admit()
                raise
        self.held[request_id] = self.held.get(request_id, 0) + count

    def release(self, request_id: RequestId) -> None:
        self.held.pop(request_id, None)
        self.admit()

    def admit(self) -> None:
        if self.waiting and self.waiting[0][0] <= self.free:
            _, turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self.admit)


class FakeEngine:
    """What both roles share. ``faults[operation]`` are raised one by one; an operation takes ``delay_s[operation]``."""

    role: Role

    def __init__(self, name: str, storage: FakeStorage, slots: int = 64, device_tokens: int = 1 << 16) -> None:
        peer = peer_id(EngineId(name), "0")
        self.info = EngineInfo(
            EngineId(name), peer, NodeId(f"node-{name}"), self.role, slots * BLOCK, device_tokens, peer.encode()
        )
        self.incarnation = 0
        self.storage = storage
        self.slots = Slots(slots)
        self.delay_s: dict[str, float] = defaultdict(lambda: 0.01)
        self.faults: dict[str, deque[Exception]] = defaultdict(deque)
        self.failing_keys: set[BlockKey] = set()
        self.trouble: EngineLostError | None = None  # what every call raises
        self.troubled = asyncio.Event()
        self.peers: set[PeerId] = set()
        self.has = Weights()
        self.is_paused = False  # as it was last told; it computes all the same
        self.storage_stalled_s = 0.0
        self.log: list[tuple[str, RequestId]] = []
        self.read_blocks: dict[RequestId, set[int]] = defaultdict(set)
        self.slot_of: dict[RequestId, dict[int, int]] = {}
        self.active: set[RequestId] = set()
        self.violations: list[str] = []  # of the contract, noticed where an exception would be taken for a fault

    @property
    def is_gone(self) -> bool:
        return isinstance(self.trouble, EngineGoneError)

    def die(self) -> None:
        """The process ends, and everybody is told."""
        self._fail(EngineGoneError(f"{self.info.engine_id} is dead"))

    def fall_silent(self) -> None:
        """Nothing is heard of it, but it goes on."""
        self._fail(EngineSilentError(f"{self.info.engine_id} is silent"))

    def _fail(self, trouble: EngineLostError) -> None:
        self.trouble = trouble
        self.troubled.set()

    def speak(self) -> None:
        """A silent engine answers again, and is the same."""
        self.trouble = None
        self.troubled = asyncio.Event()

    def come_back(self) -> None:
        """A fresh process: it remembers nothing."""
        self.speak()
        self.incarnation += 1
        peer = peer_id(self.info.engine_id, str(self.incarnation))
        self.info = replace(self.info, peer_id=peer, peer_metadata=peer.encode())
        self.peers.clear()
        self.slots = Slots(self.slots.capacity)
        self.read_blocks.clear()
        self.slot_of.clear()
        self.active.clear()

    async def work(self, operation: str, request_id: RequestId, until: asyncio.Event | None = None) -> None:
        """Time passes; then the operation fails if it was told to, or if the engine got into trouble meanwhile."""
        self.log.append((operation, request_id))
        self.check_alive()
        await self.pass_time(self.delay_s[operation], until)
        if self.faults[operation]:
            raise self.faults[operation].popleft()

    async def pass_time(self, seconds: float, until: asyncio.Event | None = None) -> None:
        """``until`` ends it early."""
        incarnation = self.incarnation
        waits = [asyncio.ensure_future(event.wait()) for event in (self.troubled, until) if event is not None]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self.check_alive()
        if self.incarnation != incarnation:
            raise EngineGoneError(f"{self.info.engine_id} has been started again")

    def check_alive(self) -> None:
        if self.trouble is not None:
            raise type(self.trouble)(str(self.trouble))

    def expect(self, is_kept: bool, rule: str) -> None:
        if not is_kept:
            self.violations.append(rule)

    async def pause(self) -> None:
        self.check_alive()
        self.is_paused = True

    async def resume(self) -> None:
        self.check_alive()
        self.is_paused = False

    async def add_peer(self, peer_metadata: bytes) -> None:
        await self.work("add_peer", RequestId(""))
        self.peers.add(PeerId(peer_metadata.decode()))

    async def weights(self) -> tuple[Weights, str]:
        self.check_alive()
        return self.has, self.has.directory or NAMESPACE.model_fingerprint

    async def load_weights(self, weights: Weights) -> str:
        await self.work("load_weights", RequestId(""))
        return weights.directory or NAMESPACE.model_fingerprint  # of the start

    async def use_weights(self, weights: Weights) -> None:
        await self.work("use_weights", RequestId(""))
        self.has = weights

    async def drop_weights(self, weights: Weights) -> None:
        self.check_alive()

    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes = b""
    ) -> ReadOutcome:
        await self.work("read", request_id)
        ok, gone, failed = set(), set(), set()
        for index, key in blocks:
            kind = failed if key in self.failing_keys else ok if key in self.storage.blocks else gone
            kind.add(index)
        self.read_blocks[request_id] |= ok
        moved = tuple((index, self.move_slot(request_id, index)) for index in sorted(failed))
        return ReadOutcome(frozenset(ok), frozenset(gone), frozenset(failed), len(ok), moved)

    def move_slot(self, request_id: RequestId, index: int) -> int:
        """A late read may still write the block's slot: it gets another."""
        slots = self.slot_of.setdefault(request_id, {})
        slots[index] = slots.get(index, index) + 1000
        return slots[index]

    async def stats(self) -> EngineStats:
        self.check_alive()
        return EngineStats(
            self.info.engine_id,
            self.info.node_id,
            self.role,
            peers=tuple(sorted(self.peers)),
            broken_peers=self.broken_peers,
            storage_stalled_s=self.storage_stalled_s,
        )

    @property
    def broken_peers(self) -> tuple[PeerId, ...]:
        return ()

    def forget(self, request_id: RequestId) -> None:
        self.slots.release(request_id)
        self.read_blocks.pop(request_id, None)
        self.slot_of.pop(request_id, None)

    @property
    def holds_nothing(self) -> bool:
        return not self.slots.held and not self.read_blocks and not self.active and not self.slots.waiting


class FakePrefill(FakeEngine):
    role = Role.PREFILL

    def __init__(self, name: str, storage: FakeStorage, decode: dict[EngineId, FakeDecode], slots: int = 64) -> None:
        super().__init__(name, storage, slots)
        self.decode_engines = decode
        self.busy_releases = 0  # so many releases answer False
        self.cut: set[EngineId] = set()  # decode engines with which transfers fail
        self.removed: dict[PeerId, asyncio.Event] = defaultdict(asyncio.Event)
        self.unsettled: dict[PeerId, set[RequestId]] = {}  # failed transfers that may still move over there

    @property
    def broken_peers(self) -> tuple[PeerId, ...]:
        return tuple(self.unsettled)

    def come_back(self) -> None:
        super().come_back()
        self.unsettled.clear()

    async def add_peer(self, peer_metadata: bytes) -> None:
        peer = PeerId(peer_metadata.decode())
        if peer in self.unsettled:
            raise TransferError(f"{peer} has not come to rest; try again later")
        await super().add_peer(peer_metadata)

    def decode_of(self, peer: PeerId) -> FakeDecode | None:
        """The engine while it is in that incarnation."""
        return next((engine for engine in self.decode_engines.values() if engine.info.peer_id == peer), None)

    async def remove_peer(self, peer: PeerId) -> None:
        await self.work("remove_peer", RequestId(""))
        self.peers.discard(peer)
        self.removed.pop(peer, asyncio.Event()).set()

    async def peer_at_rest(self, peer: PeerId) -> None:
        await self.work("peer_at_rest", RequestId(""))
        decode = self.decode_of(peer)
        self.expect(peer not in self.peers, f"{peer} is at rest, but was not removed")
        is_at_rest = decode is None or decode.is_gone or not decode.late.get(self.info.peer_id)
        self.expect(is_at_rest, f"{peer} is not at rest")
        self.unsettled.pop(peer, None)

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        assert 0 < num_slots <= num_prompt_blocks
        await self.work("reserve", request_id)
        await self.slots.acquire(request_id, num_slots)

    async def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
        request_id = order.request.request_id
        self.active.add(request_id)
        try:
            await self.work("batch", request_id)
            self._check(order)
            yield None
            await self._move(order)
            yield token_event(order.request, order.request.prompt_token_ids, 1)
        finally:
            self.active.discard(request_id)

    async def _move(self, order: PrefillOrder) -> None:
        """Compute, and fill the decode engine's slots. What fails in between may still arrive there."""
        peer, request_id = order.decode_peer, order.request.request_id
        if peer not in self.peers:
            raise PathBrokenError(f"{peer} is not known")
        removed, me = self.removed[peer], self.info.peer_id
        try:
            await self.work("prefill", request_id, removed)
            decode = self.decode_of(peer)
            if removed.is_set() or decode is None or decode.is_gone or decode.info.engine_id in self.cut:
                raise PathBrokenError(f"transfers with {peer} failed")
        except (EngineLostError, TransferError):
            decode = self.decode_of(peer)
            if decode is not None:
                decode.late[me].add(request_id)
            if self.info.peer_id == me:
                self.unsettled.setdefault(peer, set()).add(request_id)
            await asyncio.sleep(self.delay_s["explain"])
            raise

    def _check(self, order: PrefillOrder) -> None:
        """Every hit block is where the order says."""
        request_id, num_hit = order.request.request_id, order.num_hit_tokens // BLOCK
        prompt, salt = order.request.prompt_token_ids, order.request.cache_salt
        self.expect(order.num_hit_tokens < len(prompt), "no token to compute")
        self.expect(list(order.keys) == chain_keys(root_key(NAMESPACE, salt), prompt, BLOCK), "other keys")
        self.expect(order.prefill_blocks <= self.read_blocks.get(request_id, set()), "blocks that were not read")
        decode = self.decode_of(order.decode_peer)
        if decode is not None and request_id in decode.slots.held:  # else it died
            on_decode = set(range(num_hit)) - order.prefill_blocks
            self.expect(on_decode <= decode.read_blocks.get(request_id, set()), "decode blocks that were not read")
            self.expect(len(order.decode_slots) == decode.slots.held[request_id], "other decode slots")
            self.expect(dict(enumerate(order.decode_slots)) == decode.slot_of[request_id], "moved decode slots")

    async def release(self, request_id: RequestId) -> bool:
        await self.work("release", request_id)
        self.expect(request_id not in self.active, f"{request_id} is released while it is prefilled")
        if any(request_id in requests for requests in self.unsettled.values()):
            return False
        if self.busy_releases:
            self.busy_releases -= 1
            return False
        self.forget(request_id)
        for decode in self.decode_engines.values():
            decode.released_by_prefill.add(request_id)
        return True


class FakeDecode(FakeEngine):
    role = Role.DECODE

    def __init__(self, name: str, storage: FakeStorage, slots: int = 64, device_tokens: int = 1 << 16) -> None:
        super().__init__(name, storage, slots, device_tokens)
        self.late: dict[PeerId, set[RequestId]] = defaultdict(set)  # whose slots bytes of a prefill engine may reach
        self.released_by_prefill: set[RequestId] = set()
        self.lossy_release = False  # True: prefill engines die in this scenario, so the order cannot be checked
        self.preempt_after: dict[RequestId, int] = {}
        self.failing_writes: set[BlockKey] = set()
        self.num_decoding = self.max_decoding = 0
        self.stopped: dict[RequestId, asyncio.Event] = {}

    def come_back(self) -> None:
        super().come_back()
        self.late.clear()

    async def remove_peer(self, peer: PeerId) -> None:
        await self.work("remove_peer", RequestId(""))
        self.peers.discard(peer)
        self.late.pop(peer, None)

    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        await self.work("reserve", request_id)
        await self.slots.acquire(request_id, num_slots)
        strangers = [peer for peer, requests in self.late.items() if not requests <= self.slots.held.keys()]
        self.expect(not strangers, f"slots handed out that {strangers} may still write")
        self.slot_of[request_id] = {index: index for index in range(num_slots)}
        return tuple(range(num_slots))

    async def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        request_id = order.request.request_id
        self.active.add(request_id)
        writer = Writer(self, order)
        self.stopped[request_id] = asyncio.Event()
        try:
            writing = order.keys[order.num_hit_tokens // BLOCK :]
            writer.start(writing)
            yield DecodeStep(writing=writing)
            if order.first_token.finish_reason is None and await self._work_unless_stopped("admit", request_id):
                yield DecodeStep(admitted=True)
                async for step in self._steps(order, writer):
                    yield step
            while writer.tasks:
                await asyncio.wait(writer.tasks)
                yield writer.settled()
        finally:
            writer.cancel()
            self.active.discard(request_id)
            del self.stopped[request_id]

    async def stop(self, request_id: RequestId) -> None:
        if request_id in self.stopped:
            self.stopped[request_id].set()

    async def _work_unless_stopped(self, call: str, request_id: RequestId) -> bool:
        """False: the request was stopped in the meantime."""
        work = asyncio.ensure_future(self.work(call, request_id))
        stop = asyncio.ensure_future(self.stopped[request_id].wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            return not stop.done()
        finally:
            for future in (work, stop):
                future.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)

    async def _steps(self, order: DecodeOrder, writer: Writer) -> AsyncIterator[DecodeStep]:
        request = order.request
        tokens = [*request.prompt_token_ids, order.first_token.token_id]
        num_generated = 1
        while True:
            if not await self._work_unless_stopped("step", request.request_id):
                return
            if num_generated == self.preempt_after.get(request.request_id):
                raise PreemptedError("preempted")
            event = token_event(request, tokens, num_generated + 1)
            writing = writer.completed(tokens)
            tokens.append(event.token_id)
            num_generated += 1
            done = writer.settled()
            yield DecodeStep((event,), writing=writing, durable=done.durable, not_persisted=done.not_persisted)
            if event.finish_reason is not None:
                return

    async def release(self, request_id: RequestId) -> None:
        await self.work("release", request_id)
        self.expect(request_id not in self.active, f"{request_id} is released while it decodes")
        self.expect(self.lossy_release or request_id in self.released_by_prefill, f"{request_id}: decode went first")
        late = [peer for peer, requests in self.late.items() if request_id in requests]
        self.expect(not late, f"{request_id}: slots given away that {late} may still write")
        self.forget(request_id)


class Writer:
    """One request's writes to storage."""

    def __init__(self, engine: FakeDecode, order: DecodeOrder) -> None:
        self.engine = engine
        self.parent = order.keys[-1] if order.keys else root_key(NAMESPACE, order.request.cache_salt)
        self.tasks: dict[asyncio.Task[None], BlockKey] = {}

    def start(self, keys: Sequence[BlockKey]) -> None:
        for key in keys:
            self.tasks[asyncio.ensure_future(self._write(key))] = key

    async def _write(self, key: BlockKey) -> None:
        await asyncio.sleep(self.engine.delay_s["write"])
        if key in self.engine.failing_writes:
            raise DualPathError("storage is full")
        self.engine.storage.blocks.add(key)

    def completed(self, tokens: Sequence[int]) -> tuple[BlockKey, ...]:
        """The KV of all ``tokens`` is there: perhaps one more Full Block."""
        if len(tokens) % BLOCK:
            return ()
        self.parent = child_key(self.parent, tokens[-BLOCK:])
        self.start([self.parent])
        return (self.parent,)

    def settled(self) -> DecodeStep:
        done = [task for task in self.tasks if task.done()]
        keys = {task: self.tasks.pop(task) for task in done}
        failed = {task for task in done if task.exception() is not None}
        return DecodeStep(
            durable=tuple(key for task, key in keys.items() if task not in failed),
            not_persisted=tuple(key for task, key in keys.items() if task in failed),
        )

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()
