"""Accounts: whatever is added comes off again, in any order, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.ids import EngineId, NodeId, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.engine.api import EngineInfo
from dualpath.scheduler.accounts import Accounts

ENGINES = [
    EngineInfo(EngineId("p"), PeerId("p"), NodeId("a"), Role.PREFILL, 1000, 1000, b""),
    EngineInfo(EngineId("d"), PeerId("d"), NodeId("b"), Role.DECODE, 1000, 5000, b""),
    EngineInfo(EngineId("e"), PeerId("e"), NodeId("b"), Role.DECODE, 1000, 5000, b""),
]


def test_what_an_engine_reports() -> None:
    accounts = Accounts(ENGINES)
    accounts.assign(RequestId("r"), EngineId("d"), 100)
    accounts.assign(RequestId("s"), EngineId("d"), 50)
    read = accounts.start_read(NodeId("b"), 640)
    snapshot = accounts.snapshot(EngineId("d"))
    assert (snapshot.num_requests, snapshot.num_tokens, snapshot.free_device_tokens) == (2, 150, 4850)
    assert accounts.snapshot(EngineId("e")).read_queue_tokens == 640, "a reading queue is its node's"
    accounts.grow(RequestId("s"), EngineId("d"), 40)
    accounts.grow(RequestId("s"), EngineId("d"), 80)
    assert accounts.snapshot(EngineId("d")).num_tokens == 180
    assert accounts.end_read(read)
    assert not accounts.end_read(read)
    assert accounts.release(RequestId("s"), EngineId("d"))
    assert not accounts.release(RequestId("s"), EngineId("d"))
    assert not accounts.is_idle
    assert accounts.release(RequestId("r"), EngineId("d"))
    assert accounts.is_idle
    accounts.check_integrity()


def test_assigning_twice_is_a_bug() -> None:
    accounts = Accounts(ENGINES)
    accounts.assign(RequestId("r"), EngineId("d"), 100)
    with pytest.raises(ValueError, match="already assigned"):
        accounts.assign(RequestId("r"), EngineId("d"), 100)


@given(st.lists(st.tuples(st.sampled_from("agrse"), st.integers(0, 5), st.integers(0, 2), st.integers(0, 900))))
def test_integrity_holds_after_any_sequence(operations: list[tuple[str, int, int, int]]) -> None:
    accounts = Accounts(ENGINES)
    assigned: set[tuple[RequestId, EngineId]] = set()
    reads = []
    for kind, number, engine, tokens in operations:
        pair = (RequestId(str(number)), ENGINES[engine].engine_id)
        if kind == "a" and pair not in assigned:
            accounts.assign(*pair, tokens)
            assigned.add(pair)
        elif kind == "g":
            accounts.grow(*pair, tokens)
        elif kind == "r":
            assert accounts.release(*pair) == (pair in assigned)
            assigned.discard(pair)
        elif kind == "s":
            reads.append(accounts.start_read(ENGINES[engine].node_id, tokens))
        elif kind == "e" and reads:
            accounts.end_read(reads[number % len(reads)])
        accounts.check_integrity()
    for pair in assigned:
        accounts.release(*pair)
    for read in reads:
        accounts.end_read(read)
    accounts.check_integrity()
    assert accounts.is_idle
    assert accounts.read_queue_tokens(NodeId("a")) == accounts.read_queue_tokens(NodeId("b")) == 0
