"""What a gateway asks of the desk, the one place that all requests of a cluster share, and what it tells it.

Tokens and engines' answers do not come here: a request's coordinator runs in the gateway that received it and talks to
engines itself. ``Questions`` are awaited; ``Notes`` are said in passing, take effect in their order, and may be said
twice. Both name an attempt by its request id, from ``place`` until both of its engines are ``released``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dualpath.core.ids import BlockKey, EngineId, PeerId, RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.plan import ReadPlan, Role
from dualpath.core.request import RecordAnswer, RecordQuery
from dualpath.core.stats import EngineStats, StoreStats
from dualpath.core.weights import WeightEpoch
from dualpath.scheduler.demand import Demand, Placement

DESK = EngineId("desk")  # whom ``SeatCalls`` are addressed to
Link = tuple[BlockKey, BlockKey]  # a block's key, and that of the block before it or of the namespace's root


class Note(NamedTuple):
    """A call of ``Notes``, on its way."""

    name: str
    arguments: bytes  # a tuple, in MessagePack


@dataclass(frozen=True, slots=True)
class DeskStats:
    """``engines``: those that answer."""

    engines: tuple[EngineStats, ...]
    num_index_blocks: int
    store: StoreStats
    epoch: int  # how often an engine was lost or came back


class Questions(Protocol):
    async def place(self, demand: Demand) -> Placement:
        """Wait for a pair of engines. Raises OverloadedError, and InvalidRequestError for what no pair can hold."""
        ...

    async def count_known(self, keys: tuple[BlockKey, ...]) -> int:
        """How many leading blocks are stored or being written."""
        ...

    async def look_up(self, request_id: RequestId, keys: tuple[BlockKey, ...]) -> int:
        """How many leading blocks are stored, waiting for those being written. They stay until ``reading_over``."""
        ...

    async def plan_reading(self, request_id: RequestId, num_hit_blocks: int) -> ReadPlan:
        """Choose the path. The two shares are in the reading queues from now on: read 0 prefill's, read 1 decode's."""
        ...

    async def check(self, engine_ids: tuple[EngineId, ...]) -> None:
        """Return when the engines have been asked how they are, but for those known to be lost."""
        ...

    async def check_weights(self, engine_ids: tuple[EngineId, ...]) -> None:
        """One of them has refused an order as for other weights than it has. Return when they have been asked."""
        ...

    async def fate(self, engine_id: EngineId, peer_id: PeerId) -> bool:
        """Wait until a lost engine is back, has a successor or is gone for good, not longer than a request is tried.

        Whether the process of ``peer_id`` has ended.
        """
        ...

    async def pause(self, mode: PauseMode) -> bool:
        """Place no request until ``resume``; engines compute nothing either where requests are kept.

        Returns when gateways elsewhere have carried it out, or it is over. Whether engines stand still. Raises
        InvalidRequestError where one is not made for that; requests go on then.
        """
        ...

    async def resume(self) -> None:
        """Requests go on. Returns when gateways elsewhere know it."""
        ...

    async def update_weights(self, directory: str, version: str | None) -> WeightEpoch:
        """For all engines, or for none. Raises WeightsError; nothing has changed then."""
        ...

    async def flush(self) -> None:
        """Find none of the blocks that are stored now any more."""
        ...

    async def stats(self) -> DeskStats: ...


class Registered(NamedTuple):
    """An attempt that a gateway has: what a desk must know that has just been started, or cut off from it."""

    request_id: RequestId
    placement: Placement
    left: tuple[EngineId, ...]  # engines that have not released it
    num_decode_tokens: int  # of its decode engine's memory


class PauseState(NamedTuple):
    """Whether requests go on, for all gateways; the one with the highest number holds.

    ``mode`` None: they do. ``is_frozen``: engines stand still by now.
    """

    number: int
    mode: PauseMode | None
    is_frozen: bool


class Abort(NamedTuple):
    """For one gateway, of several that are told alike."""

    number: int  # beyond those before
    names: tuple[str, ...] | None  # of requests, as clients know them; None: all


class Inquiry(NamedTuple):
    """For one gateway, of several that are asked alike."""

    number: int  # beyond those before
    query: RecordQuery


@dataclass(frozen=True, slots=True)
class Outlook:
    """How things are, for gateways elsewhere.

    ``pause`` None: this desk does not know yet; what a former desk has said holds.
    """

    lost: tuple[EngineId, ...]
    peers: tuple[PeerId, ...]  # engines' incarnations that have not ended
    epoch: WeightEpoch
    has_engines: bool
    is_full: bool
    max_prompt_tokens: int
    problems: tuple[str, ...]
    pause: PauseState | None = None
    aborts: tuple[Abort, ...] = ()  # that the gateway has not said to have carried out
    inquiries: tuple[Inquiry, ...] = ()  # that it has not answered


class SeatCalls(Questions, Protocol):
    """What a gateway in another process asks."""

    async def register(self, attempts: tuple[Registered, ...], pause: PauseState | None) -> None:
        """First of all in a session. Others that are known here are given up: the gateway does not have them.

        ``pause``: the latest state that a desk has told it.
        """
        ...

    async def abort(self, names: tuple[str, ...] | None) -> int:
        """End requests at all gateways. Returns how many there were, when each has answered or is given up."""
        ...

    async def records(self, query: RecordQuery) -> RecordAnswer:
        """Of the other gateways. Who has not answered within ``broadcast.ANSWER_S`` is missing."""
        ...

    async def answer(self, number: int, found: RecordAnswer) -> None:
        """An inquiry. One that is over takes no answer any more."""
        ...

    async def take(self, notes: tuple[Note, ...]) -> None:
        """Notes in their order; the first of them may have come before."""
        ...

    def watch(self) -> AsyncIterator[Outlook]:
        """Whenever it changes."""
        ...


class Notes(Protocol):
    """``request_id`` is an attempt's; of one that is not known here nothing follows."""

    def withdrawn(self, request_id: RequestId) -> None:
        """Whether it was placed or not, it is not to be."""
        ...

    def read_begins(self, request_id: RequestId, number: int, role: Role, num_tokens: int) -> None:
        """A set of blocks joins the reading queue of the node of that role."""
        ...

    def read_ends(self, request_id: RequestId, number: int) -> None: ...

    def reads_ended(self, request_id: RequestId) -> None:
        """All of them: who waits for shorter reading queues may be placed now."""
        ...

    def reading_over(self, request_id: RequestId) -> None:
        """However it went: no read of it is in a queue, and no block is kept for it any more."""
        ...

    def blocks_gone(self, keys: tuple[BlockKey, ...]) -> None:
        """These are not on storage, leaves first."""
        ...

    def writes_begin(self, request_id: RequestId) -> None:
        """Before its engine can write anything; ``writes_end`` follows."""
        ...

    def wrote(
        self, request_id: RequestId, begun: tuple[Link, ...], durable: tuple[Link, ...], failed: tuple[BlockKey, ...]
    ) -> None:
        """News of its writes."""
        ...

    def writes_end(self, request_id: RequestId) -> None: ...

    def grown(self, request_id: RequestId, num_tokens: int) -> None:
        """It takes so much of its decode engine's device memory now."""
        ...

    def path_broken(self, request_id: RequestId) -> None:
        """A transfer between its two engines has failed."""
        ...

    def released(self, request_id: RequestId, engine_id: EngineId) -> None:
        """The engine holds nothing of it any more, or has ended."""
        ...

    def paused(self, number: int) -> None:
        """The pause state of that number holds here: nothing of what it ends is running, or requests go on."""
        ...

    def aborted(self, number: int, num_requests: int) -> None: ...


