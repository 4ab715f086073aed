"""Which prefill and decode engines are connected: making them known to each other, and mending what breaks.

A transfer that failed is not at rest, nor is one of an engine that has fallen silent: bytes of it may still arrive.
Before two engines are connected again both have removed each other, and the prefill engine knows (protocol.api).
Before they are connected at all, each has removed whom it knows of a former scheduler's time and is no engine any more.
Every pair is looked after by itself, with deadlines of its own: an engine that is stuck keeps no other pair waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from dualpath.core.errors import DualPathError
from dualpath.core.ids import EngineId, PeerId
from dualpath.core.repeated_warning import RepeatedWarning
from dualpath.core.runtime import Runtime
from dualpath.core.stats import EngineStats
from dualpath.protocol.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.backoff import Backoff
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.engine_call import EngineFailure, ask
from dualpath.scheduler.tasks import TaskSet

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Pair:
    prefill: PrefillEngineClient
    decode: DecodeEngineClient
    backoff: Backoff | None = None  # of what has failed once
    known: tuple[PeerId, PeerId] | None = None  # incarnations that may know each other
    is_suspect: bool = False  # bytes of transfers between these may move though nobody waits for them
    connection: int = 0  # its number; 0: they are not connected
    connected_at_s: float = float("-inf")
    num_changes: int = 0
    task: asyncio.Task[None] | None = None
    is_tried: bool = False  # to connect them, at least once
    failure: Exception | None = None  # of the last try

    @property
    def engine_ids(self) -> tuple[EngineId, EngineId]:
        return self.prefill.info.engine_id, self.decode.info.engine_id

    @property
    def peers(self) -> tuple[PeerId, PeerId]:
        """As they are now."""
        return self.prefill.info.peer_id, self.decode.info.peer_id


class Peering:
    """Event loop only."""

    def __init__(
        self,
        prefill: Mapping[EngineId, PrefillEngineClient],
        decode: Mapping[EngineId, DecodeEngineClient],
        config: SchedulerConfig,
        runtime: Runtime,
        tasks: TaskSet,
        is_lost: Callable[[EngineId], bool],
        on_connect: Callable[[EngineId, EngineId], None],
        on_disconnect: Callable[[EngineId, EngineId], None],
        make_ready: Callable[[EngineId], Awaitable[None]],
    ) -> None:
        """``make_ready`` is awaited of both engines before they are connected, and may be of one at once for many."""
        self._make_ready = make_ready
        self._prefill, self._decode = prefill, decode
        self._config, self._runtime, self._tasks = config, runtime, tasks
        self._is_lost = is_lost
        self._on_connect, self._on_disconnect = on_connect, on_disconnect
        self._pairs = {(p, d): _Pair(prefill[p], decode[d]) for p in prefill for d in decode}
        self._of: dict[EngineId, list[_Pair]] = {engine_id: [] for engine_id in (*prefill, *decode)}
        for (prefill_id, decode_id), pair in self._pairs.items():
            self._of[prefill_id].append(pair)
            self._of[decode_id].append(pair)
        self._num_untried, self._all_tried = len(self._pairs), asyncio.Event()
        self._warnings = {engine_id: RepeatedWarning(_log, runtime) for engine_id in self._of}
        self._cleared: dict[EngineId, asyncio.Task[Exception | None]] = {}  # see ``_remove_strangers``
        self._gone: dict[EngineId, PeerId] = {}  # incarnations whose process has ended, until they have a successor
        self._num_connections = 0
        self._forgetting: dict[tuple[EngineId, PeerId], asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Try to connect all; those that fail are tried again. Raises where all are there and none can be connected."""
        pairs = self._pairs.values()
        for pair in pairs:
            self._attend(pair)
        if pairs:
            await self._all_tried.wait()
        if pairs and self.num_apart == len(pairs):
            raise DualPathError(f"engines cannot be connected: {next(iter(pairs)).failure}")

    def connection(self, prefill_id: EngineId, decode_id: EngineId) -> int:
        """Grows whenever any pair is connected; 0: this one is not, and no request should be placed on it."""
        return self._pairs[prefill_id, decode_id].connection

    def is_connected(self, prefill_id: EngineId, decode_id: EngineId) -> bool:
        return self.connection(prefill_id, decode_id) > 0

    def num_connected(self, engine_id: EngineId) -> int:
        """With how many of the other role the engine is connected."""
        return sum(pair.connection > 0 for pair in self._pairs_of(engine_id))

    def is_gone(self, engine_id: EngineId) -> bool:
        """Its process has ended, and there is no other yet."""
        return engine_id in self._gone and self._gone[engine_id] in self._pairs_of(engine_id)[0].peers

    @property
    def num_apart(self) -> int:
        """Pairs of engines that are both there, and not connected."""
        return sum(
            not pair.connection and not any(map(self._is_lost, pair.engine_ids)) for pair in self._pairs.values()
        )

    # -- events -------------------------------------------------------------------------------------------------------

    def engine_lost(self, engine_id: EngineId) -> None:
        """What it was moving may go on. The other sides let go of it, so that nobody waits for its transfers."""
        for pair in self._pairs_of(engine_id):
            self._suspect(pair)

    def engine_gone(self, engine_id: EngineId) -> None:
        """Its process has ended. Idempotent."""
        pairs = self._pairs_of(engine_id)
        peers = {pair.peers[pair.engine_ids.index(engine_id)] for pair in pairs}
        if peers and peers != {self._gone.get(engine_id)}:
            (self._gone[engine_id],) = peers
            for pair in pairs:
                self._suspect(pair)

    def engine_back(self, engine_id: EngineId) -> None:
        self._cleared.clear()  # it may be another: who knew the former one knows a stranger
        for pair in self._pairs_of(engine_id):
            self._attend(pair)

    def path_broken(self, prefill_id: EngineId, decode_id: EngineId, connection: int) -> None:
        """A transfer failed that began under this connection; one of an older connection has been dealt with."""
        pair = self._pairs[prefill_id, decode_id]
        if pair.connection and pair.connection <= connection:
            _log.warning("the path between %s and %s is broken", prefill_id, decode_id)
            self._suspect(pair)

    def engine_asked(self, engine_id: EngineId) -> Callable[[EngineStats], None]:
        """The result takes an engine's status: what it says of connections made since it was asked is old news."""
        latest = self._num_connections

        def answered(stats: EngineStats) -> None:
            for pair in self._pairs_of(engine_id):
                if pair.connection and pair.known != pair.peers:
                    self._cleared.clear()
                    self._suspect(pair)  # it has been started again, and nobody said so
            for peer in stats.broken_peers:
                self._take_broken(engine_id, peer, latest)

        return answered

    def _take_broken(self, engine_id: EngineId, peer: PeerId, latest: int) -> None:
        for pair in self._pairs_of(engine_id):
            if peer in pair.peers or (pair.known is not None and peer in pair.known):
                if pair.connection:
                    self.path_broken(*pair.engine_ids, latest)
                elif pair.known is None:  # a former scheduler connected them
                    pair.known = pair.peers
                    self._suspect(pair)
                return
        if (engine_id, peer) not in self._forgetting:
            self._forgetting[engine_id, peer] = self._tasks.spawn(self._forget(engine_id, peer), is_patrol=True)

    async def _forget(self, engine_id: EngineId, peer: PeerId) -> None:
        """Until the next status says so again."""
        try:
            await self._remove_stranger(engine_id, peer)
        except EngineFailure as failure:
            self._warnings[engine_id].log(f"{peer} is not forgotten: {failure}")
        finally:
            del self._forgetting[engine_id, peer]

    async def _remove_strangers(self, engine_id: EngineId) -> None:
        """Whom a former scheduler has introduced, and what they had sent, is there until the engine is told.

        Once, whoever it is to be connected with, until some engine is another incarnation.
        """
        clearing = self._cleared.get(engine_id)
        if clearing is None or (clearing.done() and clearing.result() is not None):
            clearing = self._cleared[engine_id] = self._tasks.spawn(self._clear(engine_id), is_patrol=True)
        if (error := await asyncio.shield(clearing)) is not None:
            raise error

    async def _clear(self, engine_id: EngineId) -> Exception | None:
        """What it failed by, if it did: each of the pairs that wait for it raises that, and tries again."""
        try:
            await self._remove_all_strangers(engine_id)
        except Exception as error:
            return error
        return None

    async def _remove_all_strangers(self, engine_id: EngineId) -> None:
        engine, latest = self._prefill.get(engine_id) or self._decode[engine_id], self._num_connections
        stats = await ask(engine_id, engine.stats(), self._config.stats_timeout_s)
        for peer in stats.broken_peers:  # which a former scheduler may have begun to mend
            self._take_broken(engine_id, peer, latest)
        living = {prefill.info.peer_id for prefill in self._prefill.values()}
        living |= {decode.info.peer_id for decode in self._decode.values()}
        for peer in stats.peers:
            if peer not in living:
                await self._remove_stranger(engine_id, peer)

    async def _remove_stranger(self, engine_id: EngineId, peer: PeerId) -> None:
        """Nobody's peer any more: a former incarnation, whose memory nobody uses."""
        prefill = self._prefill.get(engine_id)
        if prefill is None:
            await self._ask(engine_id, self._decode[engine_id].remove_peer(peer))
        else:
            await self._ask(engine_id, prefill.remove_peer(peer))
            await self._ask(engine_id, prefill.peer_at_rest(peer))

    # -- one pair -----------------------------------------------------------------------------------------------------

    def _pairs_of(self, engine_id: EngineId) -> list[_Pair]:
        return self._of[engine_id]

    def _suspect(self, pair: _Pair) -> None:
        pair.is_suspect = True
        self._disconnect(pair)
        self._attend(pair)

    def _disconnect(self, pair: _Pair) -> None:
        if pair.connection:
            pair.connection = 0
            self._on_disconnect(*pair.engine_ids)

    def _attend(self, pair: _Pair) -> None:
        """Something has changed: bring the pair as far as it can be brought now."""
        pair.num_changes += 1
        if pair.task is None:
            pair.task = self._tasks.spawn(self._look_after(pair), is_patrol=True)

    async def _look_after(self, pair: _Pair) -> None:
        try:
            while True:
                seen = pair.num_changes
                try:
                    is_settled = await self._settle(pair, seen)
                except Exception as error:
                    prefill_id, decode_id = pair.engine_ids
                    self._warnings[prefill_id].log(f"{prefill_id} and {decode_id} are not connected: {error}")
                    pair.failure = error
                    self._is_tried(pair)
                    await self._runtime.sleep_s(self._backoff(pair).next_s())
                    continue
                if is_settled and pair.num_changes == seen:
                    return
        finally:
            pair.task = None
            self._is_tried(pair)

    def _is_tried(self, pair: _Pair) -> None:
        if not pair.is_tried:
            pair.is_tried = True
            self._num_untried -= 1
            if not self._num_untried:
                self._all_tried.set()

    def _backoff(self, pair: _Pair) -> Backoff:
        if pair.backoff is None:
            pair.backoff = Backoff(self._config, self._runtime)
        return pair.backoff

    async def _settle(self, pair: _Pair, seen: int) -> bool:
        """One go. False: the pair has changed meanwhile."""
        is_there = [not self._is_lost(engine_id) for engine_id in pair.engine_ids]
        if pair.known is not None and (pair.is_suspect or pair.known != pair.peers):
            self._disconnect(pair)
            if all(is_there):
                await self._pause_if_it_keeps_breaking(pair)
            await self._bring_to_rest(pair, *is_there)
        if not all(is_there) or pair.connection:
            return True
        return await self._connect(pair, seen)

    async def _pause_if_it_keeps_breaking(self, pair: _Pair) -> None:
        if self._runtime.now_s() - pair.connected_at_s < self._config.pause_max_s:
            await self._runtime.sleep_s(self._backoff(pair).next_s())
        else:
            self._backoff(pair).reset()

    async def _bring_to_rest(self, pair: _Pair, prefill_is_there: bool, decode_is_there: bool) -> None:
        """Bring to rest what moves between the two that knew each other, as far as they are there to be asked."""
        assert pair.known is not None
        (prefill_id, decode_id), (prefill_peer, decode_peer) = pair.engine_ids, pair.known
        prefill_is_gone = self._is_gone(prefill_id, prefill_peer, pair.peers[0])
        decode_is_gone = self._is_gone(decode_id, decode_peer, pair.peers[1])
        asks_prefill = prefill_is_there and not prefill_is_gone
        asks_decode = decode_is_there and not decode_is_gone
        if asks_prefill:
            await self._ask(prefill_id, pair.prefill.remove_peer(decode_peer))
        if asks_decode:
            await self._ask(decode_id, pair.decode.remove_peer(prefill_peer))
        if asks_prefill and (asks_decode or decode_is_gone):
            await self._ask(prefill_id, pair.prefill.peer_at_rest(decode_peer))
        if (asks_prefill or prefill_is_gone) and (asks_decode or decode_is_gone):
            pair.known = None

    def _is_gone(self, engine_id: EngineId, peer: PeerId, now: PeerId) -> bool:
        return peer != now or self._gone.get(engine_id) == peer

    async def _connect(self, pair: _Pair, seen: int) -> bool:
        """False: one of the two has changed meanwhile, and it must be done again."""
        for engine_id in pair.engine_ids:
            await self._remove_strangers(engine_id)
            await self._make_ready(engine_id)
        if pair.num_changes != seen:
            return False
        peers = pair.known = pair.peers
        pair.is_suspect = True  # until both sides know
        prefill_id, decode_id = pair.engine_ids
        to_prefill, to_decode = pair.decode.info.peer_metadata, pair.prefill.info.peer_metadata
        # Whoever can push is known where it pushes to: else a new scheduler could not have it removed there.
        await self._ask(decode_id, pair.decode.add_peer(to_decode))
        await self._ask(prefill_id, pair.prefill.add_peer(to_prefill))
        if pair.peers != peers or pair.num_changes != seen:
            return False
        self._num_connections += 1
        pair.connection, pair.is_suspect = self._num_connections, False
        pair.connected_at_s = self._runtime.now_s()
        self._on_connect(prefill_id, decode_id)
        return True

    async def _ask(self, engine_id: EngineId, call: Awaitable[None]) -> None:
        await ask(engine_id, call, self._config.peer_timeout_s)
