"""One engine of several ranks: the first rank's node has the control line, and asks the others' nodes what it is asked.

A block is there when every rank has its part, a prompt is handed over when every rank has pushed its own, a block is
durable when every rank's part is. A decode slot has the same number in every rank: the first one's pool grants it, the
others wait until theirs has it free, too. Ranks move KV with their likes of the other side only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, Protocol, cast

import msgspec

from dualpath.core.errors import ConfigError, DeadlineExceededError
from dualpath.core.ids import BlockKey, PeerId, RequestId
from dualpath.core.latency import LatencyCounts
from dualpath.core.plan import Role
from dualpath.core.stats import EngineStats
from dualpath.core.weights import Weights
from dualpath.protocol.api import DecodeOrder, DecodeStep, EngineInfo, PrefillOrder, ReadOutcome
from dualpath.protocol.methods import holds
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine
from dualpath.vllm.worker.staged import StagedNode
from dualpath.vllm.worker.staged_decode import StagedDecode
from dualpath.vllm.worker.staged_prefill import StagedPrefill
from dualpath.vllm.worker.tasks import Task

_LOOK_S = 0.1
_MOMENT_S = 1.0


class Ranks(Protocol):
    """The ranks of one server, in this one's worker."""

    rank: int
    num_ranks: int

    def gather(self, mine: Any) -> list[Any]:
        """What each rank has given, in order. All call it, equally often; it returns when they have. vLLM's thread."""
        ...


class DecodeRankLine(DecodeNodeLine, Protocol):
    """What the first rank asks another one."""

    @holds
    async def reserve_these(self, request_id: RequestId, slots: Sequence[int], limit_s: float) -> None:
        """Instead of ``reserve``: wait until these are free here, too."""
        ...

    async def used_slots(self, slots: Sequence[int]) -> tuple[int, ...]:
        """Those of them that are not free here."""
        ...


class _Ranked(Generic[Task]):
    """Methods run on the first rank's event loop. ``others`` are stubs over its links, in the order of ranks."""

    role: Role

    def __init__(self, own: StagedNode[Task], others: Sequence[Any]) -> None:
        self._own, self._others = own, tuple(others)
        self._ranks: tuple[Any, ...] = (own, *others)

    @property
    def info(self) -> EngineInfo:
        infos = [rank.info for rank in self._ranks]
        return replace(
            infos[0],
            max_prompt_tokens=min(info.max_prompt_tokens for info in infos),
            device_kv_tokens=min(info.device_kv_tokens for info in infos),
            peer_metadata=msgspec.msgpack.encode([info.peer_metadata for info in infos]),
        )

    async def add_peer(self, peer_metadata: bytes) -> None:
        """Raises ConfigError where the peer has not as many ranks."""
        try:
            found = msgspec.msgpack.decode(peer_metadata, type=list[bytes])
        except msgspec.MsgspecError:
            found = [peer_metadata]
        if len(found) != len(self._ranks):
            raise ConfigError(f"{len(found)} ranks on the other side, {len(self._ranks)} here: they must be equal")
        await _all(rank.add_peer(one) for rank, one in zip(self._ranks, found, strict=True))

    async def remove_peer(self, peer: PeerId) -> None:
        await _each(rank.remove_peer(peer) for rank in self._ranks)

    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes = b""
    ) -> ReadOutcome:
        found = await _all(rank.read(request_id, blocks, namespace_digest) for rank in self._ranks)
        gone = frozenset[int]().union(*(outcome.gone for outcome in found))
        failed = frozenset[int]().union(*(outcome.failed for outcome in found))
        ok = frozenset[int].intersection(*(outcome.ok for outcome in found))
        return ReadOutcome(ok, gone, failed - gone, sum(outcome.num_bytes for outcome in found))

    async def stats(self) -> EngineStats:
        return merged(await _all(rank.stats() for rank in self._ranks))

    async def weights(self) -> tuple[Weights, str]:
        return await self._own.weights()

    async def name_weights(self, weights: Weights) -> str:
        """Raises ConfigError also where ranks read different files."""
        found = await _all(rank.name_weights(weights) for rank in self._ranks)
        if len(set(found)) > 1:
            raise ConfigError(f"{weights.directory} is not the same for every rank")
        return cast(str, found[0])

    async def door_key(self) -> str:
        return await self._own.door_key()