class DeskClient(Questions, Notes, Protocol):
    """As a gateway has it, in its own process or over a link. What is not awaited is known as of the latest news."""

    on_engine_lost: Callable[[EngineId], None]

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that some pair of engines can ever hold."""
        ...

    @property
    def epoch(self) -> WeightEpoch:
        """The weights that requests are placed for."""
        ...

    @property
    def is_full(self) -> bool:
        """As many requests wait for engines as may wait."""
        ...

    @property
    def has_engines(self) -> bool:
        """Some pair of engines is there, and connected."""
        ...

    @property
    def alone_s(self) -> float:
        """How long there has been none; 0.0 while there is."""
        ...

    def problems(self) -> tuple[str, ...]:
        """What an operator should know although requests are served."""
        ...

    def is_gone(self, peer_id: PeerId) -> bool:
        """The process of this incarnation has ended: known here where an engine's link cannot tell."""
        ...

    def is_held(self, first_id: RequestId) -> bool:
        """Engines hold something of a former scheduler's request of this id: another would be taken for it."""
        ...


def links(parent: Callable[[BlockKey], BlockKey | None], keys: Sequence[BlockKey]) -> tuple[Link, ...]:
    """The keys with those before them; keys of another chain are left out."""
    return tuple((key, before) for key in keys if (before := parent(key)) is not None)
