"""Where requests wait for engines: the live scheduler's waiting room, in simulated time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dualpath.scheduler.policy import waiting, waiting_room
from dualpath.scheduler.policy.engine_load import EngineLoad, GroupId
from dualpath.scheduler.policy.prefill_choice import PrefillLimits
from dualpath.scheduler.policy.systems import SystemPolicy
from dualpath.scheduler.policy.waiting import Waiting
from dualpath.sim.engines.decode import DecodeEngine
from dualpath.sim.engines.prefill import PrefillEngine
from dualpath.sim.requests.request import Request


class Scope(waiting.Scope):
    """Prefill engines that are looked at in one fetch: a group's, by its leader, or all."""

    __slots__ = ("_by_node",)

    def __init__(self, engines: Sequence[PrefillEngine], limits: PrefillLimits) -> None:
        super().__init__(engines, limits)
        self._by_node = [
            (node.snic, [engine for engine in engines if engine.node is node])
            for node in dict.fromkeys(engine.node for engine in engines)
        ]

    def report(self, now_s: float) -> None:
        """Bring what the engines say of their nodes' reading queues up to date."""
        for snic, engines in self._by_node:
            tokens = snic.queue_tokens(now_s)
            for engine in engines:
                self.queue_is(engine, tokens)


class Placer:
    """Queues, and the loads of every engine: tok_e, seq_e, free device memory."""

    def __init__(
        self,
        policy: SystemPolicy,
        scopes: Sequence[Scope],
        groups: Sequence[tuple[GroupId, Sequence[DecodeEngine]]],
        limits: PrefillLimits,
        reserves: bool,
    ) -> None:
        self.scopes = scopes
        self._room = waiting_room.WaitingRoom(
            groups, limits, policy.prefill_choice, policy.decode_choice, None, reserves
        )
        self._reserves = reserves  # decode device memory from the assignment on; False: from when it is taken
        self._scope_of = {engine_id: scope for scope in scopes for engine_id in scope.by_id}
        self._engines: list[EngineLoad] = [engine for scope in scopes for engine in scope.by_id.values()]
        for _, engines in groups:
            self._engines += engines
        self._arriving: deque[Request] = deque()  # in order of ``queued_s``

    # -- waiting ------------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """``queued_s`` must not be before that of the request added last."""
        self._arriving.append(request)

    def next_work_s(self, now_s: float) -> float | None:
        """From when on a fetch could place something, as far as decode engines go; None: not before something ends."""
        if self._room.may_place:
            return now_s
        return max(now_s, self._arriving[0].queued_s) if self._arriving and self._room.num_groups else None

    @property
    def blocked(self) -> list[Waiting]:
        """Requests that no decode engine has room for."""
        return [waiting for queue in self._room.queues if queue.is_blocked for waiting in queue.requests]

    # -- fetching -----------------------------------------------------------------------------------------------------

    def fetch(self, scope: Scope, now_s: float) -> list[Request]:
        """Place what can be placed on this scope's engines, oldest first."""
        arriving, room = self._arriving, self._room
        if room.num_groups:
            while arriving and arriving[0].queued_s <= now_s:
                room.add(arriving.popleft())
        scope.report(now_s)
        requests: list[Request] = []
        for placed in room.fetch(scope):
            request, prefill, decode = placed.waiting, placed.prefill, placed.decode
            assert isinstance(request, Request)
            assert isinstance(prefill, PrefillEngine)
            assert isinstance(decode, DecodeEngine)
            request.prefill, request.decode, request.placed_s = prefill, decode, now_s
            requests.append(request)
        return requests

    # -- releasing ----------------------------------------------------------------------------------------------------

    def release_prefill(self, request: Request) -> None:
        engine = request.prefill
        self._scope_of[engine.engine_id].add(engine, -1, -request.num_prefill_tokens)

    def take_device(self, request: Request, num_tokens: int) -> None:
        """It is in decode device memory now, and may be longer than it was assigned with."""
        engine = request.decode
        added = num_tokens - request.num_decode_tokens
        if added > 0:
            request.num_decode_tokens = num_tokens
            self._room.grow_decode(engine, added)
        if not self._reserves:
            engine.free_device_tokens -= num_tokens

    def release_decode(self, request: Request, num_device_tokens: int) -> None:
        """It is over; so much of device memory it held."""
        self._room.release_decode(request.decode, request.num_decode_tokens, num_device_tokens)

    # -- engines that come and go -------------------------------------------------------------------------------------

    def lose(self, engine: PrefillEngine | DecodeEngine) -> None:
        """Not chosen any more; nothing is on it. What waits for a group without engines goes to another group."""
        if isinstance(engine, PrefillEngine):
            self._scope_of[engine.engine_id].remove(engine)
        else:
            self._room.lose_decode(engine)

    def close_group(self, group_id: GroupId) -> None:
        """See ``WaitingRoom.close_group``."""
        self._room.close_group(group_id)

    def bring_back(self, engine: PrefillEngine | DecodeEngine) -> None:
        """Chosen again."""
        if isinstance(engine, PrefillEngine):
            self._scope_of[engine.engine_id].insert(engine)
        else:
            self._room.bring_back_decode(engine)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every load is zero: nothing is placed and nothing waits."""
        self._room.check_integrity(self._engines)
        assert not self._arriving, f"{len(self._arriving)} requests arrive"