class RankedPrefill(_Ranked[Any]):
    """``line.PrefillNodeLine``."""

    role = Role.PREFILL

    def __init__(self, own: StagedPrefill, others: Sequence[PrefillNodeLine]) -> None:
        super().__init__(own, others)

    async def peer_at_rest(self, peer: PeerId) -> None:
        await _each(rank.peer_at_rest(peer) for rank in self._ranks)

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        await _all(rank.reserve(request_id, num_slots, num_prompt_blocks) for rank in self._ranks)

    async def hand_over(self, order: PrefillOrder) -> AsyncIterator[bool]:
        async with AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(aclosing(rank.hand_over(order))) for rank in self._ranks]
            await _all(anext(line) for line in lines)
            yield True
            await _all(_rest(line) for line in lines)

    async def release(self, request_id: RequestId) -> bool:
        """Every rank is asked, whatever the others say."""
        return all(await _each(rank.release(request_id) for rank in self._ranks))


class RankedDecode(_Ranked[Any]):
    """``line.DecodeNodeLine``."""

    role = Role.DECODE

    def __init__(self, own: StagedDecode, others: Sequence[DecodeRankLine]) -> None:
        super().__init__(own, others)
        self._own_decode, self._telling = own, dict[RequestId, _Telling]()
        self._num_storing = 1 if own.parts.whole is None else len(self._ranks)
        self._watches: dict[asyncio.Task[None], None] = {}

    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        """Slots that another rank moves in or out of for longer than a moment stay out of use here, too: others are
        taken then."""
        now_s, limit_s = self._own.parts.runtime.now_s, self._own.parts.settings.slot_s
        end_s = now_s() + limit_s
        while True:
            slots = await self._own_decode.reserve(request_id, num_slots)
            try:
                await _all(rank.reserve_these(request_id, slots, _MOMENT_S) for rank in self._others)
            except DeadlineExceededError:
                if now_s() > end_s:
                    raise
            else:
                return slots
            await _each(rank.release(request_id) for rank in self._others)
            self._keep_out(await self._used(slots))
            await self._own_decode.release(request_id)

    def _keep_out(self, slots: set[int]) -> None:
        """While another rank has them. They are granted here."""
        self._own.parts.traffic.slots.hold(slots)
        watch = asyncio.create_task(self._watch(slots))
        self._watches[watch] = None
        watch.add_done_callback(lambda ended: self._watches.pop(ended, None))

    async def _used(self, slots: Sequence[int]) -> set[int]:
        """In any other rank."""
        return set[int]().union(*await _all(rank.used_slots(slots) for rank in self._others))

    async def _watch(self, slots: set[int]) -> None:
        while slots:
            await self._own.parts.runtime.sleep_s(_LOOK_S)
            used = await self._used(sorted(slots))
            self._own.parts.traffic.slots.unhold(slots - used)
            slots = used

    async def persist(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        request_id, votes = order.request.request_id, _Votes(self._num_storing)
        telling = self._telling[request_id] = _Telling()
        async with AsyncExitStack() as stack:
            stack.callback(self._telling.pop, request_id, None)
            stack.callback(telling.end)
            lines = [await stack.enter_async_context(aclosing(rank.persist(order))) for rank in self._ranks]
            firsts = await _all(anext(line) for line in lines)
            yield votes.of_one(0, firsts[0]) or DecodeStep()
            pumps = [asyncio.create_task(telling.take(number, line)) for number, line in enumerate(lines)]
            stack.push_async_callback(_end, pumps)
            num_running = len(pumps)
            while num_running:
                number, item = await telling.steps.get()
                try:
                    if isinstance(item, Exception):
                        raise item
                    if item is None:
                        num_running -= 1
                    elif (step := votes.of_one(number, item)) is not None:
                        yield step
                finally:
                    telling.steps.task_done()
            if (rest := votes.rest()) is not None:
                yield rest

    async def stop(self, request_id: RequestId) -> None:
        telling = self._telling.get(request_id)
        await _each(rank.stop(request_id) for rank in self._ranks)
        if telling is not None:
            await telling.told()

    async def release(self, request_id: RequestId) -> None:
        """The first rank last: whoever is granted its slots then finds them free in the others, or soon."""
        await _each(rank.release(request_id) for rank in self._others)
        await self._own_decode.release(request_id)

    async def close(self) -> None:
        await _end(self._watches)


class _Telling:
    """What the ranks tell of one request's blocks, on its way out."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[tuple[int, DecodeStep | Exception | None]] = asyncio.Queue()
        self._is_over = asyncio.Event()

    async def take(self, number: int, line: AsyncGenerator[DecodeStep, None]) -> None:
        end: Exception | None = None
        try:
            async for step in line:
                self.steps.put_nowait((number, step))
        except Exception as error:  # raised by whoever reads the queue
            end = error
        self.steps.put_nowait((number, end))

    async def told(self) -> None:
        """All of it so far, or nobody listens any more."""
        waits = [asyncio.create_task(self.steps.join()), asyncio.create_task(self._is_over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(waits)

    def end(self) -> None:
        self._is_over.set()


@dataclass(slots=True)
class _Votes:
    """Whether blocks are durable, by all ranks that store them. The first rank says which are being written."""

    num_ranks: int
    _open: dict[BlockKey, list[bool]] = field(default_factory=dict)
    _told: dict[BlockKey, None] = field(default_factory=dict)  # that they are being written, and no more yet

    def of_one(self, number: int, step: DecodeStep) -> DecodeStep | None:
        """What is to be said, if anything."""
        if number == 0:
            self._told.update(dict.fromkeys(step.writing))
        durable, failed = list[BlockKey](), list[BlockKey]()
        for keys, is_durable in ((step.durable, True), (step.not_persisted, False)):
            for key in keys:
                votes = self._open.setdefault(key, [])
                votes.append(is_durable)
                if len(votes) == self.num_ranks:
                    (durable if all(votes) else failed).append(key)
                    del self._open[key], self._told[key]
        own = step if number == 0 else DecodeStep()
        said = replace(own, durable=tuple(durable), not_persisted=tuple(failed))
        return said if said != DecodeStep() else None

    def rest(self) -> DecodeStep | None:
        """Blocks of which not all ranks have told: they are not whole."""
        return DecodeStep(not_persisted=tuple(self._told)) if self._told else None


def merged(stats: Sequence[EngineStats]) -> EngineStats:
    """Of the ranks of one engine: what they have moved and hold together; queues and slots are the same in each."""
    first, found = stats[0], dict[str, Any]()
    for name in (one.name for one in fields(EngineStats)):
        values = [getattr(one, name) for one in stats]
        if name in ("engine_id", "node_id", "role", "num_forwards", "num_requests", "staging_slots"):
            continue
        if name in _LARGEST:
            found[name] = max(values)
        elif isinstance(values[0], LatencyCounts):
            found[name] = _sum_of_latencies(values)
        elif isinstance(values[0], dict):
            found[name] = {key: sum(one.get(key, 0) for one in values) for key in {k: None for v in values for k in v}}
        elif name in ("peers", "broken_peers"):
            found[name] = tuple(dict.fromkeys(peer for one in values for peer in one))
        elif not isinstance(values[0], tuple):
            found[name] = sum(values)
    return replace(first, **found)


_LARGEST = (
    "read_queue_tokens",
    "staging_slots_used",
    "staging_slots_aside",
    "storage_stalled_s",
    "prefill_push_s",
    "prefill_forward_s",
)


def _sum_of_latencies(values: Sequence[LatencyCounts]) -> LatencyCounts:
    counts = [one.counts for one in values if one.counts]
    return LatencyCounts(tuple(map(sum, zip(*counts, strict=True))), sum(one.total_s for one in values))


async def _rest(line: AsyncIterator[Any]) -> None:
    async for _ in line:
        pass


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Their results. Raises the first failure, and ends the others then."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await _end(tasks)
    return [task.result() for task in tasks]


async def _each(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Their results. All are made to their end; then the first failure is raised."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return list(found)


async def _end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
