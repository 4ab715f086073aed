"""Reading a hit: an engine that is lost while it reads what the other could not ends the attempt."""

from __future__ import annotations

import pytest
from tests.scheduler.fakes import FakeDecode, FakeEngine, FakePrefill, FakeStorage
from tests.scheduler.fixtures import BLOCK
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import DualPathError, EngineLostError
from dualpath.core.ids import BlockKey, EngineId, RequestId
from dualpath.core.plan import ReadPlan
from dualpath.scheduler.accounts import Accounts
from dualpath.scheduler.engine_call import EngineFailure
from dualpath.scheduler.reading import HitReader

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
    accounts = Accounts([prefill.info, decode.info])
    plan = ReadPlan(2, num_prefill_blocks)

    async def read() -> None:
        reader = HitReader(RequestId("r"), KEYS, plan, prefill, decode, accounts, BLOCK, 5.0, lambda: None)
        with pytest.raises(EngineFailure) as failure:
            await reader.read()
        assert failure.value.engine_id == EngineId(lost)
        reader.close()

    run_virtual(read())
    assert accounts.is_idle
