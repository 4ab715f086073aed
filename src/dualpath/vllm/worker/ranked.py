"""One engine of several ranks: the first rank's node has the control line, and asks the others' nodes what it is asked.

A block is there when every rank has its part, and a prompt is handed over when every rank has pushed its own. Ranks
move KV with their likes of the other side only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.core.ids import BlockKey, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.core.stats import EngineStats
from dualpath.core.weights import Weights
from dualpath.engine.stats import of_ranks
from dualpath.protocol.api import EngineInfo, PrefillOrder, ReadOutcome
from dualpath.vllm.together import all_or_none, each, rest
from dualpath.vllm.worker.staged import StagedNode
from dualpath.vllm.worker.staged_prefill import StagedPrefill

Own = TypeVar("Own", bound=StagedNode[Any])


class Ranked(Generic[Own]):
    """Methods run on the first rank's event loop. ``others`` are stubs over its links, in the order of ranks."""

    role: Role

    def __init__(self, own: Own, others: Sequence[Any]) -> None:
        self._own, self._others = own, tuple(others)
        self._ranks: tuple[Any, ...] = (own, *others)

    @property
    def info(self) -> EngineInfo:
        infos = [rank.info for rank in self._ranks]
        return replace(
            infos[0],
            max_prompt_tokens=min(info.max_prompt_tokens for info in infos),
            device_kv_tokens=min(info.device_kv_tokens for info in infos),
            peer_metadata=msgspec.msgpack.encode([info.peer_metadata for info in infos]),
        )

    async def add_peer(self, peer_metadata: bytes) -> None:
        """Raises ConfigError where the peer has not as many ranks."""
        try:
            found = msgspec.msgpack.decode(peer_metadata, type=list[bytes])
        except msgspec.MsgspecError:
            found = [peer_metadata]
        if len(found) != len(self._ranks):
            raise ConfigError(f"{len(found)} ranks on the other side, {len(self._ranks)} here: they must be equal")
        await all_or_none(rank.add_peer(one) for rank, one in zip(self._ranks, found, strict=True))

    async def remove_peer(self, peer: PeerId) -> None:
        await each(rank.remove_peer(peer) for rank in self._ranks)

    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes = b""
    ) -> ReadOutcome:
        found = await all_or_none(rank.read(request_id, blocks, namespace_digest) for rank in self._ranks)
        gone = frozenset[int]().union(*(outcome.gone for outcome in found))
        failed = frozenset[int]().union(*(outcome.failed for outcome in found))
        ok = frozenset[int].intersection(*(outcome.ok for outcome in found))
        return ReadOutcome(ok, gone, failed - gone, sum(outcome.num_bytes for outcome in found))

    async def stats(self) -> EngineStats:
        return of_ranks(await all_or_none(rank.stats() for rank in self._ranks))

    async def weights(self) -> tuple[Weights, str]:
        return await self._own.weights()

    async def name_weights(self, weights: Weights) -> str:
        """Raises ConfigError also where ranks read different files."""
        found = await all_or_none(rank.name_weights(weights) for rank in self._ranks)
        if len(set(found)) > 1:
            raise ConfigError(f"{weights.directory} is not the same for every rank")
        return cast(str, found[0])

    async def door_key(self) -> str:
        return await self._own.door_key()


class RankedPrefill(Ranked[StagedPrefill]):
    """``line.PrefillNodeLine``."""

    role = Role.PREFILL

    async def peer_at_rest(self, peer: PeerId) -> None:
        await each(rank.peer_at_rest(peer) for rank in self._ranks)

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        await all_or_none(rank.reserve(request_id, num_slots, num_prompt_blocks) for rank in self._ranks)

    async def hand_over(self, order: PrefillOrder) -> AsyncIterator[bool]:
        async with AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(aclosing(rank.hand_over(order))) for rank in self._ranks]
            await all_or_none(anext(line) for line in lines)
            yield True
            await all_or_none(rest(line) for line in lines)

    async def release(self, request_id: RequestId) -> bool:
        """Every rank is asked, whatever the others say."""
        return all(await each(rank.release(request_id) for rank in self._ranks))
