"""Engines of another process, as the scheduler sees engines: the protocols of ``engine.api`` over a link."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from dualpath.core.ids import BlockKey, EngineId, PeerId, RequestId
from dualpath.core.request import TokenEvent
from dualpath.core.stats import EngineStats
from dualpath.engine.api import DecodeOrder, DecodeStep, EngineInfo, PrefillOrder, ReadOutcome
from dualpath.engine.remote import wire
from dualpath.engine.remote.link import NodeLink


class _RemoteEngine:
    """What both kinds share. While the link is down every call raises its EngineLostError at once."""

    def __init__(self, link: NodeLink, engine_id: EngineId) -> None:
        self._link, self._engine_id = link, engine_id

    @property
    def info(self) -> EngineInfo:
        """As of the latest session: a restarted process is another peer."""
        return self._link.info(self._engine_id)

    async def add_peer(self, peer_metadata: bytes) -> None:
        await self._link.calls.call(self._engine_id, wire.AddPeer(peer_metadata), type(None))

    async def remove_peer(self, peer: PeerId) -> None:
        await self._link.calls.call(self._engine_id, wire.RemovePeer(peer), type(None))

    async def read(self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]]) -> ReadOutcome:
        return await self._link.calls.call(self._engine_id, wire.Read(request_id, list(blocks)), ReadOutcome)

    async def stats(self) -> EngineStats:
        return await self._link.calls.call(self._engine_id, wire.Stats(), EngineStats)


class RemotePrefillEngine(_RemoteEngine):
    """Implements ``engine.api.PrefillEngineClient``."""

    async def peer_at_rest(self, peer: PeerId) -> None:
        await self._link.calls.call(self._engine_id, wire.PeerAtRest(peer), type(None))

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        work = wire.ReservePrefill(request_id, num_slots, num_prompt_blocks)
        await self._link.calls.call(self._engine_id, work, type(None))

    def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
        return self._link.calls.stream(self._engine_id, wire.Prefill(order), TokenEvent | None)

    async def release(self, request_id: RequestId) -> bool:
        return await self._link.calls.call(self._engine_id, wire.Release(request_id), bool)


class RemoteDecodeEngine(_RemoteEngine):
    """Implements ``engine.api.DecodeEngineClient``."""

    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        work = wire.ReserveDecode(request_id, num_slots)
        return await self._link.calls.call(self._engine_id, work, tuple[int, ...])

    def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        return self._link.calls.stream(self._engine_id, wire.Decode(order), DecodeStep)

    async def stop(self, request_id: RequestId) -> None:
        await self._link.calls.call(self._engine_id, wire.Stop(request_id), type(None))

    async def release(self, request_id: RequestId) -> None:
        await self._link.calls.call(self._engine_id, wire.Release(request_id), type(None))
