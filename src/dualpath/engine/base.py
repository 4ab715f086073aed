"""What prefill and decode engines share: traffic manager, model thread, steps, change of weights, start and end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from dualpath.core.compute_gate import ComputeGate
from dualpath.core.errors import ConfigError, EngineLostError, OtherWeightsError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import Namespace
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import EngineStats
from dualpath.core.weights import Weights
from dualpath.engine.output_states import OutputStates
from dualpath.engine.spans import EngineSpans
from dualpath.engine.staged import StagedReads
from dualpath.engine.stats import engine_stats
from dualpath.engine.trace import ChromeTrace
from dualpath.grammar.state import Grammars
from dualpath.models.compute_stream import compute_stream
from dualpath.models.seam import Model, WeightUpdates
from dualpath.protocol.api import EngineInfo, ReadOutcome
from dualpath.traffic.manager import TrafficManager

_FORWARD_END_S = 60.0  # that closing waits for the forward under way


class EngineBase(ABC):
    """Methods run on one event loop."""

    role: Role
    _staged: StagedReads

    def __init__(
        self,
        engine_id: EngineId,
        node_id: NodeId,
        model: Model,
        geometry: KvGeometry,
        namespace: Namespace,
        traffic: TrafficManager,
        runtime: Runtime | None,
        trace: ChromeTrace | None,
        grammars: Grammars | None,
        updates: WeightUpdates | None,
    ) -> None:
        self._engine_id, self._node_id = engine_id, node_id
        self._model, self._geometry, self._traffic = model, geometry, traffic
        self._runtime, self._trace = runtime or SystemRuntime(), trace
        self._work = asyncio.Event()
        self._compute_gate = ComputeGate()
        self._namespace, self._updates, self._weights = namespace, updates, Weights()
        self._change: asyncio.Task[None] | None = None  # of the weights
        self._worker = self._runtime.worker(f"{engine_id}-model")
        self._outputs = OutputStates(grammars, model.spec.eos_token_ids, self._runtime, f"{engine_id}-masks")
        self._compute = compute_stream(model.device, engine_id, self._runtime)
        self._loop_task: asyncio.Task[None] | None = None
        self._num_forwards = 0
        self._spans = EngineSpans(engine_id, node_id, self.role, self._runtime)

    async def start(self) -> None:
        self._compute.drain()  # memory was zeroed on the device: copiers have other streams
        await self._runtime.to_thread(self._traffic.start)
        self._loop_task = asyncio.create_task(self._run(), name=f"{self._engine_id}-loop")

    async def close(self) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        await self._close_own()
        await self._runtime.to_thread(self._worker.close, _FORWARD_END_S)
        await self._runtime.to_thread(self._outputs.close, _FORWARD_END_S)
        await self._runtime.to_thread(self._compute.close, _FORWARD_END_S)
        for listener in self._listeners():
            listener.put_nowait(EngineLostError(f"{self._engine_id} is closing"))
        await self._runtime.to_thread(self._traffic.close)

    @abstractmethod
    async def _run(self) -> None:
        """Steps, until it is cancelled."""

    @abstractmethod
    async def _close_own(self) -> None:
        """After the last step: end what waits or moves."""

    @abstractmethod
    def _listeners(self) -> Iterable[asyncio.Queue[Any]]:
        """Of all requests that wait for something of this engine."""

    @property
    def namespace(self) -> Namespace:
        """Of the weights in use."""
        return self._namespace

    @property
    def traffic(self) -> TrafficManager:
        return self._traffic

    async def pause(self) -> None:
        await self._compute_gate.pause()

    async def resume(self) -> None:
        self._compute_gate.resume()

    async def weights(self) -> tuple[Weights, str]:
        return self._weights, self._namespace.model_fingerprint

    async def load_weights(self, weights: Weights) -> str:
        if self._updates is None:
            raise ConfigError(f"{self._engine_id}: its weights cannot be changed")
        return await self._runtime.to_thread(self._updates.load, weights)

    async def drop_weights(self, weights: Weights) -> None:
        if self._updates is not None:
            await self._runtime.to_thread(self._updates.drop, weights)

    async def use_weights(self, weights: Weights) -> None:
        """Once it has begun it comes to its end, whoever waits for that."""
        while self._change is not None and not self._change.done():
            await asyncio.wait([self._change])
        if weights != self._weights:
            change = self._change = asyncio.create_task(self._use_weights(weights))
            try:
                await asyncio.shield(change)
            finally:
                if change.done() and self._change is change:
                    self._change = None  # with an error it would hold what was loaded

    async def _use_weights(self, weights: Weights) -> None:
        if self._updates is None:
            raise ConfigError(f"{self._engine_id}: its weights cannot be changed")
        await self._compute_gate.begin_change()
        try:
            await self._worker.call(self._take_weights, weights)
            fingerprint, former = self._model.spec.fingerprint, self._namespace.model_fingerprint
            self._weights, self._namespace = weights, replace(self._namespace, model_fingerprint=fingerprint)
            self._weights_changed(is_same=fingerprint == former)
        finally:
            self._compute_gate.end_change()

    def _take_weights(self, weights: Weights) -> None:
        """Model thread. The former model is no argument of its job: jobs outlive what awaits them by a moment."""
        assert self._updates is not None
        self._model = self._updates.take(weights, self._model)

    @abstractmethod
    def _weights_changed(self, *, is_same: bool) -> None:
        """The next forward computes with others, or, by their fingerprint, with the same. No forward is running."""

    def _check_weights(self, namespace_digest: bytes) -> None:
        """Whoever orders something must mean the weights that are here."""
        if namespace_digest and namespace_digest != self._namespace.digest:
            raise OtherWeightsError(f"{self._engine_id} has other weights")

    async def add_peer(self, peer_metadata: bytes) -> None:
        await self._runtime.to_thread(self._traffic.add_peer, peer_metadata)

    async def remove_peer(self, peer: PeerId) -> None:
        await self._runtime.to_thread(self._traffic.remove_peer, peer)

    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes = b""
    ) -> ReadOutcome:
        with self._spans.around(request_id, "storage read") as attributes:
            outcome = await self._staged.read(request_id, blocks, namespace_digest)
            attributes |= {"blocks": len(blocks), "bytes": outcome.num_bytes, "blocks_read": len(outcome.ok)}
        return outcome

    def _info(self, num_device_blocks: int, num_rows_kept: int, verifies: bool) -> EngineInfo:
        """``num_rows_kept``: of device memory, for other things than a prompt."""
        slots = self._traffic.slots.num_slots * self._geometry.block_tokens
        rows = num_device_blocks * self._geometry.block_tokens
        return EngineInfo(
            self._engine_id,
            self._traffic.peer_id,
            self._node_id,
            self.role,
            min(slots, rows - num_rows_kept),
            rows,
            self._traffic.metadata(),
            verifies,
        )

    def _stats(self, num_requests: int, num_bytes: int, used_bytes: int, peak_bytes: int, **own: Any) -> EngineStats:
        """The traffic manager's counters and the engine's own; bytes of device memory."""
        return engine_stats(
            self._traffic,
            num_forwards=self._num_forwards,
            num_requests=num_requests,
            device_kv_bytes=num_bytes,
            device_kv_used_bytes=used_bytes,
            device_kv_peak_bytes=peak_bytes,
            **own,
        )
