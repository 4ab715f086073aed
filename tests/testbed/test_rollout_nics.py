"""What the engines' counters say of each NIC, also when an engine does not answer at the end."""

from __future__ import annotations

import pytest

from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Direction, Role
from dualpath.core.stats import ClusterStats, EngineStats
from dualpath.testbed import rollout_nics
from dualpath.testbed.counters import NicCounters
from dualpath.testbed.rollout_nics import HEADER_BYTES, NicWatch, program_bytes
from dualpath.testbed.spec import COMPUTE_NIC, KV_NIC, STORAGE_NIC, TestbedSpec

TO_PREFILL, TO_DECODE = Direction.DECODE_TO_PREFILL.value, Direction.PREFILL_TO_DECODE.value


def engine(name: str, role: Role, read: int, written: int, pulled: int = 0, pushed: int = 0) -> EngineStats:
    return EngineStats(
        EngineId(name),
        NodeId(name),
        role,
        storage_read_bytes=read,
        storage_write_bytes=written,
        kv_transfer_bytes={TO_PREFILL: pulled, TO_DECODE: pushed},
    )


def stats(*engines: EngineStats) -> ClusterStats:
    return ClusterStats(engines)


BEFORE = stats(
    engine("pe0", Role.PREFILL, 10, 0, 3, 4), engine("de0", Role.DECODE, 20, 5), engine("de1", Role.DECODE, 0, 0)
)
AFTER = stats(
    engine("pe0", Role.PREFILL, 110, 0, 33, 54), engine("de0", Role.DECODE, 220, 55), engine("de1", Role.DECODE, 7, 8)
)


@pytest.mark.parametrize(
    ("host", "nic", "expected"),
    [
        ("pe0", STORAGE_NIC, (100, 0)),
        ("de0", STORAGE_NIC, (200, 50)),
        ("storage", STORAGE_NIC, (58, 307)),
        ("pe0", KV_NIC, (30, 50)),
        ("de0", KV_NIC, (None, None)),  # of the two, who can tell
        ("pe0", COMPUTE_NIC, (None, None)),
    ],
)
def test_the_difference_of_two_moments(host: str, nic: str, expected: tuple[int, int]) -> None:
    assert program_bytes(host, nic, BEFORE, AFTER) == expected


def test_one_decode_node_gets_all_kv() -> None:
    assert program_bytes("de0", KV_NIC, stats(*BEFORE.engines[:2]), stats(*AFTER.engines[:2])) == (50, 30)


def test_a_new_process_counts_from_zero() -> None:
    after = stats(AFTER.engines[0], engine("de0", Role.DECODE, 15, 2), AFTER.engines[2])
    assert program_bytes("de0", STORAGE_NIC, BEFORE, after) == (15, 2)


def test_what_a_silent_engine_has_counted_is_not_known() -> None:
    after = stats(AFTER.engines[0], AFTER.engines[2])
    assert program_bytes("pe0", STORAGE_NIC, BEFORE, after) == (100, 0)
    assert program_bytes("pe0", KV_NIC, BEFORE, after) == (30, 50)
    for host, nic in (("de0", STORAGE_NIC), ("de0", KV_NIC), ("de1", KV_NIC), ("storage", STORAGE_NIC)):
        assert program_bytes(host, nic, BEFORE, after) == (None, None)


def test_acknowledgements_of_what_a_nic_receives_are_not_payload_that_it_sends() -> None:
    """An engine that reads a lot and writes a little: by bytes alone it seems to send a third more than it writes."""
    spec = TestbedSpec(nodes=("pe0",), storage_nic_mbps=200, compute_nic_mbps=800)
    read, written, num_read, num_acks, num_written = 10_000_000, 100_000, 7_000, 500, 70
    start = NicCounters("pe0", STORAGE_NIC, 1000, 2000, 10, 20)
    end = NicCounters(
        "pe0",
        STORAGE_NIC,
        start.rx_bytes + read + HEADER_BYTES * num_read,
        start.tx_bytes + written + 1_000 + HEADER_BYTES * (num_written + num_acks),
        start.rx_packets + num_read,
        start.tx_packets + num_written + num_acks,
    )
    watch = NicWatch(spec, [(0.0, [start]), (9.0, [end])], cpu_s=[{}, {}])
    watch.stats = [
        stats(engine("pe0", Role.PREFILL, 0, 0)),
        stats(engine("pe0", Role.PREFILL, read, written)),
    ]
    (nic,) = watch.report()["nics"]
    assert nic["tx_bytes"] > 1.3 * written
    assert (nic["rx_excess"], nic["tx_excess"]) == (0.0, 0.01)
    assert nic["tx_header_bytes"] == HEADER_BYTES * (num_written + num_acks)


async def test_the_end_waits_for_a_write_under_way_and_not_for_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_nics, "_REST_S", 0.0)
    written = iter([0, 700_000, 1_400_000, 2_100_000, 2_100_100])

    async def read() -> list[NicCounters]:
        sent = next(written)
        return [NicCounters("de0", STORAGE_NIC, 0, sent, 0, 0), NicCounters("de0", COMPUTE_NIC, 0, 9 * sent, 0, 0)]

    await rollout_nics._until_at_rest(read)
    assert next(written, None) is None
