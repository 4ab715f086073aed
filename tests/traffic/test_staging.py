"""Staging slots are laid out as stored objects, and neighbouring units are copied as one run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.traffic.rig import GEOMETRY, OBJECT_BYTES, UNIT_BYTES, key_of

from dualpath.store.header import HEADER_BYTES
from dualpath.traffic.copier import find_runs
from dualpath.traffic.staging import Staging, device_region


def test_slots_are_page_aligned_objects_that_do_not_overlap() -> None:
    staging = Staging(GEOMETRY, 5)
    requests = [staging.request(key_of(0), slot) for slot in range(5)]
    assert all(request.address % 4096 == 0 and request.num_bytes == OBJECT_BYTES for request in requests)
    ends = [request.address + request.num_bytes for request in requests]
    assert all(end <= request.address for end, request in zip(ends, requests[1:], strict=False))
    last = staging.region.storage.data_ptr() + staging.region.storage.numel()
    assert ends[-1] <= last


def test_a_unit_is_one_layer_of_one_slot() -> None:
    staging = Staging(GEOMETRY, 4)
    np.frombuffer(staging.object_view(2), dtype=np.uint8)[HEADER_BYTES + UNIT_BYTES : HEADER_BYTES + 2 * UNIT_BYTES] = 7
    (unit,) = staging.units([2], 1)
    start = int(staging.region.addresses[unit]) - staging.region.storage.data_ptr()
    assert torch.all(staging.region.storage[start : start + UNIT_BYTES] == 7)
    assert staging.region.storage.sum() == 7 * UNIT_BYTES
    assert staging.units_all_layers(2).tolist() == [6, 7, 8]
    assert sorted(staging.slots_of(np.array([0, 2, 7, 8], dtype=np.int32))) == [0, 2]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, UNIT_BYTES, dtype=torch.int8),
        torch.zeros(4, UNIT_BYTES + 1, dtype=torch.uint8),
        torch.zeros(UNIT_BYTES, 4, dtype=torch.uint8).T,
    ],
)
def test_unfit_device_memory_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous uint8"):
        device_region(tensor, UNIT_BYTES)


def test_runs_join_only_what_is_adjacent_on_both_sides() -> None:
    source = np.array([0, 10, 20, 50, 60], dtype=np.int64)
    target = np.array([100, 110, 200, 210, 220], dtype=np.int64)
    assert list(find_runs(source, target, 10)) == [(0, 100, 20), (20, 200, 10), (50, 210, 20)]
