"""Requests wait here for engines: one queue, first come first served, both engines at once or none.

The paper assigns prefill and decode engines from two queues (section 6); here a request takes both in one step, so none
ever holds one engine while it waits for the other. Decode groups keep private queues (phase 1); the heads of all groups
are then placed in order of arrival (phase 2 and the prefill choice).

Nobody starves: of all requests that an engine could take now the oldest has it, and decode memory that an older request
has found is not given to a younger one while the older waits for its prefill engine. And nobody stalls others: one that
no pair of live, connected engines can hold stands aside until there is such a pair, then it is the oldest again.

A fetch runs on events: arrival, release, end of a read, an engine lost or back. Several events in one turn of the event
loop cause one fetch. Event loop only.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence

from dualpath.core.errors import OverloadedError
from dualpath.core.ids import EngineId
from dualpath.engine.api import EngineInfo
from dualpath.scheduler import decode_choice
from dualpath.scheduler.accounts import Accounts
from dualpath.scheduler.chooser import Chooser
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.snapshot import EngineSnapshot, GroupId
from dualpath.scheduler.waiting import Demand, Group, Placement, Ticket, too_long


class Placer:
    """Assigns waiting requests to engines and writes the assignments into the accounts."""

    def __init__(
        self,
        prefill_engines: Sequence[EngineInfo],
        decode_engines: Sequence[EngineInfo],
        accounts: Accounts,
        config: SchedulerConfig,
        is_connected: Callable[[EngineId, EngineId], bool] = lambda prefill_id, decode_id: True,
    ) -> None:
        self._prefill = {info.engine_id: info for info in prefill_engines}
        self._accounts = accounts
        self._config = config
        self._chooser = Chooser(config)
        self._groups: dict[GroupId, Group] = {}
        for info in decode_engines:
            self._groups.setdefault(self._chooser.group_id(info), Group()).engines.append(info)
        self._is_connected = is_connected
        self._lost: dict[EngineId, None] = {}
        self._reach: Mapping[EngineId, int] | None = None  # see ``_reached``; None: not known
        self._has_changed = False  # which engines there are, since the last fetch
        self._homeless: list[Ticket] = []  # no group can take them, or they have just arrived
        self._fetch_due = False

    # -- waiting ------------------------------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return len(self._homeless) + sum(len(group.queue) for group in self._groups.values())

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that some pair of engines can ever hold."""
        prefill = max((info.max_prompt_tokens for info in self._prefill.values()), default=0)
        return min(prefill, max((group.max_prompt_tokens for group in self._groups.values()), default=0))

    async def place(self, demand: Demand) -> Placement:
        """Wait for a pair of engines; from the return on it is the caller's to release in the accounts.

        Raises OverloadedError after ``queue_timeout_s`` and InvalidRequestError for what no engine can ever hold.
        """
        if demand.num_prompt_tokens > self.max_prompt_tokens:
            raise too_long(demand.num_prompt_tokens, self.max_prompt_tokens)
        ticket = Ticket(demand, asyncio.get_running_loop().create_future())
        self._enqueue(ticket)
        try:
            async with asyncio.timeout(self._config.queue_timeout_s):
                return await ticket.placed
        except BaseException as error:
            self._withdraw(ticket)
            if isinstance(error, TimeoutError):
                waited = f"no engine was free within {self._config.queue_timeout_s:g} s"
                raise OverloadedError(waited, retry_after_s=self._config.retry_after_s) from None
            raise

    def _enqueue(self, ticket: Ticket) -> None:
        self._homeless.append(ticket)
        self.wake()

    def _withdraw(self, ticket: Ticket) -> None:
        """The waiter has gone; it may have been placed in the same turn of the loop."""
        if ticket.placed.done() and not ticket.placed.cancelled():
            placement = ticket.placed.result()
            self._accounts.release(ticket.demand.request_id, placement.prefill)
            self._accounts.release(ticket.demand.request_id, placement.decode)
        for queue in (self._homeless, *(group.queue for group in self._groups.values())):
            if ticket in queue:
                queue.remove(ticket)
        self.wake()

    # -- engines that come and go -------------------------------------------------------------------------------------

    def is_lost(self, engine_id: EngineId) -> bool:
        return engine_id in self._lost

    @property
    def has_engines(self) -> bool:
        """True when at least one engine of each role is there, and the two are connected."""
        return any(self._reached().values())

    def mark_lost(self, engine_id: EngineId) -> None:
        """Not chosen any more."""
        self._lost[engine_id] = None
        self.reconsider()

    def mark_back(self, engine_id: EngineId) -> None:
        self._lost.pop(engine_id, None)
        self.reconsider()

    def reconsider(self) -> None:
        """Engines have come or gone, or which are connected has changed."""
        self._reach, self._has_changed = None, True
        self.wake()

    def _reached(self) -> Mapping[EngineId, int]:
        """For every live decode engine the longest prompt of the live prefill engines that it is connected with."""
        if self._reach is None:
            decode = [info.engine_id for group in self._groups.values() for info in self._live_decode(group)]
            self._reach = {engine_id: self._reach_of(engine_id) for engine_id in decode}
        return self._reach

    def _reach_of(self, decode_id: EngineId) -> int:
        connected = [info for info in self._live_prefill() if self._is_connected(info.engine_id, decode_id)]
        return max((info.max_prompt_tokens for info in connected), default=0)

    def _live_prefill(self) -> list[EngineInfo]:
        return [info for info in self._prefill.values() if info.engine_id not in self._lost]

    def _live_decode(self, group: Group) -> list[EngineInfo]:
        return [info for info in group.engines if info.engine_id not in self._lost]

    # -- fetching -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: fetch once this turn of the event loop is over."""
        if not self._fetch_due:
            self._fetch_due = True
            asyncio.get_running_loop().call_soon(self._fetch)

    def _fetch(self) -> None:
        self._fetch_due = False
        if self._has_changed:
            self._has_changed = False
            self._leave_groups()
        self._drain()
        prefill = {info.engine_id: self._accounts.snapshot(info.engine_id) for info in self._live_prefill()}
        for group, ticket, decode_id in self._decode_candidates():
            prefill_id = self._choose_prefill(ticket, decode_id, prefill)
            if prefill_id is None:
                if all(snap.num_tokens > self._config.beta_tokens for snap in prefill.values()):
                    return
                continue  # what it was to get of the decode engine is kept from those behind it
            self._commit(group, ticket, Placement(prefill_id, decode_id))
            prefill[prefill_id] = self._accounts.snapshot(prefill_id)

    def _leave_groups(self) -> None:
        """What waits for a group that cannot take it any more looks for another."""
        for group in self._groups.values():
            self._homeless += [ticket for ticket in group.queue if not self._suits(group, ticket)]
            group.queue = [ticket for ticket in group.queue if self._suits(group, ticket)]

    def _drain(self) -> None:
        """Phase 1: every request to the group with the least tokens, assigned and waiting, among those it fits into."""
        waiting, self._homeless = sorted(self._homeless, key=_arrival), []
        loads = {group_id: self._load_tokens(group) for group_id, group in self._groups.items()} if waiting else {}
        for ticket in waiting:
            suitable = {g: load for g, load in loads.items() if self._suits(self._groups[g], ticket)}
            others = {g: load for g, load in suitable.items() if not self._has_failed(self._groups[g], ticket)}
            group_id = self._chooser.group(others or suitable)
            if group_id is None:
                self._homeless.append(ticket)
                continue
            group = self._groups[group_id]
            ticket.num_decode_tokens = min(ticket.demand.num_tokens, group.device_kv_tokens)
            bisect.insort(group.queue, ticket, key=_arrival)
            loads[group_id] += ticket.num_decode_tokens

    def _load_tokens(self, group: Group) -> int:
        assigned = sum(self._accounts.snapshot(info.engine_id).num_tokens for info in group.engines)
        return assigned + group.queued_tokens

    def _suits(self, group: Group, ticket: Ticket) -> bool:
        needed, reach = ticket.demand.num_prompt_tokens, self._reached()
        is_reached = any(reach.get(info.engine_id, 0) >= needed for info in group.engines)
        return is_reached and group.max_prompt_tokens >= needed

    def _has_failed(self, group: Group, ticket: Ticket) -> bool:
        return any(info.engine_id in ticket.demand.failed_on for info in group.engines)

    def _decode_candidates(self) -> Iterator[tuple[Group, Ticket, EngineId]]:
        """Phase 2 of every group, merged in order of arrival; lazy, because the prefill choice may end the fetch."""
        streams = [self._group_candidates(group) for group in self._groups.values() if group.queue]
        return heapq.merge(*streams, key=lambda candidate: candidate[1].demand.sequence)

    def _group_candidates(self, group: Group) -> Iterator[tuple[Group, Ticket, EngineId]]:
        engines = [self._accounts.snapshot(info.engine_id) for info in self._live_decode(group)]
        tickets = [ticket for ticket in group.queue if not ticket.placed.done()]  # done: its waiter just gave up
        reach = [self._reached()[engine.engine_id] for engine in engines]
        needed = [ticket.demand.num_prompt_tokens for ticket in tickets]
        lengths = [ticket.num_decode_tokens for ticket in tickets]
        if min(reach, default=0) >= max(needed, default=0):
            choices = decode_choice.assign_decode(lengths, engines)
        else:
            choices = decode_choice.assign_decode(lengths, engines, lambda r, e: reach[e] >= needed[r])
        for ticket, engine_id in zip(tickets, choices, strict=False):
            yield group, ticket, engine_id

    def _choose_prefill(
        self, ticket: Ticket, decode_id: EngineId, engines: dict[EngineId, EngineSnapshot]
    ) -> EngineId | None:
        """None: those that could take it are overloaded."""
        needed = ticket.demand.num_prompt_tokens
        suitable = [
            snap
            for engine_id, snap in engines.items()
            if self._prefill[engine_id].max_prompt_tokens >= needed and self._is_connected(engine_id, decode_id)
        ]
        others = [snap for snap in suitable if snap.engine_id not in ticket.demand.failed_on]
        return self._chooser.prefill(others) or self._chooser.prefill(suitable)

    def _commit(self, group: Group, ticket: Ticket, placement: Placement) -> None:
        group.queue.remove(ticket)
        demand = ticket.demand
        self._accounts.assign(demand.request_id, placement.prefill, demand.num_prompt_tokens)
        self._accounts.assign(demand.request_id, placement.decode, ticket.num_decode_tokens)
        ticket.placed.set_result(placement)


def _arrival(ticket: Ticket) -> int:
    return ticket.demand.sequence
