"""Requests wait here for engines; the live scheduler's policy functions say which they get.

As in the live scheduler a request takes a prefill and a decode engine in one step, so none ever holds one while it
waits for the other. Decode groups keep private queues (phase 1 of section 6); a prefill group's leader takes the oldest
heads of these queues that a decode engine has room for (phase 2), as many as its own engines want. The policies are
called through their modules: what is changed there changes the simulation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from dualpath.core.ids import EngineId
from dualpath.scheduler import decode_choice, prefill_choice
from dualpath.scheduler.prefill_choice import PrefillLimits
from dualpath.scheduler.snapshot import GroupId
from dualpath.scheduler.systems import Assignment, SystemPolicy
from dualpath.sim.decode import DecodeEngine
from dualpath.sim.prefill import PrefillEngine
from dualpath.sim.request import Request

CLOSED_TOKENS: Final = 1 << 60  # load of a group that must not be chosen: more than any other can have


class Scope:
    """Prefill engines that are looked at in one fetch: a group's, by its leader, or all."""

    __slots__ = ("_by_node", "engines", "is_open")

    def __init__(self, engines: Sequence[PrefillEngine]) -> None:
        self.engines = list(engines)
        self.is_open = True  # False: all of them are overloaded
        self._by_node = [
            (node.snic, [engine for engine in engines if engine.node is node])
            for node in dict.fromkeys(engine.node for engine in engines)
        ]

    def report(self, now_s: float) -> None:
        """Bring what the engines say of their nodes' reading queues up to date."""
        for snic, engines in self._by_node:
            tokens = snic.queue_tokens(now_s)
            for engine in engines:
                engine.read_queue_tokens = tokens


class DecodeQueue:
    """A decode group's engines and private queue."""

    __slots__ = ("engines", "group_id", "index", "is_blocked", "lengths", "requests")

    def __init__(self, index: int, group_id: GroupId, engines: Sequence[DecodeEngine]) -> None:
        self.index, self.group_id, self.engines = index, group_id, list(engines)
        self.requests: deque[Request] = deque()
        self.lengths: deque[int] = deque()  # their demands
        self.is_blocked = False  # True: no engine has room for the head
        for engine in engines:
            engine.group_id = group_id


