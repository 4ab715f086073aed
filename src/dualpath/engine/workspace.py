"""A prefill engine's device memory: two layers of a batch where layers are streamed, else whole requests.

Streamed layers have a spare pair: transfers of a failed forward may touch its pair for as long as a silent peer stays
silent, and the engine goes on in the other.
"""

from __future__ import annotations

import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import RequestId
from dualpath.core.runtime import Clock
from dualpath.engine.layer_stream import NUM_WORKSPACES, WholeStream, WorkspaceStream
from dualpath.traffic.slots import SlotPool

NUM_SPARES = 1


class WholeRequests:
    """Blocks of device memory, all layers of each, by request; first come, first served. Event loop only.

    This is what the paper's Basic pays (section 4): a request that waits for its KV already occupies room for all
    layers of all its tokens, so fewer requests fit into a batch. Only the amount is reserved; where a request's rows
    lie is decided forward by forward.
    """

    def __init__(self, num_blocks: int, clock: Clock, deadline_s: float) -> None:
        self._pool = SlotPool(num_blocks, clock)
        self._deadline_s = deadline_s
        self._held: dict[RequestId, list[int]] = {}
        self.peak_blocks = 0

    @property
    def used_blocks(self) -> int:
        return self._pool.num_used

    async def reserve(self, request_id: RequestId, num_blocks: int) -> None:
        """Wait for room, unless the request has it already. Raises DeadlineExceededError, and then nothing is held."""
        if request_id not in self._held:
            self._held[request_id] = await self._pool.acquire(num_blocks, self._deadline_s)
            self.peak_blocks = max(self.peak_blocks, self.used_blocks)

    def release(self, request_id: RequestId) -> None:
        """Idempotent."""
        self._pool.release(self._held.pop(request_id, []))

    def close(self) -> None:
        self._pool.close()


def workspace_layers(geometry: KvGeometry, *, streams_layers: bool) -> int:
    """Layers of device memory that a prefill engine takes."""
    return NUM_WORKSPACES * (1 + NUM_SPARES) if streams_layers else geometry.num_layers


class Workspace:
    """Allocated once. ``tensor`` is ``uint8 [layers held, blocks, block_tokens, bytes_per_token_layer]``.

    Spares are its last layers. One event loop; streams are the model thread's.
    """

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
        self._num_layers = NUM_WORKSPACES if streams_layers else geometry.num_layers
        num_sets = 1 + NUM_SPARES if streams_layers else 1
        shape = (num_sets * self._num_layers, self.num_blocks, geometry.block_tokens, geometry.bytes_per_token_layer)
        self.tensor = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._free = list(range(num_sets))  # the first is in use
        self.stream: type[WorkspaceStream] = WorkspaceStream if streams_layers else WholeStream
        self._block_bytes = self._num_layers * geometry.layer_block_bytes
        self._whole = None if streams_layers else WholeRequests(self.num_blocks, clock, deadline_s)
        self._batch_blocks = self._batch_peak = 0

    @property
    def is_usable(self) -> bool:
        """Is there memory that no former forward's transfers can touch?"""
        return bool(self._free)

    @property
    def has_spare(self) -> bool:
        return len(self._free) > 1

    @property
    def num_pages(self) -> int:
        """For the headers of a forward's blocks; as many sets of them as of layers, for the same reason."""
        return self.tensor.shape[0] // self._num_layers * self.num_blocks

    @property
    def first_page(self) -> int:
        """Of those that the next forward uses."""
        return self._free[0] * self.num_blocks

    @property
    def in_use(self) -> tuple[torch.Tensor, int]:
        """The layers that the next forward uses, and the first unit of them in the device region."""
        first = self._free[0] * self._num_layers
        return self.tensor[first : first + self._num_layers], first * self.num_blocks

    def set_aside(self) -> int:
        """What is in use cannot be used until ``take_back`` of the same number; a spare, if any, takes its place."""
        return self._free.pop(0)

    def take_back(self, number: int) -> None:
        self._free.append(number)

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
