"""Requests wait here for engines: first come, first served, both engines at once or none. No clock, nothing awaited.

The live scheduler and the simulator drive it: they add what has arrived, fetch when something has changed, and take off
the engines again what has ended. Decode groups keep private queues (phase 1 of paper section 6); the heads of all
queues are then placed in order of arrival (phase 2, and the prefill choice). So no request ever holds one engine while
it waits for the other, and nobody starves: of all requests that an engine could take now the oldest has it, and decode
memory that an older request has found is not given to a younger one while the older waits for its prefill engine.

A request costs the same however many engines there are. The choices are called through their modules: what is changed
there changes both worlds.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush, heapreplace
from typing import Final

from dualpath.core.ids import EngineId
from dualpath.scheduler.policy import decode_choice, prefill_choice
from dualpath.scheduler.policy.engine_load import EngineLoad, GroupId
from dualpath.scheduler.policy.least_loaded import LeastLoaded
from dualpath.scheduler.policy.prefill_choice import PrefillLimits
from dualpath.scheduler.policy.systems import Assignment
from dualpath.scheduler.policy.waiting import NO_HEAD, DecodeQueue, Fit, Placed, Scope, Waiting

CLOSED_TOKENS: Final = 1 << 58  # load of a group that must not be chosen: more than any other can have


class WaitingRoom:
    """``reserves``: decode memory is set aside from the placement on; False: from when the caller takes it."""

    def __init__(
        self,
        decode_groups: Sequence[tuple[GroupId, Sequence[EngineLoad]]],
        limits: PrefillLimits,
        prefill_assignment: Assignment = Assignment.LOAD,
        decode_assignment: Assignment = Assignment.LOAD,
        fit: Fit | None = None,
        reserves: bool = True,
    ) -> None:
        self._limits, self.fit, self._reserves = limits, fit, reserves
        self.queues = [DecodeQueue(i, group_id, engines) for i, (group_id, engines) in enumerate(decode_groups)]
        self._by_group = {queue.group_id: queue for queue in self.queues}
        self._decode = {engine.engine_id: engine for queue in self.queues for engine in queue.engines}
        self.group_loads = LeastLoaded({queue.group_id: 0 for queue in self.queues})  # tokens assigned and waiting
        self._prefill_in_turn = prefill_assignment is Assignment.ROUND_ROBIN
        self._decode_in_turn = decode_assignment is Assignment.ROUND_ROBIN
        self._prefill_turn = self._decode_turn = 0
        self._arriving: list[Waiting] = []  # in order of arrival: they have no group yet
        self._homeless: list[Waiting] = []  # no group can take them
        # Heap of (number of its first request, queue): of those not blocked, and entries that mean nothing any more.
        self._heads: list[tuple[int, int]] = []

    # -- waiting ------------------------------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        num_queued = 0
        for queue in self.queues:
            num_queued += len(queue.requests)
        return num_queued + len(self._arriving) + len(self._homeless)

    @property
    def may_place(self) -> bool:
        """Some decode engine may have room for a request."""
        return self._first_queue() is not None

    @property
    def num_groups(self) -> int:
        """That can be chosen."""
        return len(self.group_loads)

    def add(self, waiting: Waiting) -> None:
        arriving = self._arriving
        if arriving and arriving[-1].sequence > waiting.sequence:
            insort(arriving, waiting, key=_arrival)
        else:
            arriving.append(waiting)

    def withdraw(self, waiting: Waiting) -> bool:
        """It waits no longer. False: it did not."""
        for outside in (self._arriving, self._homeless):
            if waiting in outside:
                outside.remove(waiting)
                return True
        for queue in self.queues:
            if waiting in queue.requests:
                queue.requests.remove(waiting)
                self.group_loads.add(queue.group_id, -waiting.num_decode_tokens)
                self._renew_head(queue)
                return True
        return False

    def _drain(self) -> None:
        """Phase 1: everything that has arrived gets the group with the least tokens, of those that can take it."""
        arriving, self._arriving = self._arriving, []
        for waiting in arriving:
            group_id = self._choose_group(waiting)
            if group_id is None:
                self._homeless.append(waiting)
                continue
            queue = self._by_group[group_id]
            if self.fit is not None:
                self.fit.enter(waiting, group_id)
            self.group_loads.add(group_id, waiting.num_decode_tokens)
            requests = queue.requests
            if requests and requests[-1].sequence > waiting.sequence:
                requests.insert(_place_of(requests, waiting.sequence), waiting)
            else:
                requests.append(waiting)
            if requests[0] is waiting:
                self._renew_head(queue)

    def _choose_group(self, waiting: Waiting) -> GroupId | None:
        fit = self.fit
        if not self._decode_in_turn:
            chosen = self.group_loads.choose()
            if chosen is None or (self._suits(waiting, GroupId(chosen)) and not self._has_failed(waiting, chosen)):
                return None if chosen is None else GroupId(chosen)
        names = [GroupId(name) for name in self.group_loads.names]
        suitable = names if fit is None else [name for name in names if fit.group(waiting, name)]
        others = [name for name in suitable if not self._has_failed(waiting, name)] or suitable
        if not self._decode_in_turn:
            return decode_choice.choose_group({name: self.group_loads[name] for name in others})
        found = decode_choice.choose_group_in_turn(others, self._decode_turn)
        self._decode_turn += found is not None
        return found

    def _suits(self, waiting: Waiting, group_id: GroupId) -> bool:
        return self.fit is None or self.fit.group(waiting, group_id)

    def _has_failed(self, waiting: Waiting, group_id: str) -> bool:
        if not waiting.failed_on:
            return False
        return any(engine.engine_id in waiting.failed_on for engine in self._by_group[GroupId(group_id)].engines)

    def reconsider(self) -> None:
        """What ``fit`` says has changed: whoever waits for a group that cannot take it looks for another."""
        again, self._homeless = self._homeless, []
        for queue in self.queues:
            leaving = [waiting for waiting in queue.requests if not self._suits(waiting, queue.group_id)]
            for waiting in leaving:
                queue.requests.remove(waiting)
                self.group_loads.add(queue.group_id, -waiting.num_decode_tokens)
            again += leaving
            self._renew_head(queue)
        for waiting in again:
            self.add(waiting)

    # -- fetching -----------------------------------------------------------------------------------------------------

    def fetch(self, scope: Scope) -> list[Placed]:
        """Place what can be placed on this scope's engines, oldest first."""
        self._drain()
        placed: list[Placed] = []
        streams: dict[int, Iterator[EngineId]] = {}
        passed_over: dict[int, list[Waiting]] = {}
        while scope.is_open:
            queue = self._first_queue()
            if queue is None:
                break
            index = queue.index
            stream = streams.get(index)
            if stream is None:
                stream = streams[index] = self._decode_choices(queue)
            decode_id = next(stream, None)
            if decode_id is None:
                queue.is_blocked, queue.head = True, NO_HEAD
                heappop(self._heads)
                continue
            waiting = queue.requests.popleft()
            if queue.requests:
                queue.head = queue.requests[0].sequence
                heapreplace(self._heads, (queue.head, index))
            else:
                queue.head = NO_HEAD
                heappop(self._heads)
            prefill_id = self._choose_prefill(scope, waiting, decode_id)
            if prefill_id is None:  # what it was to get of the decode engine is kept from those behind it
                passed_over.setdefault(index, []).append(waiting)
            else:
                placed.append(self._commit(scope, waiting, scope.by_id[prefill_id], self._decode[decode_id]))
        for index, kept in passed_over.items():
            self.queues[index].requests.extendleft(reversed(kept))
            self._renew_head(self.queues[index])
        return placed

    def _first_queue(self) -> DecodeQueue | None:
        """Whose first request came before those of all others that are not blocked."""
        heads = self._heads
        while heads:
            sequence, index = heads[0]
            queue = self.queues[index]
            if queue.head == sequence:
                return queue
            heappop(heads)
        return None

    def _decode_choices(self, queue: DecodeQueue) -> Iterator[EngineId]:
        requests, fit = queue.requests, self.fit
        lengths = [waiting.num_decode_tokens for waiting in requests]
        may_take: Callable[[int, int], bool] | None = None
        if fit is not None and not fit.is_uniform(queue.group_id):
            in_line, engines = list(requests), queue.engines
            may_take = lambda r, e: fit.decode(in_line[r], engines[e].engine_id)  # noqa: E731
        return decode_choice.assign_decode(lengths, queue.engines, may_take)

    def _choose_prefill(self, scope: Scope, waiting: Waiting, decode_id: EngineId) -> EngineId | None:
        """None: those that could take it are overloaded."""
        if self._prefill_in_turn:
            return self._next_prefill(self._suitable(scope, waiting, decode_id))
        chosen = scope.ranking.choose()
        if chosen is None or (
            chosen not in waiting.failed_on and (self.fit is None or self.fit.pair(waiting, chosen, decode_id))
        ):
            return chosen
        suitable = self._suitable(scope, waiting, decode_id)
        others = [engine for engine in suitable if engine.engine_id not in waiting.failed_on]
        found = prefill_choice.choose_prefill(others, self._limits)
        return found if found is not None else prefill_choice.choose_prefill(suitable, self._limits)

    def _suitable(self, scope: Scope, waiting: Waiting, decode_id: EngineId) -> list[EngineLoad]:
        fit = self.fit
        if fit is None:
            return list(scope.by_id.values())
        return [engine for engine in scope.by_id.values() if fit.pair(waiting, engine.engine_id, decode_id)]

    def _next_prefill(self, engines: Sequence[EngineLoad]) -> EngineId | None:
        chosen = prefill_choice.choose_prefill_in_turn(engines, self._limits, self._prefill_turn)
        self._prefill_turn += chosen is not None
        return chosen

    def _commit(self, scope: Scope, waiting: Waiting, prefill: EngineLoad, decode: EngineLoad) -> Placed:
        scope.add(prefill, 1, waiting.num_prefill_tokens)
        decode.num_requests += 1
        decode.num_tokens += waiting.num_decode_tokens
        if self._reserves:
            decode.free_device_tokens -= waiting.num_decode_tokens
        return Placed(waiting, prefill, decode)

    # -- what has ended, or grown -------------------------------------------------------------------------------------

    def assign_decode(self, engine: EngineLoad, num_tokens: int) -> None:
        """A request has come to it without waiting here."""
        engine.num_requests += 1
        self.grow_decode(engine, num_tokens)

    def grow_decode(self, engine: EngineLoad, num_tokens: int) -> None:
        """A request of its has so many tokens more than it was placed with."""
        engine.num_tokens += num_tokens
        if self._reserves:
            engine.free_device_tokens -= num_tokens
        self._add_load(engine, num_tokens)

    def release_decode(self, engine: EngineLoad, num_tokens: int, num_device_tokens: int) -> None:
        """A request is over, that counted for so many tokens and held so much of its memory."""
        engine.num_requests -= 1
        engine.num_tokens -= num_tokens
        engine.free_device_tokens += num_tokens if self._reserves else num_device_tokens
        self._add_load(engine, -num_tokens)
        queue = self._by_group[engine.group_id]
        if queue.is_blocked:
            self._renew_head(queue)

    def _add_load(self, engine: EngineLoad, num_tokens: int) -> None:
        if engine.group_id in self.group_loads:
            self.group_loads.add(engine.group_id, num_tokens)

    def _renew_head(self, queue: DecodeQueue) -> None:
        """Its first request is another, or there may be room for it now."""
        queue.is_blocked = False
        if not queue.requests:
            queue.head = NO_HEAD
        elif queue.head != queue.requests[0].sequence:
            queue.head = queue.requests[0].sequence
            heappush(self._heads, (queue.head, queue.index))

    # -- engines that come and go -------------------------------------------------------------------------------------

    def lose_decode(self, engine: EngineLoad) -> None:
        """Not chosen any more. What waits for a group without engines goes to another group."""
        queue = self._by_group[engine.group_id]
        queue.engines.remove(engine)
        if not queue.engines:
            self.group_loads.remove(queue.group_id)
            self._empty(queue)

    def close_group(self, group_id: GroupId) -> None:
        """It gets no more requests, and those that wait for it go to others; ``lose_decode`` its engines when what is
        on them has ended. There must be another group."""
        queue = self._by_group[group_id]
        num_tokens = 0
        for waiting in queue.requests:
            num_tokens += waiting.num_decode_tokens
        self.group_loads.add(group_id, CLOSED_TOKENS - num_tokens)
        self._empty(queue)

    def _empty(self, queue: DecodeQueue) -> None:
        for waiting in queue.requests:
            self.add(waiting)
        queue.requests.clear()
        self._renew_head(queue)

    def bring_back_decode(self, engine: EngineLoad) -> None:
        """Chosen again."""
        queue = self._by_group[engine.group_id]
        if not queue.engines:
            num_tokens = 0
            for member in queue.members:
                num_tokens += member.num_tokens
            self.group_loads.insert(queue.group_id, num_tokens)
        queue.engines.append(engine)
        self._renew_head(queue)

    def check_integrity(self, engines: Iterable[EngineLoad]) -> None:
        """Raise AssertionError unless every load is zero: nothing is placed and nothing waits."""
        for engine in engines:
            assert engine.num_requests == 0, f"{engine.engine_id} has {engine.num_requests} requests left"
            assert engine.num_tokens == 0, f"{engine.engine_id} has {engine.num_tokens} tokens left"
        for group_id in self.group_loads.names:
            assert self.group_loads[group_id] == 0, f"{group_id} has {self.group_loads[group_id]} tokens left"
        assert self.num_waiting == 0, f"{self.num_waiting} requests wait"


def _arrival(waiting: Waiting) -> int:
    return waiting.sequence


def _place_of(requests: Sequence[Waiting], sequence: int) -> int:
    """Behind all that came before."""
    place = len(requests)
    while place and requests[place - 1].sequence > sequence:
        place -= 1
    return place
