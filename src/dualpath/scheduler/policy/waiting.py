"""What waits for engines, where it waits, and what it gets: the pieces of the waiting room (``waiting_room``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from dualpath.core.ids import EngineId
from dualpath.scheduler.policy.engine_load import EngineLoad, GroupId
from dualpath.scheduler.policy.prefill_choice import PrefillLimits, PrefillRanking

NO_HEAD: Final = -1


class Waiting:
    """A request as far as its placement goes; the simulator's requests are ones. Lengths in tokens."""

    __slots__ = ("failed_on", "num_decode_tokens", "num_prefill_tokens", "sequence", "ticket")

    def __init__(
        self,
        sequence: int,
        num_prefill_tokens: int = 0,
        num_decode_tokens: int = 0,
        failed_on: tuple[EngineId, ...] = (),
        ticket: object = None,
    ) -> None:
        self.sequence = sequence  # order of arrival; one that comes again keeps its own
        self.num_prefill_tokens = num_prefill_tokens  # what it adds to a prefill engine's tok_e
        self.num_decode_tokens = num_decode_tokens  # what it takes of a decode engine's memory, and adds to its tok_e
        self.failed_on = failed_on  # last; avoided where there are others: they may look idle because they fail
        self.ticket = ticket  # the caller's own


class Fit(Protocol):
    """Which engines can take a request at all, where not every one can take every request."""

    def enter(self, waiting: Waiting, group_id: GroupId) -> None:
        """It joins the group's queue: its ``num_decode_tokens`` are what they are there."""
        ...

    def group(self, waiting: Waiting, group_id: GroupId) -> bool: ...

    def decode(self, waiting: Waiting, decode_id: EngineId) -> bool:
        """Asked where ``is_uniform`` says no."""
        ...

    def is_uniform(self, group_id: GroupId) -> bool:
        """Each of the group's engines can take each request that the group can."""
        ...

    def pair(self, waiting: Waiting, prefill_id: EngineId, decode_id: EngineId) -> bool: ...


class Scope:
    """Prefill engines that are looked at in one fetch: a group's, by its leader, or all. A live scheduler has one."""

    __slots__ = ("_alpha_tokens", "by_id", "ranking")

    def __init__(self, engines: Sequence[EngineLoad], limits: PrefillLimits) -> None:
        self._alpha_tokens = limits.alpha_tokens
        self.by_id = {engine.engine_id: engine for engine in engines}
        self.ranking = PrefillRanking(engines, limits)

    @property
    def is_open(self) -> bool:
        """False: all of them are overloaded."""
        return self.ranking.choose() is not None

    def queue_is(self, engine: EngineLoad, num_tokens: int) -> None:
        """So many tokens wait in the reading queue of the engine's node."""
        crosses = (engine.read_queue_tokens > self._alpha_tokens) != (num_tokens > self._alpha_tokens)
        engine.read_queue_tokens = num_tokens
        if crosses and engine.engine_id in self.by_id:
            self.ranking.changed(engine)

    def add(self, engine: EngineLoad, num_requests: int, num_tokens: int) -> None:
        """What is assigned to the engine has become more, or less if negative."""
        engine.num_requests += num_requests
        engine.num_tokens += num_tokens
        if engine.engine_id in self.by_id:
            self.ranking.changed(engine)

    def insert(self, engine: EngineLoad) -> None:
        self.by_id[engine.engine_id] = engine
        self.ranking.insert(engine)

    def remove(self, engine: EngineLoad) -> None:
        del self.by_id[engine.engine_id]
        self.ranking.remove(engine)


class DecodeQueue:
    """A decode group's engines and private queue."""

    __slots__ = ("engines", "group_id", "head", "index", "is_blocked", "members", "requests")

    def __init__(self, index: int, group_id: GroupId, engines: Sequence[EngineLoad]) -> None:
        self.index, self.group_id = index, group_id
        self.members = list(engines)
        self.engines = list(engines)  # those that are there
        self.requests: deque[Waiting] = deque()  # in order of arrival
        self.is_blocked = False  # True: no engine has room for its first request
        self.head = NO_HEAD  # the first request's number, where the room has it among the heads


class Placed:
    """A request and its engines; it is part of their loads from then on."""

    __slots__ = ("decode", "prefill", "waiting")

    def __init__(self, waiting: Waiting, prefill: EngineLoad, decode: EngineLoad) -> None:
        self.waiting, self.prefill, self.decode = waiting, prefill, decode
