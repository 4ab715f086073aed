"""Reading a hit: an engine that is lost while it reads what the other could not ends the attempt."""

from __future__ import annotations

from typing import cast

import pytest
from tests.scheduler.fakes import FakeDecode, FakeEngine, FakePrefill, FakeStorage
from tests.scheduler.fixtures import BLOCK
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import DualPathError, EngineLostError
from dualpath.core.ids import BlockKey, EngineId, RequestId
from dualpath.core.plan import ReadPlan, Role
from dualpath.scheduler.demand import Placement
from dualpath.scheduler.desk.api import Notes
from dualpath.scheduler.desk.stay import Stay
from dualpath.scheduler.engine_call import EngineFailure
from dualpath.scheduler.engine_loads import EngineLoads
from dualpath.scheduler.reading import HitReader
from dualpath.store.index import BlockIndex


class Reads:
    """Of ``Notes`` those that tell of reads."""

    def __init__(self, stay: Stay) -> None:
        self._stay = stay

    def read_begins(self, request_id: RequestId, number: int, role: Role, num_tokens: int) -> None:
        self._stay.begin_read(number, role, num_tokens)

    def read_ends(self, request_id: RequestId, number: int) -> None:
        self._stay.end_read(number)


KEYS = [BlockKey(bytes([i]) * 16) for i in range(2)]


@pytest.mark.parametrize(
    ("num_prefill_blocks", "lost", "error"),
    [(0, "pe0", EngineLostError("gone")), (2, "de0", EngineLostError("gone")), (2, "de0", DualPathError("late"))],
)
def test_a_side_that_is_lost_in_the_second_reading_is_told(
    num_prefill_blocks: int, lost: str, error: DualPathError
) -> None:
    decode = FakeDecode("de0", FakeStorage(set(KEYS)))
    prefill = FakePrefill("pe0", decode.storage, {decode.info.engine_id: decode})
    engines: dict[str, FakeEngine] = {"pe0": prefill, "de0": decode}
    engines.pop(lost).faults["read"].append(error)
    (first,) = engines.values()
    first.failing_keys = set(KEYS)
    engine_loads = EngineLoads([prefill.info, decode.info])
    nodes = {Role.PREFILL: prefill.info.node_id, Role.DECODE: decode.info.node_id}
    placement = Placement(prefill.info.engine_id, decode.info.engine_id)
    request_id = RequestId("r")
    stay = Stay(request_id, placement, nodes, 1, engine_loads, BlockIndex(100))
    desk = cast(Notes, Reads(stay))
    plan = ReadPlan(2, num_prefill_blocks)

    async def read() -> None:
        stay.begin_read(0, Role.PREFILL, plan.num_prefill_blocks * BLOCK)
        stay.begin_read(1, Role.DECODE, plan.num_decode_blocks * BLOCK)
        reader = HitReader(request_id, KEYS, plan, prefill, decode, desk, BLOCK, 5.0, lambda: None)
        with pytest.raises(EngineFailure) as failure:
            await reader.read()
        assert failure.value.engine_id == EngineId(lost)

    run_virtual(read())
    assert engine_loads.is_idle