class Placer:
    """Queues, and the accounts of every engine: tok_e, seq_e, free device memory."""

    def __init__(
        self,
        policy: SystemPolicy,
        scopes: Sequence[Scope],
        queues: Sequence[DecodeQueue],
        limits: PrefillLimits,
        reserves: bool,
    ) -> None:
        self.scopes = scopes
        self._queues = list(queues)
        self._limits = limits
        self._reserves = reserves  # decode device memory from the assignment on; False: from when it is taken
        self._loads = decode_choice.GroupLoads({queue.group_id: 0 for queue in queues})  # tokens assigned and waiting
        self._group_ids = [queue.group_id for queue in queues]
        self._by_group = {queue.group_id: queue for queue in queues}
        self._prefill = {engine.engine_id: engine for scope in scopes for engine in scope.engines}
        self._all_prefill = list(self._prefill.values())
        self._scope_of = {engine.engine_id: scope for scope in scopes for engine in scope.engines}
        self._decode = {engine.engine_id: engine for queue in queues for engine in queue.engines}
        self._prefill_in_turn = policy.prefill_choice is Assignment.ROUND_ROBIN
        self._decode_in_turn = policy.decode_choice is Assignment.ROUND_ROBIN
        self._prefill_turn = self._decode_turn = 0
        self._arriving: deque[Request] = deque()  # in order of ``queued_s``
        self._heads: list[tuple[int, int]] = []  # heap of (sequence of its head, queue): those not blocked
        self._candidate: tuple[DecodeQueue, Request, EngineId] | None = None
        self.num_placed = 0

    # -- waiting ------------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """``queued_s`` must not be before that of the request added last."""
        self._arriving.append(request)

    def next_work_s(self, now_s: float) -> float | None:
        """From when on a fetch could place something, as far as decode engines go; None: not before something ends."""
        if self._heads:
            return now_s
        return max(now_s, self._arriving[0].queued_s) if self._arriving and self._group_ids else None

    @property
    def num_waiting(self) -> int:
        return len(self._arriving) + sum(len(queue.requests) for queue in self._queues)

    def _drain(self, now_s: float) -> None:
        """Phase 1: everything that has arrived gets a group."""
        arriving = self._arriving
        if not arriving or arriving[0].queued_s > now_s or not self._group_ids:
            return
        by_group, loads = self._by_group, self._loads
        while arriving and arriving[0].queued_s <= now_s:
            request = arriving.popleft()
            group_id = self._next_group_in_turn() if self._decode_in_turn else loads.choose()
            assert group_id is not None
            queue, demand = by_group[group_id], request.demand
            waiting = queue.requests
            loads.add(group_id, demand)
            if not waiting and not queue.is_blocked:
                heappush(self._heads, (request.sequence, queue.index))
            waiting.append(request)
            queue.lengths.append(demand)

    def _next_group_in_turn(self) -> GroupId | None:
        self._decode_turn += 1
        return decode_choice.choose_group_in_turn(self._group_ids, self._decode_turn - 1)

    # -- fetching -----------------------------------------------------------------------------------------------------

    def fetch(self, scope: Scope, now_s: float) -> list[Request]:
        """Place what can be placed on this scope's engines, oldest first."""
        self._drain(now_s)
        placed: list[Request] = []
        scope.report(now_s)
        prefill, decode = self._prefill, self._decode
        for prefill_id in self._prefill_ids(self._prompts(), scope):
            assert self._candidate is not None
            queue, request, decode_id = self._candidate
            self._commit(queue, request, prefill[prefill_id], decode[decode_id])
            request.placed_s = now_s
            placed.append(request)
        beta = self._limits.beta_tokens
        scope.is_open = False
        for engine in scope.engines:
            if engine.num_tokens <= beta:
                scope.is_open = True
                break
        self.num_placed += len(placed)
        return placed

    def _prefill_ids(self, prompts: Iterable[int], scope: Scope) -> Iterator[EngineId]:
        if self._prefill_in_turn:
            return self._in_turn(prompts, scope)
        return prefill_choice.assign_prefill(prompts, scope.engines, self._limits)

    def _in_turn(self, prompts: Iterable[int], scope: Scope) -> Iterator[EngineId]:
        for _ in prompts:
            chosen = prefill_choice.choose_prefill_in_turn(scope.engines, self._limits, self._prefill_turn)
            if chosen is None:
                return
            self._prefill_turn += 1
            yield chosen

    def _prompts(self) -> Iterator[int]:
        """Lengths of the requests that a decode engine has room for, oldest first; ``_candidate`` is the current one.

        Whoever asks for the next one has placed the one before, so that its queue has a new head.
        """
        heads, queues = self._heads, self._queues
        streams: dict[int, Iterator[EngineId]] = {}
        while heads:
            index = heads[0][1]
            queue = queues[index]
            stream = streams.get(index)
            if stream is None:
                stream = streams[index] = decode_choice.assign_decode(list(queue.lengths), queue.engines)
            decode_id = next(stream, None)
            if decode_id is None:
                queue.is_blocked = True
                heappop(heads)
                continue
            request = queue.requests[0]
            self._candidate = (queue, request, decode_id)
            yield request.prefill_load

    def _commit(self, queue: DecodeQueue, request: Request, prefill: PrefillEngine, decode: DecodeEngine) -> None:
        """Take the head of the oldest queue out and write it into the accounts."""
        waiting = queue.requests
        waiting.popleft()
        queue.lengths.popleft()
        if waiting:
            heapreplace(self._heads, (waiting[0].sequence, queue.index))
        else:
            heappop(self._heads)
        request.prefill, request.decode = prefill, decode
        prefill.num_requests += 1
        prefill.num_tokens += request.prefill_load
        demand = request.demand
        decode.num_requests += 1
        decode.num_tokens += demand
        if self._reserves:
            decode.free_device_tokens -= demand

    # -- releasing ----------------------------------------------------------------------------------------------------

    def release_prefill(self, request: Request) -> None:
        engine = request.prefill
        engine.num_requests -= 1
        engine.num_tokens -= request.prefill_load
        if engine.num_tokens <= self._limits.beta_tokens and not engine.is_lost:
            self._scope_of[engine.engine_id].is_open = True

    def take_device(self, request: Request, num_tokens: int) -> None:
        """It is in decode device memory now, and may be longer than it was assigned with."""
        engine = request.decode
        added = num_tokens - request.demand
        if added > 0:
            request.demand = num_tokens
            engine.num_tokens += added
            self._loads.add(engine.group_id, added)
        if not self._reserves:
            engine.free_device_tokens -= num_tokens
        elif added > 0:
            engine.free_device_tokens -= added

    def release_decode(self, request: Request, num_device_tokens: int) -> None:
        """It is over; so much of device memory it held."""
        engine = request.decode
        engine.num_requests -= 1
        engine.num_tokens -= request.demand
        engine.free_device_tokens += request.demand if self._reserves else num_device_tokens
        self._loads.add(engine.group_id, -request.demand)
        queue = self._by_group[engine.group_id]
        if queue.is_blocked:
            self._unblock(queue)

    def _unblock(self, queue: DecodeQueue) -> None:
        queue.is_blocked = False
        if queue.requests:
            heappush(self._heads, (queue.requests[0].sequence, queue.index))

    # -- engines that come and go -------------------------------------------------------------------------------------

    def lose(self, engine: PrefillEngine | DecodeEngine) -> None:
        """Not chosen any more; nothing is on it. What waits for a group without engines goes to another group."""
        if isinstance(engine, PrefillEngine):
            self._scope_of[engine.engine_id].engines.remove(engine)
            return
        queue = self._by_group[engine.group_id]
        queue.engines.remove(engine)
        if queue.engines:
            return
        self._group_ids.remove(queue.group_id)
        self._loads.remove(queue.group_id)
        self._heads = [entry for entry in self._heads if entry[1] != queue.index]
        heapify(self._heads)
        self._arriving.extendleft(reversed(queue.requests))
        queue.requests.clear()
        queue.lengths.clear()
        queue.is_blocked = False

    def close_group(self, group_id: GroupId) -> None:
        """This decode group gets no more requests, and those that wait for it go to others; ``lose`` its engines when
        what is on them has ended. There must be another group."""
        queue = self._by_group[group_id]
        self._loads.add(group_id, CLOSED_TOKENS - sum(queue.lengths))
        self._heads = [entry for entry in self._heads if entry[1] != queue.index]
        heapify(self._heads)
        self._arriving.extendleft(reversed(queue.requests))
        queue.requests.clear()
        queue.lengths.clear()
        queue.is_blocked = False

    def bring_back(self, engine: PrefillEngine | DecodeEngine) -> None:
        """Chosen again."""
        if isinstance(engine, PrefillEngine):
            scope = self._scope_of[engine.engine_id]
            scope.engines.append(engine)
            scope.is_open = True
            return
        queue = self._by_group[engine.group_id]
        if not queue.engines:
            self._group_ids.append(queue.group_id)
            self._loads.insert(queue.group_id, 0)
        queue.engines.append(engine)
        if queue.is_blocked:
            self._unblock(queue)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every account is zero: nothing is placed and nothing waits."""
        engines: list[PrefillEngine | DecodeEngine] = [*self._prefill.values(), *self._decode.values()]
        for engine in engines:
            assert engine.num_requests == 0, f"{engine.engine_id} has {engine.num_requests} requests left"
            assert engine.num_tokens == 0, f"{engine.engine_id} has {engine.num_tokens} tokens left"
        for group_id in self._group_ids:
            assert self._loads[group_id] == 0, f"{group_id} has {self._loads[group_id]} tokens left"
        assert self.num_waiting == 0, f"{self.num_waiting} requests wait"
