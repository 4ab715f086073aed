"""A decode engine of several ranks: slots of one number in all, and blocks that are durable when every part is.

The first rank's pool grants the slots of a prompt, the others take the same ones when theirs has them free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from dualpath.core.errors import DeadlineExceededError
from dualpath.core.ids import BlockKey, RequestId
from dualpath.core.plan import Role
from dualpath.protocol.api import DecodeOrder, DecodeStep
from dualpath.protocol.methods import holds
from dualpath.vllm.line import DecodeNodeLine
from dualpath.vllm.together import all_or_none, each, end_all
from dualpath.vllm.worker.ranked import Ranked
from dualpath.vllm.worker.staged_decode import StagedDecode

_LOOK_S = 0.1
_MOMENT_S = 1.0


class DecodeRankLine(DecodeNodeLine, Protocol):
    """What the first rank asks another one."""

    @holds
    async def reserve_these(self, request_id: RequestId, slots: Sequence[int], limit_s: float) -> None:
        """Instead of ``reserve``: wait until these are free here, too."""
        ...

    async def used_slots(self, slots: Sequence[int]) -> tuple[int, ...]:
        """Those of them that are not free here."""
        ...


class RankedDecode(Ranked[StagedDecode]):
    """``line.DecodeNodeLine``."""

    role = Role.DECODE

    def __init__(self, own: StagedDecode, others: Sequence[DecodeRankLine]) -> None:
        super().__init__(own, others)
        self._telling: dict[RequestId, _Telling] = {}
        self._num_storing = 1 if own.parts.whole is None else len(self._ranks)
        self._watches: dict[asyncio.Task[None], None] = {}

    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        """Slots that another rank moves in or out of for longer than a moment stay out of use here, too: others are
        taken then."""
        now_s, limit_s = self._own.parts.runtime.now_s, self._own.parts.settings.slot_s
        end_s = now_s() + limit_s
        while True:
            slots = await self._own.reserve(request_id, num_slots)
            try:
                await all_or_none(rank.reserve_these(request_id, slots, _MOMENT_S) for rank in self._others)
            except DeadlineExceededError:
                if now_s() > end_s:
                    raise
            else:
                return slots
            await each(rank.release(request_id) for rank in self._others)
            self._keep_out(await self._used(slots))
            await self._own.release(request_id)

    def _keep_out(self, slots: set[int]) -> None:
        """While another rank has them. They are granted here."""
        self._own.parts.traffic.slots.hold(slots)
        watch = asyncio.create_task(self._watch(slots))
        self._watches[watch] = None
        watch.add_done_callback(lambda ended: self._watches.pop(ended, None))

    async def _used(self, slots: Sequence[int]) -> set[int]:
        """In any other rank."""
        return set[int]().union(*await all_or_none(rank.used_slots(slots) for rank in self._others))

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
            firsts = await all_or_none(anext(line) for line in lines)
            yield votes.of_one(0, firsts[0]) or DecodeStep()
            pumps = [asyncio.create_task(telling.take(number, line)) for number, line in enumerate(lines)]
            stack.push_async_callback(end_all, pumps)
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
        await each(rank.stop(request_id) for rank in self._ranks)
        if telling is not None:
            await telling.told()

    async def release(self, request_id: RequestId) -> None:
        """The first rank last: whoever is granted its slots then finds them free in the others, or soon."""
        await each(rank.release(request_id) for rank in self._others)
        await self._own.release(request_id)

    async def close(self) -> None:
        await end_all(self._watches)


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
            await end_all(waits)

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
