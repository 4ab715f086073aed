"""Requests wait for engines: the waiting room of the policy (``policy.waiting_room``), and those who await its answers.

A fetch runs on events: arrival, release, end of a read, an engine lost or back. Several events in one turn of the event
loop cause one fetch. Nobody stalls others: a request that no pair of live, connected engines can hold stands aside
until there is such a pair, then it is the oldest again. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dualpath.core.errors import OverloadedError
from dualpath.core.ids import EngineId
from dualpath.protocol.api import EngineInfo
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.demand import NOBODY, Demand, Placement, too_long
from dualpath.scheduler.engine_loads import EngineLoads
from dualpath.scheduler.policy.engine_load import GroupId
from dualpath.scheduler.policy.waiting import Placed, Waiting


@dataclass(frozen=True, slots=True)
class _Group:
    """Decode engines with one private queue, as large as the smallest of them."""

    engines: tuple[EngineInfo, ...]
    max_prompt_tokens: int
    device_kv_tokens: int


@dataclass(slots=True)
class _Ticket:
    demand: Demand
    placed: asyncio.Future[Placement]


class Placer:
    """Assigns waiting requests to engines and adds the assignments to the engines' loads."""

    def __init__(
        self,
        prefill_engines: Sequence[EngineInfo],
        engine_loads: EngineLoads,
        config: SchedulerConfig,
        is_connected: Callable[[EngineId, EngineId], bool] = lambda prefill_id, decode_id: True,
        is_lost: Callable[[EngineId], bool] = lambda engine_id: False,
    ) -> None:
        self._prefill = {info.engine_id: info for info in prefill_engines}
        self._engine_loads, self._room, self._scope = engine_loads, engine_loads.room, engine_loads.scope
        self._config = config
        self._groups = {group_id: _group(infos) for group_id, infos in engine_loads.groups.items()}
        self._is_connected, self._is_lost = is_connected, is_lost
        prefill_tokens = max((info.max_prompt_tokens for info in prefill_engines), default=0)
        decode_tokens = max((group.max_prompt_tokens for group in self._groups.values()), default=0)
        self.max_prompt_tokens = min(prefill_tokens, decode_tokens)  # the longest that some pair can ever hold
        self._there = {info.engine_id for group in self._groups.values() for info in group.engines}  # decode engines
        self._group_of = {info.engine_id: g for g, group in self._groups.items() for info in group.engines}
        # For every decode engine that is there the longest prompt of the prefill engines that are there and connected
        # with it; for a group the least and the most of its engines'. What is not known is found out when it is asked.
        self._reach: dict[EngineId, int] = {}
        self._group_reach: dict[GroupId, tuple[int, int]] = {}
        self._has_changed = self._has_new_members = False  # since the last fetch
        self._fetch_due = False
        self._holds: dict[str, None] = {}  # reasons to place nobody now
        self._timers: dict[asyncio.Timeout, None] = {}  # of those that wait
        self._room.fit = self

    # -- waiting ------------------------------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return self._room.num_waiting

    async def place(self, demand: Demand) -> Placement:
        """Wait for a pair of engines; from the return on it is the caller's to take off their loads again.

        Raises OverloadedError after ``queue_timeout_s`` and InvalidRequestError for what no engine can ever hold.
        """
        if demand.num_prompt_tokens > self.max_prompt_tokens:
            raise too_long(demand.num_prompt_tokens, self.max_prompt_tokens)
        ticket = _Ticket(demand, asyncio.get_running_loop().create_future())
        waiting = Waiting(demand.sequence, demand.num_prompt_tokens, demand.num_tokens, demand.failed_on, ticket)
        self._room.add(waiting)
        self.wake()
        try:
            async with asyncio.timeout(None if self._holds else self._config.queue_timeout_s) as timer:
                self._timers[timer] = None
                return await ticket.placed
        except BaseException as error:
            self._withdraw(waiting, ticket)
            if isinstance(error, TimeoutError):
                waited = f"no engine was free within {self._config.queue_timeout_s:g} s"
                raise OverloadedError(waited, retry_after_s=self._config.retry_after_s) from None
            raise
        finally:
            self._timers.pop(timer, None)

    def hold(self, why: str) -> None:
        """Nobody gets engines, and nobody's time runs, until ``go_on`` for each reason that there is."""
        self._holds[why] = None
        self._reschedule(None)

    def go_on(self, why: str) -> None:
        if self._holds.pop(why, why) is None and not self._holds:
            self._reschedule(asyncio.get_running_loop().time() + self._config.queue_timeout_s)
            self.wake()

    def _reschedule(self, until_s: float | None) -> None:
        for timer in self._timers:
            if not timer.expired():
                timer.reschedule(until_s)

    def _withdraw(self, waiting: Waiting, ticket: _Ticket) -> None:
        """The waiter has gone; it may have been placed in the same turn of the loop."""
        if not self._room.withdraw(waiting) and ticket.placed.done() and not ticket.placed.cancelled():
            placement = ticket.placed.result()
            self._engine_loads.release(ticket.demand.request_id, placement.prefill)
            self._engine_loads.release(ticket.demand.request_id, placement.decode)
        self.wake()

    # -- engines that come and go -------------------------------------------------------------------------------------

    @property
    def has_engines(self) -> bool:
        """True when at least one engine of each role is there, and the two are connected."""
        return any(self._reached(engine_id) for engine_id in self._group_of)

    def reconsider(self) -> None:
        """Engines have come or gone, or anything else has changed."""
        self._reach.clear()
        self._group_reach.clear()
        self._has_changed = self._has_new_members = True
        self.wake()

    def connected(self, prefill_id: EngineId, decode_id: EngineId) -> None:
        """These two are, from now on."""
        if self._prefill[prefill_id].max_prompt_tokens <= self._reach.get(decode_id, -1):
            self.wake()  # it reaches as far as before
        else:
            self.reach_changed(decode_id)

    def reach_changed(self, decode_id: EngineId) -> None:
        """The decode engine is connected with other prefill engines than before."""
        self._reach.pop(decode_id, None)
        self._group_reach.pop(self._group_of[decode_id], None)
        self._has_changed = True
        self.wake()

    def _reached(self, decode_id: EngineId) -> int:
        """0: it is not there, or nobody is connected with it."""
        reach = self._reach.get(decode_id)
        if reach is None:
            reach = 0
            if not self._is_lost(decode_id):
                for prefill_id, info in self._prefill.items():
                    if info.max_prompt_tokens > reach and not self._is_lost(prefill_id):
                        reach = info.max_prompt_tokens if self._is_connected(prefill_id, decode_id) else reach
            self._reach[decode_id] = reach
        return reach

    def _group_reached(self, group_id: GroupId) -> tuple[int, int]:
        found = self._group_reach.get(group_id)
        if found is None:
            infos = self._groups[group_id].engines
            there = [self._reached(info.engine_id) for info in infos if not self._is_lost(info.engine_id)]
            found = self._group_reach[group_id] = min(there, default=0), max(there, default=0)
        return found

    def _renew_members(self) -> None:
        """Tell the room which engines are there."""
        if not self._has_new_members:
            return
        self._has_new_members = False
        for engine_id in self._prefill:
            load, is_there = self._engine_loads.of(engine_id), not self._is_lost(engine_id)
            if is_there != (engine_id in self._scope.by_id):
                (self._scope.insert if is_there else self._scope.remove)(load)
        for group in self._groups.values():
            for info in group.engines:
                engine_id, is_there = info.engine_id, not self._is_lost(info.engine_id)
                if is_there and engine_id not in self._there:
                    self._there.add(engine_id)
                    self._room.bring_back_decode(self._engine_loads.of(engine_id))
                elif not is_there and engine_id in self._there:
                    self._there.remove(engine_id)
                    self._room.lose_decode(self._engine_loads.of(engine_id))

    # -- policy.waiting_room.Fit --------------------------------------------------------------------------------------

    def enter(self, waiting: Waiting, group_id: GroupId) -> None:
        assert isinstance(waiting.ticket, _Ticket)
        waiting.num_decode_tokens = min(waiting.ticket.demand.num_tokens, self._groups[group_id].device_kv_tokens)

    def group(self, waiting: Waiting, group_id: GroupId) -> bool:
        most = min(self._groups[group_id].max_prompt_tokens, self._group_reached(group_id)[1])
        return waiting.num_prefill_tokens <= most

    def is_uniform(self, group_id: GroupId) -> bool:
        least, most = self._group_reached(group_id)
        return least == most

    def decode(self, waiting: Waiting, decode_id: EngineId) -> bool:
        return self._reached(decode_id) >= waiting.num_prefill_tokens

    def pair(self, waiting: Waiting, prefill_id: EngineId, decode_id: EngineId) -> bool:
        is_long_enough = self._prefill[prefill_id].max_prompt_tokens >= waiting.num_prefill_tokens
        return is_long_enough and self._is_connected(prefill_id, decode_id)

    # -- fetching -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: fetch once this turn of the event loop is over."""
        if not self._fetch_due:
            self._fetch_due = True
            asyncio.get_running_loop().call_soon(self._fetch)

    def _fetch(self) -> None:
        self._fetch_due = False
        if self._holds:
            return
        if self._has_changed:
            self._has_changed = False
            self._renew_members()
            self._room.reconsider()
        for placed in self._room.fetch(self._scope):
            self._hand_over(placed)

    def _hand_over(self, placed: Placed) -> None:
        waiting, prefill_id, decode_id = placed.waiting, placed.prefill.engine_id, placed.decode.engine_id
        ticket = waiting.ticket
        assert isinstance(ticket, _Ticket)
        request_id = ticket.demand.request_id
        self._engine_loads.assign(request_id, prefill_id, waiting.num_prefill_tokens, is_counted=True)
        self._engine_loads.assign(request_id, decode_id, waiting.num_decode_tokens, is_counted=True)
        if not ticket.placed.done():
            tokens = waiting.num_prefill_tokens, waiting.num_decode_tokens
            ticket.placed.set_result(Placement(prefill_id, decode_id, None, NOBODY, NOBODY, *tokens))
            return
        self._engine_loads.release(request_id, prefill_id)  # its waiter has just given up
        self._engine_loads.release(request_id, decode_id)
        self.wake()


def _group(infos: Sequence[EngineInfo]) -> _Group:
    return _Group(
        tuple(infos),
        min(min(info.max_prompt_tokens, info.device_kv_tokens - 1) for info in infos),
        min(info.device_kv_tokens for info in infos),
    )
