"""Each resource in turn, nothing, and what is missing; every case is the quiet cluster with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, EngineStats, NodeStats, StoreStats
from dualpath.gateway.verdict.change import ClusterLook
from dualpath.gateway.verdict.judge import ResourceVerdict, judge

INTERVAL_S = 10.0
P, D = Role.PREFILL, Role.DECODE
NODES = tuple(
    NodeStats(NodeId(node), role, (EngineId(engine),), storage_nic_bytes_per_s=100.0, compute_nic_bytes_per_s=200.0)
    for node, role, engine in (("n0", P, "pe0"), ("n1", D, "de0"))
)
ENGINES = tuple(
    EngineStats(EngineId(engine), NodeId(node), role, staging_slots=10, device_kv_bytes=1000)
    for engine, node, role in (("pe0", "n0", P), ("de0", "n1", D))
)
QUIET = ClusterStats(ENGINES, nodes=NODES, store=StoreStats())


def record(name: str = "r", outcome: str = "running", arrived_s: float = 0.0, **phases_s: float) -> RequestRecord:
    return RequestRecord(RequestId(name), arrived_s, 10, outcome=outcome, phases_s=phases_s)


def engine(number: int, **changed: object) -> ClusterStats:
    engines = [replace(e, **changed) if i == number else e for i, e in enumerate(ENGINES)]  # type: ignore[arg-type]
    return replace(QUIET, engines=tuple(engines))


def node(number: int, **changed: object) -> ClusterStats:
    nodes = [replace(n, **changed) if i == number else n for i, n in enumerate(NODES)]  # type: ignore[arg-type]
    return replace(QUIET, nodes=tuple(nodes))


def verdict(after: ClusterStats, *records: RequestRecord, before: ClusterStats = QUIET) -> ResourceVerdict:
    return judge(ClusterLook(5.0, before, []), ClusterLook(5.0 + INTERVAL_S, after, list(records)))


# (what was seen, requests, resource, where, value): just over the threshold
CASES = {
    "pause": (replace(QUIET, is_paused=True), {"queued": 10.0}, "pause", "scheduler", 1),
    "lost node": (node(1, is_up=False, silent_s=12.0), {}, "silent node", "node n1 (decode)", 12.0),
    "silent node": (node(0, silent_s=3.0), {}, "silent node", "node n0 (prefill)", 3.0),
    "engine without an answer": (replace(QUIET, engines=ENGINES[:1]), {}, "silent node", "engine de0", 1),
    "stalled storage": (engine(0, storage_stalled_s=2.0), {}, "stalled storage", "node n0", 2.0),
    "failed reads": (
        engine(1, blocks_failed=1),
        {},
        "damaged or failed blocks",
        "decode engine de0 (node n1)",
        1,
    ),
    "damage": (engine(0, kv_corrupt=2), {}, "damaged or failed blocks", "prefill engine pe0 (node n0)", 2),
    "store": (replace(QUIET, store=StoreStats(False, "disk full")), {}, "store takes no writes", "store", 1),
    "decode memory": (
        engine(1, device_kv_used_bytes=500),
        {"handed_over": 5.0},
        "decode device memory",
        "decode engine de0 (node n1)",
        0.5,
    ),
    "decode memory set aside": (
        engine(1, device_kv_used_bytes=500),
        {"queued": 5.0},
        "decode device memory",
        "decode engines",
        0.5,
    ),
    "compute NIC": (
        engine(0, kv_transfer_bytes={"decode_to_prefill": 1700}),
        {},
        "compute NIC",
        "node n0 (prefill), decode_to_prefill",
        0.85,
    ),
    "prefill compute": (QUIET, {"ready": 5.0, "prefilling": 4.0}, "prefill compute", "prefill engines", 0.9),
    "NIC of the prefill side": (engine(0, nic_read_bytes=850), {}, "storage NIC", "node n0 (prefill), read", 0.85),
    "NIC of the decode side": (engine(1, nic_read_bytes=900), {}, "storage NIC", "node n1 (decode), read", 0.9),
    "NIC, writes": (engine(1, storage_write_bytes=850), {}, "storage NIC", "node n1 (decode), write", 0.85),
    "storage": (engine(0, nic_read_bytes=300), {"reading": 5.0}, "storage behind the NICs", "storage", 0.5),
    "prefill slots": (
        engine(0, staging_slots_used=4, staging_slots_aside=1),
        {"placed": 5.0},
        "staging slots",
        "prefill engine pe0 (node n0)",
        0.5,
    ),
    "decode slots": (
        engine(1, staging_slots_used=10),
        {"placed": 5.0},
        "staging slots",
        "decode engine de0 (node n1)",
        1.0,
    ),
    "engines": (QUIET, {"queued": 5.0}, "engines", "scheduler", 0.5),
}
# The same, just below it.
BELOW: dict[str, tuple[ClusterStats, dict[str, float]]] = {
    "silent node": (node(0, silent_s=2.9), {}),
    "stalled storage": (engine(0, storage_stalled_s=1.9), {}),
    "decode memory is not full": (engine(1, device_kv_used_bytes=499), {"handed_over": 5.0}),
    "nobody waits for it": (engine(1, device_kv_used_bytes=1000), {"handed_over": 4.9}),
    "memory of a prefill engine": (engine(0, device_kv_used_bytes=1000), {"handed_over": 5.0}),
    "compute NIC": (engine(0, kv_transfer_bytes={"decode_to_prefill": 1690, "prefill_to_decode": 1690}), {}),
    "prefill compute": (QUIET, {"ready": 5.0, "prefilling": 3.9}),
    "prefill compute, but more wait elsewhere": (QUIET, {"ready": 9.0, "placed": 9.1}),
    "storage NIC": (engine(0, nic_read_bytes=840, storage_write_bytes=840), {}),
    "storage": (engine(0, nic_read_bytes=300), {"reading": 4.9}),
    "storage, but more wait elsewhere": (engine(0, nic_read_bytes=300), {"reading": 5.0, "placed": 5.1}),
    "slots": (engine(0, staging_slots_used=4), {"placed": 5.0}),
    "nobody waits for slots": (engine(0, staging_slots_used=10), {"placed": 4.9}),
    "engines": (QUIET, {"queued": 4.9}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_binds(case: str) -> None:
    after, phases_s, resource, where, value = CASES[case]
    found = verdict(after, *([record(**phases_s)] if phases_s else []))
    assert found.state == "binds"
    assert [(f.resource, f.where) for f in found.findings] == [(resource, where)]
    assert found.findings[0].value == pytest.approx(value)
    assert found.findings[0].value >= found.findings[0].threshold
    assert found.headline.startswith(resource)
    assert found.missing == ()


@pytest.mark.parametrize("case", BELOW)
def test_just_below_a_threshold_nothing_binds(case: str) -> None:
    after, phases_s = BELOW[case]
    found = verdict(after, record(**phases_s, decoding=50.0))
    assert (found.state, found.findings, found.missing) == ("nothing", (), ())
    assert "time of requests is decoding" in found.headline


def test_without_requests_it_is_idle() -> None:
    assert verdict(QUIET).state == "idle"
    over = record(outcome="finished", reading=100.0)
    assert judge(ClusterLook(0.0, QUIET, [over]), ClusterLook(10.0, QUIET, [over])).state == "idle"


def test_only_what_happened_between_the_looks_counts() -> None:
    before = engine(0, nic_read_bytes=10_000, blocks_failed=7)
    assert verdict(before, record(decoding=5.0), before=before).state == "nothing"
    old, new = record(reading=100.0), record(reading=100.0, decoding=2.0)
    found = judge(ClusterLook(0.0, QUIET, [old]), ClusterLook(10.0, QUIET, [new]))
    assert found.requests_in_phase == {"decoding": 0.2}


def test_a_request_older_than_the_first_list_is_left_out() -> None:
    """What it did before the first look is not known."""
    first = record("new", arrived_s=50.0, decoding=1.0)
    old = record("old", arrived_s=10.0, queued=40.0)
    found = judge(
        ClusterLook(0.0, QUIET, [first]), ClusterLook(10.0, QUIET, [replace(first, phases_s={"decoding": 11.0}), old])
    )
    assert (found.state, found.requests_in_phase) == ("nothing", {"decoding": 1.0})


def test_engines_of_a_node_share_its_nic() -> None:
    """Each counts all that passed there: they are not added."""
    pair = (ENGINES[0], replace(ENGINES[0], engine_id=EngineId("pe1")), ENGINES[1])
    nodes = (replace(NODES[0], engines=(EngineId("pe0"), EngineId("pe1"))), NODES[1])
    before = ClusterStats(pair, nodes=nodes, store=StoreStats())
    after = replace(before, engines=tuple(replace(e, nic_read_bytes=500) for e in pair))
    assert verdict(after, record(decoding=5.0), before=before).state == "nothing"


def test_the_cause_comes_first() -> None:
    """Slots are held by those who wait for device memory: more slots would help nobody."""
    after = replace(QUIET, engines=(engine(0, nic_read_bytes=1000).engines[0], *ENGINES[1:]))
    full = replace(ENGINES[1], staging_slots_used=10, device_kv_used_bytes=1000)
    after = replace(after, engines=(after.engines[0], full))
    found = verdict(after, record(placed=9.0, handed_over=9.0))
    names = [finding.resource for finding in found.findings]
    assert names == ["decode device memory", "storage NIC", "staging slots"]


NO_RATE = replace(engine(0, nic_read_bytes=300), nodes=(replace(NODES[0], storage_nic_bytes_per_s=None), NODES[1]))
MISSING: dict[str, tuple[Callable[[], ResourceVerdict], str]] = {
    "interval": (lambda: judge(ClusterLook(0.0, QUIET, []), ClusterLook(0.4, QUIET, [])), "0.40 s apart"),
    "engines": (lambda: verdict(ClusterStats((), nodes=(), store=StoreStats())), "no engine answered"),
    "records": (lambda: judge(ClusterLook(0.0, QUIET, []), ClusterLook(9.0, QUIET, None)), "records of requests"),
    "a key that sees its own": (
        lambda: verdict(replace(QUIET, num_running_requests=3), record(decoding=1.0)),
        "1 of 3 running ones",
    ),
    "nodes": (lambda: verdict(replace(QUIET, nodes=()), record(decoding=1.0)), "nodes"),
    "store": (lambda: verdict(replace(QUIET, store=None), record(decoding=1.0)), "the store"),
    "restart": (lambda: verdict(QUIET, before=engine(1, num_forwards=4)), "engine de0 was started again"),
    "new engine": (lambda: verdict(QUIET, before=replace(QUIET, engines=ENGINES[:1])), "engine de0 is new"),
    "NIC rate": (lambda: verdict(NO_RATE, record(reading=5.0)), "rate of the storage NIC of node n0"),
}


@pytest.mark.parametrize("case", MISSING)
def test_it_does_not_guess(case: str) -> None:
    run, said = MISSING[case]
    found = run()
    assert (found.state, found.findings) == ("unknown", ())
    assert said in found.missing[0]
    assert said in found.headline


def test_what_is_seen_is_said_although_other_data_is_missing() -> None:
    stats = replace(engine(0, storage_stalled_s=9.0), nodes=())
    found = judge(ClusterLook(0.0, QUIET, None), ClusterLook(9.0, stats, None))
    assert [finding.resource for finding in found.findings] == ["stalled storage"]
    assert (found.state, len(found.missing)) == ("binds", 2)


def test_an_unknown_nic_rate_is_nobodys_business_while_nobody_waits() -> None:
    assert verdict(NO_RATE, record(reading=1.0, decoding=9.0)).state == "nothing"


def test_who_waits_for_nothing_that_is_full_is_named() -> None:
    found = verdict(engine(0, staging_slots_used=4), record(placed=8.0, decoding=50.0))
    assert found.state == "nothing"
    assert found.headline.endswith("; but 0.8 requests wait, most of them placed")
