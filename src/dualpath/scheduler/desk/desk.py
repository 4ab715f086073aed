"""The one place that all requests of a cluster share: placement, loads, reading queues, the block index, the engines.

Each gateway has a seat here (dualpath.scheduler.desk.seat). No token passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from dualpath.core.errors import DualPathError
from dualpath.core.ids import EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.protocol.api import DecodeEngineClient, NodeCalls, PrefillEngineClient
from dualpath.scheduler.backoff import Backoff
from dualpath.scheduler.blocks import IndexView
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.api import DeskStats, Outlook
from dualpath.scheduler.desk.broadcast import Broadcast
from dualpath.scheduler.desk.seat import Seat
from dualpath.scheduler.desk.standstill import Standstill
from dualpath.scheduler.desk.weight_updates import OpenNamespace, Updates
from dualpath.scheduler.engine_loads import EngineLoads
from dualpath.scheduler.evictor import Evictor
from dualpath.scheduler.health import Engine, Health
from dualpath.scheduler.holding import Hold, Releaser
from dualpath.scheduler.job import first_id
from dualpath.scheduler.membership import Membership
from dualpath.scheduler.peering import Peering
from dualpath.scheduler.placer import Placer
from dualpath.scheduler.tasks import TaskSet
from dualpath.store.contract import BlockDirectory

_log = logging.getLogger(__name__)

HeldBy = tuple[EngineId, RequestId]
_PROBLEMS_S = 5.0  # between two looks at all pairs of engines
_CLOSE_GRACE_S = 30.0  # for releases and questions to engines


class Desk:
    """Built inside the serving event loop, from engines that are ready; ``start`` makes them known to each other."""

    def __init__(
        self,
        *,
        prefill_engines: Sequence[PrefillEngineClient],
        decode_engines: Sequence[DecodeEngineClient],
        index: IndexView,
        store: BlockDirectory,
        namespace: Namespace,
        open_namespace: OpenNamespace | None = None,
        config: SchedulerConfig | None = None,
        runtime: Runtime | None = None,
        nodes: Mapping[NodeId, NodeCalls] | None = None,
    ) -> None:
        """``nodes``: where gateways elsewhere have sessions of their own."""
        self._nodes = nodes or {}
        self.config = config = config or SchedulerConfig()
        self.index, self.block_tokens = index, namespace.geometry.block_tokens
        self.num_planned = 0
        self._runtime = runtime = runtime or SystemRuntime()
        self._prefill = {engine.info.engine_id: engine for engine in prefill_engines}
        self._decode = {engine.info.engine_id: engine for engine in decode_engines}
        prefill_infos = [engine.info for engine in self._prefill.values()]
        decode_infos = [engine.info for engine in self._decode.values()]
        self.engine_loads = EngineLoads([*decode_infos, *prefill_infos], config)
        self.tasks = TaskSet()
        self._engines: dict[EngineId, Engine] = {**self._prefill, **self._decode}
        self.membership = membership = Membership(self._engines)
        told = (self._connected, self._disconnected, self._make_ready)
        self.peering = Peering(self._prefill, self._decode, config, runtime, self.tasks, membership.is_lost, *told)
        self.health = Health(self._engines, membership, config, runtime, self.tasks, self.peering.engine_asked)
        reach = (self.peering.is_connected, membership.is_lost)
        self.placer = Placer(prefill_infos, self.engine_loads, config, *reach)
        self.standstill = Standstill(self._engines, membership, self.peering.is_gone, self.placer, config, runtime)
        self.updates = Updates(
            self._engines, membership, self.placer, index, namespace, open_namespace, config, runtime, self.tasks
        )
        self.releaser = Releaser(config, runtime, self.tasks, self._released)
        fraction = config.capacity_fraction
        self.evictor = Evictor(index, store, config.capacity_bytes, runtime, capacity_fraction=fraction)
        membership.on_lost += [self._engines_changed, self.peering.engine_lost, self._tell_seats]
        membership.on_gone += [self.peering.engine_gone]
        membership.on_back += [self.peering.engine_back, self._engines_changed]
        self.seats: list[Seat] = []
        self._sequence = itertools.count(int(1e6 * runtime.unix_s()))  # beyond those of a former desk
        self.broadcast = Broadcast(self.seats, self.standstill, self.releaser, self.next_sequence, runtime, self.tasks)
        self.former: dict[str, Seat] = {}  # of gateways that were there before this desk, by name
        self._known_problems: tuple[float, tuple[str, ...]] = (-math.inf, ())
        self._alone_since_s: float | None = None  # when the last pair of engines went

    def seat(self, caller: str = "") -> Seat:
        """For one more gateway, in this process or, with a ``caller``, elsewhere."""
        self.seats.append(seat := Seat(self, caller))
        return seat

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self, held: Iterable[HeldBy] = (), gateways: Iterable[str] = ()) -> None:
        """Introduce every prefill engine to every decode engine; after that requests can be placed.

        ``held``: what requests of a former scheduler hold. What it is about are the engines as they are now, so it is
        taken over first: whoever ends meanwhile is removed before its peers' slots are released or handed out.
        ``gateways``: those elsewhere that had seats at a former desk. They know whether it had paused.
        """
        self.former = {caller: self.seat(caller) for caller in gateways}
        self.broadcast.expect(self.former.values())
        self._adopt(held)
        await self.updates.find()
        await self.peering.start()
        self.tasks.spawn(self.evictor.run(), is_patrol=True)
        self.health.watch()
        self.evictor.wake()

    def _adopt(self, held: Iterable[tuple[EngineId, RequestId]]) -> None:
        """Release it, prefill side first, as in those requests' own time."""
        holders: dict[RequestId, list[EngineId]] = {}
        for engine_id, request_id in held:
            holders.setdefault(request_id, []).append(engine_id)
        for request_id, engine_ids in holders.items():
            self._hold(request_id, engine_ids, None).drop()

    def _hold(
        self, request_id: RequestId, engine_ids: Collection[EngineId], peers: tuple[PeerId, PeerId] | None
    ) -> Hold:
        prefill = next((self._prefill[e] for e in engine_ids if e in self._prefill), None)
        decode = next((self._decode[e] for e in engine_ids if e in self._decode), None)
        return self.releaser.hold(first_id(request_id), request_id, prefill, decode, peers)

    async def close(self) -> None:
        """After the gateways: end everything, and leave nothing running."""
        self.releaser.hurry()
        if not await self.tasks.wait(_CLOSE_GRACE_S):
            _log.error("closing with %d tasks unfinished", len(self.tasks))
        await self.tasks.cancel()

    def _released(self, request_id: RequestId, engine_id: EngineId) -> None:
        self.engine_loads.release(request_id, engine_id)
        self.placer.wake()

    # -- gateways that are given up -----------------------------------------------------------------------------------

    def vacate(self, caller: str, seat: Seat) -> None:
        """A gateway elsewhere has died, or was silent for too long: give back what its requests hold, in background."""
        self.seats.remove(seat)
        self.broadcast.hear(seat, None)
        self.broadcast.gone(seat)
        for stay in seat.stays.values():
            stay.end_sharing()
        peers = {engine_id: engine.info.peer_id for engine_id, engine in self._engines.items()}
        ends = {n: self.tasks.spawn(self._end_caller(n, caller, peers), is_patrol=True) for n in self._nodes}
        for stay in seat.stays.values():
            placement = stay.placement
            stay_peers = placement.prefill_peer, placement.decode_peer
            hold = self._hold(stay.request_id, (placement.prefill, placement.decode), stay_peers)
            self.releaser.dropped(hold)
            self.tasks.spawn(self._take_over(hold, stay.nodes.values(), ends), is_patrol=True)
        self.tasks.spawn(self._take_over_others(set(seat.stays), ends), is_patrol=True)

    async def _end_caller(self, node_id: NodeId, caller: str, peers: Mapping[EngineId, PeerId]) -> list[HeldBy]:
        """Until the node has ended its calls, or is another: from then on none of its messages does anything there."""
        engine_ids = [engine_id for engine_id in self._engines if self.node_of(engine_id) == node_id]
        backoff = Backoff(self.config, self._runtime)
        while all(self.peer_of(e) == peers[e] and not self.peering.is_gone(e) for e in engine_ids):
            with contextlib.suppress(DualPathError, TimeoutError):
                async with asyncio.timeout(self.config.peer_timeout_s):
                    return list(await self._nodes[node_id].end_caller(caller))
            await self._runtime.sleep_s(backoff.next_s())
        return []

    async def _take_over(
        self, hold: Hold, node_ids: Iterable[NodeId], ends: Mapping[NodeId, asyncio.Task[list[HeldBy]]]
    ) -> None:
        """Only when it can do nothing any more on either of its engines is anything given back."""
        await asyncio.gather(*(asyncio.shield(ends[node_id]) for node_id in set(node_ids)))
        hold.drop()

    async def _take_over_others(self, known: set[RequestId], ends: Mapping[NodeId, asyncio.Task[list[HeldBy]]]) -> None:
        """What it holds besides: of the time of a former desk, or of requests that others have given up."""
        held = [hold for found in await asyncio.gather(*map(asyncio.shield, ends.values())) for hold in found]
        known |= {request_id for seat in self.seats for request_id in seat.stays}
        self._adopt((engine_id, request_id) for engine_id, request_id in held if request_id not in known)

    # -- engines ------------------------------------------------------------------------------------------------------

    def node_of(self, engine_id: EngineId) -> NodeId:
        return self._engines[engine_id].info.node_id

    def peer_of(self, engine_id: EngineId) -> PeerId:
        return self._engines[engine_id].info.peer_id

    def next_sequence(self) -> int:
        return next(self._sequence)

    def mark_lost(self, engine_id: EngineId, reason: DualPathError | None = None) -> None:
        """Whoever knows that an engine has gone says so here; it is used again once it answers."""
        self.membership.mark_lost(engine_id, reason or DualPathError("reported lost"))

    async def fate(self, engine_id: EngineId, peer_id: PeerId) -> bool:
        """``api.Questions.fate``."""
        started_s = self._runtime.now_s()
        while (
            self.membership.is_lost(engine_id)
            and not self.peering.is_gone(engine_id)
            and self._runtime.now_s() - started_s < self.config.retry_budget_s
        ):
            await self._runtime.sleep_s(self.config.probe_interval_s)
        return self._engines[engine_id].info.peer_id != peer_id or self.peering.is_gone(engine_id)

    def _tell_seats(self, engine_id: EngineId) -> None:
        for seat in self.seats:
            seat.on_engine_lost(engine_id)

    async def _make_ready(self, engine_id: EngineId) -> None:
        await self.updates.ready(engine_id)
        await self.standstill.ready(engine_id)

    def _connected(self, prefill_id: EngineId, decode_id: EngineId) -> None:
        self.placer.connected(prefill_id, decode_id)
        self._alone_since_s = None

    def _disconnected(self, _: EngineId, decode_id: EngineId) -> None:
        self.placer.reach_changed(decode_id)
        self._look_for_pairs()

    def _engines_changed(self, _: EngineId) -> None:
        """Which engines are there."""
        self.placer.reconsider()
        self._look_for_pairs()

    def _look_for_pairs(self) -> None:
        if self.placer.has_engines:
            self._alone_since_s = None
        elif self._alone_since_s is None:
            self._alone_since_s = self._runtime.now_s()

    # -- how things are -----------------------------------------------------------------------------------------------

    @property
    def alone_s(self) -> float:
        """How long there has been no pair of engines."""
        return 0.0 if self._alone_since_s is None else self._runtime.now_s() - self._alone_since_s

    def blocks_stored(self) -> None:
        """Blocks were published, or could not be written: the store may be too large, or full."""
        self.evictor.wake()

    def problems(self) -> tuple[str, ...]:
        """What an operator should know although requests are served. Without names: anybody may ask."""
        lost, num_engines = self.membership.num_lost, len(self.membership.engine_ids)
        apart = self.peering.num_apart
        stalled, lingering = self.health.num_stalled_nodes, self.health.num_lingering
        found = (
            (lost, f"{lost} of {num_engines} engines do not answer"),
            (apart, f"{apart} pairs of living engines are not connected"),
            (stalled, f"the storage of {stalled} nodes does not answer"),
            (lingering, f"{lingering} transfers do not end; their memory stays out of use"),
            (not self.evictor.stats.accepts_writes, "the store takes no new blocks"),
        )
        return tuple(text for count, text in found if count)

    def outlook(self) -> Outlook:
        if self._runtime.now_s() - self._known_problems[0] > _PROBLEMS_S:
            self._known_problems = self._runtime.now_s(), self.problems()
        engine_ids = self.membership.engine_ids
        return Outlook(
            lost=tuple(filter(self.membership.is_lost, engine_ids)),
            peers=tuple(self.peer_of(e) for e in engine_ids if not self.peering.is_gone(e)),
            epoch=self.updates.epoch,
            has_engines=self.placer.has_engines,
            is_full=self.placer.num_waiting >= self.config.max_queued_requests,
            max_prompt_tokens=self.placer.max_prompt_tokens,
            problems=self._known_problems[1],
            pause=self.broadcast.current,
        )

    async def stats(self) -> DeskStats:
        """Lost engines are left out; one that does not answer now is taken for lost."""
        answers = await asyncio.gather(*map(self.health.stats, self.membership.there))
        engines = tuple(stats for stats in answers if stats is not None)
        return DeskStats(engines, self.index.num_blocks(), self.evictor.stats, self.membership.epoch)
