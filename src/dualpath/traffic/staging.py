"""The staging buffer: one registered allocation of slots shaped like stored objects, for storage and peers alike.

A slot is a header of 4 KiB and a Full Block, padded to 4 KiB: one I/O request moves a whole object in or out, and every
(slot, layer) is a unit that peers can address. Unit id = slot * num_layers + layer. The headers are the units of
another region over the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.store.contract import IoRequest
from dualpath.store.header import HEADER_BYTES, object_bytes
from dualpath.traffic.contract import Region, Units

STAGING = "staging"
HEADERS = "headers"  # of the staging slots
DEVICE = "device"
PAGES = "pages"  # headers on their way from or to a peer
_PAGE_BYTES = 4096


class Staging:
    """Allocated and zeroed at once (so every page is present), never moved. Immutable but for the bytes; any thread."""

    def __init__(self, geometry: KvGeometry, num_slots: int) -> None:
        self.geometry = geometry
        self.num_slots = num_slots
        self.object_bytes = object_bytes(geometry)
        self.slot_bytes = -(-self.object_bytes // _PAGE_BYTES) * _PAGE_BYTES
        self._storage = _aligned_zeros(num_slots * self.slot_bytes)
        self._base = self._storage.data_ptr()
        self._bytes = memoryview(self._storage.numpy().data)
        self._layers = np.arange(geometry.num_layers, dtype=np.int32)
        self.region = self._make_region()
        self.headers = Region(HEADERS, self._storage, HEADER_BYTES, self._slot_addresses())

    def units(self, slots: Units | Sequence[int], layer: int) -> Units:
        """One layer of each slot."""
        return np.asarray(slots, dtype=np.int32) * np.int32(self.geometry.num_layers) + np.int32(layer)

    def units_all_layers(self, slot: int) -> Units:
        return self._layers + np.int32(slot * self.geometry.num_layers)

    def slots_of(self, units: Units) -> list[int]:
        """The distinct slots that these units lie in."""
        return list(set((units // self.geometry.num_layers).tolist()))

    def request(self, key: BlockKey, slot: int, namespace_digest: bytes = b"") -> IoRequest:
        return IoRequest(key, self._base + slot * self.slot_bytes, self.object_bytes, namespace_digest)

    def object_view(self, slot: int) -> memoryview:
        """The slot's header and payload."""
        start = slot * self.slot_bytes
        return self._bytes[start : start + self.object_bytes]

    def _make_region(self) -> Region:
        layers, unit_bytes = self.geometry.num_layers, self.geometry.layer_block_bytes
        payloads = self._slot_addresses()[:, None] + HEADER_BYTES
        addresses = payloads + np.arange(layers, dtype=np.int64) * unit_bytes
        return Region(STAGING, self._storage, unit_bytes, addresses.reshape(-1))

    def _slot_addresses(self) -> npt.NDArray[np.int64]:
        return self._base + np.arange(self.num_slots, dtype=np.int64) * self.slot_bytes


def device_region(tensor: torch.Tensor, unit_bytes: int) -> Region:
    """A device KV pool, or a workspace: contiguous ``uint8 [..., unit_bytes]`` on CPU or CUDA."""
    if tensor.dtype != torch.uint8 or not tensor.is_contiguous() or tensor.numel() % unit_bytes:
        raise ValueError(f"device memory must be contiguous uint8 in units of {unit_bytes} bytes, got {tensor.shape}")
    addresses = tensor.data_ptr() + np.arange(tensor.numel() // unit_bytes, dtype=np.int64) * unit_bytes
    return Region(DEVICE, tensor.view(-1), unit_bytes, addresses)


def page_region(num_pages: int) -> Region:
    storage = _aligned_zeros(num_pages * HEADER_BYTES)
    addresses = storage.data_ptr() + np.arange(num_pages, dtype=np.int64) * HEADER_BYTES
    return Region(PAGES, storage, HEADER_BYTES, addresses)


def _aligned_zeros(num_bytes: int) -> torch.Tensor:
    """``uint8 [num_bytes]`` at a page boundary. Direct I/O and memory registration both want whole pages."""
    raw = torch.empty(num_bytes + _PAGE_BYTES, dtype=torch.uint8)
    skip = -raw.data_ptr() % _PAGE_BYTES
    return raw[skip : skip + num_bytes].zero_()
