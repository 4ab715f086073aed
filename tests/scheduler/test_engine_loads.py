"""EngineLoads: whatever is added comes off again, in any order, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.ids import EngineId, NodeId, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.protocol.api import EngineInfo
from dualpath.scheduler.engine_loads import EngineLoads

ENGINES = [
    EngineInfo(EngineId("p"), PeerId("p"), NodeId("a"), Role.PREFILL, 1000, 1000, b""),
    EngineInfo(EngineId("d"), PeerId("d"), NodeId("b"), Role.DECODE, 1000, 5000, b""),
    EngineInfo(EngineId("e"), PeerId("e"), NodeId("b"), Role.DECODE, 1000, 5000, b""),
]


def test_what_an_engine_reports() -> None:
    engine_loads = EngineLoads(ENGINES)
    engine_loads.assign(RequestId("r"), EngineId("d"), 100)
    engine_loads.assign(RequestId("s"), EngineId("d"), 50)
    read = engine_loads.start_read(NodeId("b"), 640)
    snapshot = engine_loads.of(EngineId("d"))
    assert (snapshot.num_requests, snapshot.num_tokens, snapshot.free_device_tokens) == (2, 150, 4850)
    assert engine_loads.of(EngineId("e")).read_queue_tokens == 640, "a reading queue is its node's"
    engine_loads.grow(RequestId("s"), EngineId("d"), 40)
    engine_loads.grow(RequestId("s"), EngineId("d"), 80)
    assert engine_loads.of(EngineId("d")).num_tokens == 180
    assert engine_loads.end_read(read)
    assert not engine_loads.end_read(read)
    assert engine_loads.release(RequestId("s"), EngineId("d"))
    assert not engine_loads.release(RequestId("s"), EngineId("d"))
    assert not engine_loads.is_idle
    assert engine_loads.release(RequestId("r"), EngineId("d"))
    assert engine_loads.is_idle
    engine_loads.check_integrity()


def test_assigning_twice_is_a_bug() -> None:
    engine_loads = EngineLoads(ENGINES)
    engine_loads.assign(RequestId("r"), EngineId("d"), 100)
    with pytest.raises(ValueError, match="already assigned"):
        engine_loads.assign(RequestId("r"), EngineId("d"), 100)


@given(st.lists(st.tuples(st.sampled_from("agrse"), st.integers(0, 5), st.integers(0, 2), st.integers(0, 900))))
def test_integrity_holds_after_any_sequence(operations: list[tuple[str, int, int, int]]) -> None:
    engine_loads = EngineLoads(ENGINES)
    assigned: set[tuple[RequestId, EngineId]] = set()
    reads = []
    for kind, number, engine, tokens in operations:
        pair = (RequestId(str(number)), ENGINES[engine].engine_id)
        if kind == "a" and pair not in assigned:
            engine_loads.assign(*pair, tokens)
            assigned.add(pair)
        elif kind == "g":
            engine_loads.grow(*pair, tokens)
        elif kind == "r":
            assert engine_loads.release(*pair) == (pair in assigned)
            assigned.discard(pair)
        elif kind == "s":
            reads.append(engine_loads.start_read(ENGINES[engine].node_id, tokens))
        elif kind == "e" and reads:
            engine_loads.end_read(reads[number % len(reads)])
        engine_loads.check_integrity()
    for pair in assigned:
        engine_loads.release(*pair)
    for read in reads:
        engine_loads.end_read(read)
    engine_loads.check_integrity()
    assert engine_loads.is_idle
    assert engine_loads.read_queue_tokens(NodeId("a")) == engine_loads.read_queue_tokens(NodeId("b")) == 0
