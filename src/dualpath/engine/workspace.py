"""A prefill engine's device memory: two layers of a batch where layers are streamed, else whole requests."""

from __future__ import annotations

import torch

from dualpath.core.clock import Clock
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import RequestId
from dualpath.engine.layer_stream import NUM_WORKSPACES, WholeStream, WorkspaceStream
from dualpath.engine.whole_requests import WholeRequests


class Workspace:
    """Allocated once. ``tensor`` is ``uint8 [layers held, blocks, block_tokens, bytes_per_token_layer]``."""

    def __init__(
        self,
        geometry: KvGeometry,
        num_tokens: int,
        device: torch.device,
        *,
        streams_layers: bool,
        clock: Clock,
        deadline_s: float,
    ) -> None:
        self.num_blocks = geometry.blocks_for(num_tokens)
        num_layers = NUM_WORKSPACES if streams_layers else geometry.num_layers
        shape = (num_layers, self.num_blocks, geometry.block_tokens, geometry.bytes_per_token_layer)
        self.tensor = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.stream: type[WorkspaceStream] = WorkspaceStream if streams_layers else WholeStream
        self._block_bytes = num_layers * geometry.layer_block_bytes
        self._whole = None if streams_layers else WholeRequests(self.num_blocks, clock, deadline_s)
        self._batch_blocks = self._batch_peak = 0

    async def reserve(self, request_id: RequestId, num_blocks: int) -> None:
        """Room for a whole request, from its read to its last forward; where layers are streamed it needs none."""
        if self._whole is not None:
            await self._whole.reserve(request_id, num_blocks)

    def release(self, request_id: RequestId) -> None:
        """Idempotent."""
        if self._whole is not None:
            self._whole.release(request_id)

    def set_batch(self, num_blocks: int) -> None:
        """The forward that runs now takes so many blocks of every layer; 0: none runs."""
        self._batch_blocks = num_blocks
        self._batch_peak = max(self._batch_peak, num_blocks)

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()

    @property
    def num_bytes(self) -> int:
        return self.tensor.numel()

    @property
    def used_bytes(self) -> int:
        return self._block_bytes * (self._batch_blocks if self._whole is None else self._whole.used_blocks)

    @property
    def peak_bytes(self) -> int:
        return self._block_bytes * (self._batch_peak if self._whole is None else self._whole.peak_blocks)
