"""What the two kinds of engine inside vLLM's workers have in common: staging, peers, facts, counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from dualpath.core.ids import BlockKey, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.core.stats import EngineStats
from dualpath.core.weights import Weights
from dualpath.engine.staged import StagedReads
from dualpath.engine.stats import engine_stats
from dualpath.protocol.api import EngineInfo, ReadOutcome
from dualpath.vllm.worker.parts import NodeParts
from dualpath.vllm.worker.tasks import Task, Tasks


class StagedNode(Generic[Task]):
    """Methods run on the node's event loop; ``tasks`` is vLLM's thread's, too."""

    role: Role

    def __init__(self, parts: NodeParts, max_context_tokens: int) -> None:
        self.parts = parts
        self.tasks: Tasks[Task] = Tasks(parts.namespace.digest)
        self.num_steps = 0  # of vLLM with work of ours, counted by its thread
        self._max_context_tokens = max_context_tokens
        self._staged = StagedReads(
            parts.traffic,
            parts.settings.slot_s,
            parts.runtime,
            is_written_by_peers=self.role is Role.DECODE,
            can_move=parts.num_ranks == 1,  # a slot has the same number in every rank
        )

    @property
    def info(self) -> EngineInfo:
        traffic, geometry = self.parts.traffic, self.parts.kv.geometry
        device_tokens = (self.parts.kv.num_blocks - 1) * geometry.block_tokens  # vLLM keeps a block for nothing
        slot_tokens = traffic.slots.num_slots * geometry.block_tokens
        return EngineInfo(
            traffic.engine_id,
            traffic.peer_id,
            traffic.node_id,
            self.role,
            min(slot_tokens, device_tokens - 1, self._max_context_tokens - 1),  # one token is to follow, at least
            device_tokens,
            traffic.metadata(),
            self.parts.integrity is not None,
            changes_in_place=True,
        )

    def check_idle(self) -> None:
        """Raise AssertionError where a request has left something behind."""
        name = self.parts.traffic.engine_id
        assert not len(self.tasks), f"{name}: {len(self.tasks)} requests are not released"
        assert not self._staged.num_requests, f"{name}: {self._staged.num_requests} requests hold staging slots"

    async def add_peer(self, peer_metadata: bytes) -> None:
        await self.parts.runtime.to_thread(self.parts.traffic.add_peer, peer_metadata)

    async def remove_peer(self, peer: PeerId) -> None:
        await self.parts.runtime.to_thread(self.parts.traffic.remove_peer, peer)

    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes = b""
    ) -> ReadOutcome:
        return await self._staged.read(request_id, blocks, self.parts.weights.own(namespace_digest))

    async def weights(self) -> tuple[Weights, str]:
        return self.parts.weights.in_use()

    async def name_weights(self, weights: Weights) -> str:
        return await self.parts.runtime.to_thread(self.parts.weights.name, weights)

    async def door_key(self) -> str:
        return self.parts.door_key

    async def stats(self) -> EngineStats:
        """How much of its KV is in use, only vLLM knows: its own metrics say that."""
        kv = self.parts.kv
        return engine_stats(
            self.parts.traffic,
            num_forwards=self.num_steps,
            num_requests=self._staged.num_requests,
            device_kv_bytes=kv.num_blocks * kv.geometry.full_block_bytes,
        )
