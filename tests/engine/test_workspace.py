"""What a failed forward's transfers may touch, layers and headers alike, the next forward does not use."""

from __future__ import annotations

import pytest
import torch

from dualpath.core.errors import DeadlineExceededError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import RequestId
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.workspace import Workspace

GEOMETRY = KvGeometry(num_layers=5, block_tokens=4, bytes_per_token_layer=8)


def test_a_workspace_that_is_set_aside_takes_its_pages_along() -> None:
    workspace = Workspace(GEOMETRY, 27, torch.device("cpu"), streams_layers=True, clock=SystemRuntime(), deadline_s=1.0)
    used = []
    for _ in range(2):
        (layers, first_unit), first_page = workspace.in_use, workspace.first_page
        num_units = layers.shape[0] * layers.shape[1]
        used.append((range(first_unit, first_unit + num_units), range(first_page, first_page + workspace.num_blocks)))
        workspace.set_aside()
    (units, pages), (spare_units, spare_pages) = used
    assert not set(units) & set(spare_units)
    assert not set(pages) & set(spare_pages)
    assert workspace.num_pages == len(pages) + len(spare_pages) == 14
    assert not workspace.is_usable
    workspace.take_back(1)
    assert workspace.first_page == spare_pages.start


@pytest.mark.parametrize("streams_layers", [True, False])
async def test_room_for_whole_requests_is_needed_where_layers_are_not_streamed(streams_layers: bool) -> None:
    workspace = Workspace(
        GEOMETRY, 28, torch.device("cpu"), streams_layers=streams_layers, clock=SystemRuntime(), deadline_s=0.01
    )
    await workspace.reserve(RequestId("first"), 5)
    if streams_layers:
        await workspace.reserve(RequestId("second"), 5)
        assert workspace.used_bytes == 0
    else:
        assert workspace.used_bytes == 5 * GEOMETRY.full_block_bytes
        with pytest.raises(DeadlineExceededError):
            await workspace.reserve(RequestId("second"), 5)
    workspace.release(RequestId("first"))
    await workspace.reserve(RequestId("second"), 5)
    workspace.release(RequestId("second"))
    assert workspace.used_bytes == 0
