"""A decode engine has its steps captured before the first one, over its own pool with a block that is nobody's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tests.engine.pair import GEOMETRY

from dualpath.engine.block_pool import BlockPool
from dualpath.engine.decode import DecodeConfig, DecodeEngine


def test_steps_are_captured_on_the_models_thread_before_the_engine_runs() -> None:
    engine: Any = DecodeEngine.__new__(DecodeEngine)
    asked: list[Any] = []

    class Model:
        def capture_decode(self, pool: torch.Tensor, limits: Any) -> bool:
            asked.append((tuple(pool.shape), limits))
            return True

    engine._config = replace(DecodeConfig(640), graph_context_tokens=100, max_batch_requests=8)
    engine._geometry = GEOMETRY
    engine._pool = BlockPool(GEOMETRY, 10, torch.device("cpu"), 1)
    engine._capture(Model(), 100)
    ((shape, limits),) = asked
    assert shape[0] == 11
    assert limits.scratch_block == 10
    assert limits.max_requests == 8
    assert limits.max_blocks == min(10, GEOMETRY.blocks_for(101))


def test_the_scratch_block_is_never_handed_out() -> None:
    pool = BlockPool(GEOMETRY, 3, torch.device("cpu"), 1)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.allocate(1) is None
    assert len(pool.tensor) == 4
