"""One gateway's place at the desk: the attempts that it has there, and every question and note of its requests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dualpath.core.errors import EngineLostError, EngineSilentError, OverloadedError
from dualpath.core.ids import BlockKey, EngineId, PeerId, RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.plan import ReadPlan, Role
from dualpath.core.request import RecordAnswer, RecordQuery
from dualpath.core.weights import WeightEpoch
from dualpath.scheduler.blocks import WriteLedger
from dualpath.scheduler.demand import Demand, Placement
from dualpath.scheduler.desk.api import Abort, DeskStats, Inquiry, Link, Note, Outlook, PauseState, Registered
from dualpath.scheduler.desk.stay import Stay
from dualpath.scheduler.policy.path_choice import PathQuestion, path_policy

_LOOK_S = 0.25

if TYPE_CHECKING:
    from dualpath.scheduler.desk.desk import Desk


class Seat:
    """``api.DeskClient`` in the desk's own process. Event loop only."""

    def __init__(self, desk: Desk, caller: str = "") -> None:
        """``caller``: NAME.LIFE of a gateway in another process; it watches the desk's news and does what they say."""
        self.desk, self.is_elsewhere = desk, bool(caller)
        self.name = caller.rpartition(".")[0]
        self.num_paused = 0  # the number of the latest pause state that holds there
        self.aborts: dict[int, Abort] = {}  # that have not been
        self.inquiries: dict[int, Inquiry] = {}  # that have not been answered
        self._news = asyncio.Event()
        self.on_engine_lost: Callable[[EngineId], None] = lambda engine_id: self._news.set()
        self.stays: dict[RequestId, Stay] = {}

    # -- questions ----------------------------------------------------------------------------------------------------

    async def place(self, demand: Demand) -> Placement:
        desk, request_id = self.desk, demand.request_id
        if demand.sequence < 0:
            if self.is_full:
                raise OverloadedError("too many requests are waiting", retry_after_s=desk.config.retry_after_s)
            demand = replace(demand, sequence=desk.next_sequence())
        self.withdrawn(request_id)  # who asks does not have it
        if desk.engine_loads.is_known(request_id):  # to a seat that was given up, and engines may hold it yet
            raise EngineSilentError(f"{request_id} is being given back")
        found = replace(await desk.placer.place(demand), epoch=desk.updates.epoch)
        peers = desk.peer_of(found.prefill), desk.peer_of(found.decode)
        placement = replace(found, prefill_peer=peers[0], decode_peer=peers[1], sequence=demand.sequence)
        connection = desk.peering.connection(placement.prefill, placement.decode)
        self.stays[request_id] = self._new_stay(request_id, placement, connection)
        return placement

    def _new_stay(self, request_id: RequestId, placement: Placement, connection: int) -> Stay:
        desk = self.desk
        nodes = {Role.PREFILL: desk.node_of(placement.prefill), Role.DECODE: desk.node_of(placement.decode)}
        return Stay(request_id, placement, nodes, connection, desk.engine_loads, desk.index)

    async def count_known(self, keys: tuple[BlockKey, ...]) -> int:
        return self.desk.index.match(keys)

    async def look_up(self, request_id: RequestId, keys: tuple[BlockKey, ...]) -> int:
        index, stay = self.desk.index, self._stay(request_id)
        known = keys[: index.match(keys)]
        if not known:
            return 0
        stay.pin(known[-1])
        num_stored = await index.wait_durable(known, self.desk.config.durable_timeout_s)
        if num_stored:
            index.touch(known[num_stored - 1])
        return num_stored

    async def plan_reading(self, request_id: RequestId, num_hit_blocks: int) -> ReadPlan:
        desk, stay = self.desk, self._stay(request_id)
        prefill_node, decode_node = stay.nodes[Role.PREFILL], stay.nodes[Role.DECODE]
        question = PathQuestion(
            num_hit_blocks=num_hit_blocks,
            block_tokens=desk.block_tokens,
            prefill_queue_tokens=desk.engine_loads.read_queue_tokens(prefill_node),
            decode_queue_tokens=desk.engine_loads.read_queue_tokens(decode_node),
            prefill_rate=desk.config.nic_rate(prefill_node),
            decode_rate=desk.config.nic_rate(decode_node),
            sequence=desk.num_planned,
            prefill_is_stalled=desk.health.is_stalled(prefill_node),
            decode_is_stalled=desk.health.is_stalled(decode_node),
        )
        plan = path_policy(desk.config.path_policy)(question)
        desk.num_planned += 1 if num_hit_blocks else 0
        stay.begin_read(0, Role.PREFILL, plan.num_prefill_blocks * desk.block_tokens)
        stay.begin_read(1, Role.DECODE, plan.num_decode_blocks * desk.block_tokens)
        return plan

    async def check(self, engine_ids: tuple[EngineId, ...]) -> None:
        await asyncio.gather(*map(self.desk.health.check, engine_ids))

    async def check_weights(self, engine_ids: tuple[EngineId, ...]) -> None:
        await asyncio.gather(*map(self.desk.updates.check, engine_ids))

    async def fate(self, engine_id: EngineId, peer_id: PeerId) -> bool:
        """So a request that ends every engine that it comes to has not all of them down at once, and deaths are told
        from broken lines."""
        return await self.desk.fate(engine_id, peer_id)

    async def pause(self, mode: PauseMode) -> bool:
        return await self.desk.broadcast.pause(mode)

    async def resume(self) -> None:
        await self.desk.broadcast.resume()

    async def update_weights(self, directory: str, version: str | None) -> WeightEpoch:
        return await self.desk.updates.update(directory, version)

    async def flush(self) -> None:
        self.desk.updates.flush()

    async def stats(self) -> DeskStats:
        return await self.desk.stats()

    # -- from another process -----------------------------------------------------------------------------------------

    async def register(self, attempts: tuple[Registered, ...], pause: PauseState | None) -> None:
        known = {attempt.request_id for attempt in attempts}
        for request_id in [request_id for request_id in self.stays if request_id not in known]:
            self.withdrawn(request_id)
        for attempt in attempts:
            if attempt.request_id not in self.stays:
                self._inherit(attempt)
        self.desk.broadcast.hear(self, pause)

    def _inherit(self, attempt: Registered) -> None:
        """It was placed by a former scheduler. What of it is broken is so under whatever connection there is now."""
        placement = attempt.placement
        stay = self.stays[attempt.request_id] = self._new_stay(attempt.request_id, placement, sys.maxsize)
        stay.ledger = WriteLedger(self.desk.index, self.desk.index.shelf, is_doubted=True)
        stay.ledger.begin()
        stay.is_mute = placement.epoch != self.desk.updates.epoch  # other weights': nobody looks for its blocks here
        stay.left = dict.fromkeys(attempt.left)
        tokens = {placement.prefill: placement.num_prefill_tokens, placement.decode: attempt.num_decode_tokens}
        loads = self.desk.engine_loads
        for engine_id in attempt.left:
            if not loads.has(attempt.request_id, engine_id):  # or it is being given back
                loads.assign(attempt.request_id, engine_id, tokens[engine_id])

    async def take(self, notes: tuple[Note, ...]) -> None:
        from dualpath.scheduler.desk.notes import carry_out  # msgspec only where notes come over a link

        carry_out(notes, self)

    async def watch(self) -> AsyncIterator[Outlook]:
        latest: Outlook | None = None
        while True:
            aborts, inquiries = tuple(self.aborts.values()), tuple(self.inquiries.values())
            outlook = replace(self.desk.outlook(), aborts=aborts, inquiries=inquiries)
            if outlook != latest:
                yield outlook
                latest = outlook
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._news.wait()
            self._news.clear()

    async def abort(self, names: tuple[str, ...] | None) -> int:
        return await self.desk.broadcast.abort(names)

    async def records(self, query: RecordQuery) -> RecordAnswer:
        return await self.desk.broadcast.records(query, self)

    async def answer(self, number: int, found: RecordAnswer) -> None:
        if self.inquiries.pop(number, None) is not None:
            self.desk.broadcast.answered(number, found)

    def tell(self) -> None:
        """There is news."""
        self._news.set()

    def _stay(self, request_id: RequestId) -> Stay:
        stay = self.stays.get(request_id)
        if stay is None:
            raise EngineLostError(f"{request_id} is not placed")
        return stay

    # -- notes --------------------------------------------------------------------------------------------------------

    def withdrawn(self, request_id: RequestId) -> None:
        if stay := self.stays.get(request_id):
            for engine_id in list(stay.left):
                self.released(request_id, engine_id)

    def read_begins(self, request_id: RequestId, number: int, role: Role, num_tokens: int) -> None:
        if stay := self.stays.get(request_id):
            stay.begin_read(number, role, num_tokens)

    def read_ends(self, request_id: RequestId, number: int) -> None:
        if stay := self.stays.get(request_id):
            stay.end_read(number)

    def reads_ended(self, request_id: RequestId) -> None:
        self.desk.placer.wake()

    def reading_over(self, request_id: RequestId) -> None:
        if stay := self.stays.get(request_id):
            stay.end_reading()

    def blocks_gone(self, keys: tuple[BlockKey, ...]) -> None:
        for key in keys:
            self.desk.index.forget(key)

    def writes_begin(self, request_id: RequestId) -> None:
        if stay := self.stays.get(request_id):
            stay.ledger.begin()

    def wrote(
        self, request_id: RequestId, begun: tuple[Link, ...], durable: tuple[Link, ...], failed: tuple[BlockKey, ...]
    ) -> None:
        stay = self.stays.get(request_id)
        if stay is not None and not stay.is_mute:
            stay.ledger.writing(begun)
            stay.ledger.durable(durable)
            stay.ledger.failed(failed)
            if durable or failed:
                self.desk.blocks_stored()

    def writes_end(self, request_id: RequestId) -> None:
        if stay := self.stays.get(request_id):
            stay.ledger.close()

    def grown(self, request_id: RequestId, num_tokens: int) -> None:
        if stay := self.stays.get(request_id):
            stay.grow(num_tokens)

    def path_broken(self, request_id: RequestId) -> None:
        if stay := self.stays.get(request_id):
            placement = stay.placement
            self.desk.peering.path_broken(placement.prefill, placement.decode, stay.connection)

    def released(self, request_id: RequestId, engine_id: EngineId) -> None:
        stay = self.stays.get(request_id)
        if stay is not None and stay.release(engine_id):
            del self.stays[request_id]
        self.desk.placer.wake()

    def paused(self, number: int) -> None:
        self.num_paused = max(self.num_paused, number)

    def aborted(self, number: int, num_requests: int) -> None:
        if self.aborts.pop(number, None) is not None:
            self.desk.broadcast.count_aborted(number, num_requests)

    # -- as of now ----------------------------------------------------------------------------------------------------

    @property
    def max_prompt_tokens(self) -> int:
        return self.desk.placer.max_prompt_tokens

    @property
    def epoch(self) -> WeightEpoch:
        return self.desk.updates.epoch

    @property
    def is_full(self) -> bool:
        return self.desk.placer.num_waiting >= self.desk.config.max_queued_requests

    @property
    def has_engines(self) -> bool:
        return self.desk.placer.has_engines

    @property
    def alone_s(self) -> float:
        return self.desk.alone_s

    def problems(self) -> tuple[str, ...]:
        return self.desk.problems()

    def is_gone(self, peer_id: PeerId) -> bool:
        return False  # the engines' links can tell

    def is_held(self, first_id: RequestId) -> bool:
        return self.desk.releaser.is_held(first_id)
