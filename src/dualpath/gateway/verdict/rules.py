"""The rules of the verdict: for each resource what is measured, the threshold, and the sentence that says both.

Their order is that of causes. First what is broken. Then what is full, from the end of a request's way to its start:
who waits downstream holds what those upstream wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dualpath.core.phase import Phase
from dualpath.core.plan import Direction, Role
from dualpath.core.stats import EngineStats, NodeStats
from dualpath.gateway.verdict.change import Change, transferred_bytes

PAUSED = "paused: requests wait until POST /resume"
SILENT_S = 3.0  # nodes give a sign of life every half second
STALLED_S = 2.0  # of the oldest file-system call
NIC_SHARE = 0.85  # of a NIC's rate: beyond it what it moves waits
FULL_SHARE = 0.5  # of slots or memory, while somebody waits for them: a long prompt needs many at once
WAITING = 0.5  # requests on average: every second look finds one
BUSY_PER_ENGINE = 0.9  # requests that compute, by prefill engine
SHARE_OF_WAIT = 0.5  # of the time before the first token


@dataclass(frozen=True, slots=True)
class Finding:
    """A threshold that was passed: by what, where, and in which unit."""

    resource: str
    where: str
    value: float
    threshold: float
    unit: str
    text: str


def silent_node(change: Change) -> Iterator[Finding]:
    for node in change.nodes.values():
        if not node.is_up or node.silent_s >= SILENT_S:
            state = "silent" if node.is_up else "lost, silent"
            text = f"{_node(node)} is {state} for {node.silent_s:.1f} s (threshold {SILENT_S:g} s)"
            yield Finding("silent node", _node(node), node.silent_s, SILENT_S, "s", text)
    for engine_id, node_id in change.silent_engines():
        if change.nodes[node_id].is_up:
            text = f"engine {engine_id} of node {node_id} gives no answer"
            yield Finding("silent node", f"engine {engine_id}", 1, 1, "engines", text)


def pause(change: Change) -> Iterator[Finding]:
    if change.stats.is_paused:
        yield Finding("pause", "scheduler", 1, 1, "pauses", PAUSED)


def stalled_storage(change: Change) -> Iterator[Finding]:
    stalled = [(f"node {e.node_id}", e.storage_stalled_s) for e in change.stats.engines]
    if change.stats.store is not None:
        stalled.append(("the scheduler's store", change.stats.store.stalled_s))
    worst: dict[str, float] = {}
    for where, stalled_s in stalled:
        worst[where] = max(stalled_s, worst.get(where, 0.0))
    for where, stalled_s in worst.items():
        if stalled_s >= STALLED_S:
            text = f"{where}: a storage call has had no answer for {stalled_s:.1f} s (threshold {STALLED_S:g} s)"
            yield Finding("stalled storage", where, stalled_s, STALLED_S, "s", text)


def damaged_blocks(change: Change) -> Iterator[Finding]:
    for engine in change.stats.engines:
        kinds = {"failed": _failed, "corrupt": _corrupt}
        grown = {kind: change.grown(_only(engine, count)) for kind, count in kinds.items()}
        num = sum(grown.values())
        if num > 0:
            where = _engine(engine)
            text = (
                f"{where}: {grown['failed']} block reads failed, {grown['corrupt']} blocks were damaged (threshold 1)"
            )
            yield Finding("damaged or failed blocks", where, num, 1, "blocks", text)


def store_full(change: Change) -> Iterator[Finding]:
    store = change.stats.store
    if store is not None and not store.accepts_writes:
        text = f"the store takes no new blocks: {store.reason or 'no reason given'}; next turns will not find this one"
        yield Finding("store takes no writes", "store", 1, 1, "stores", text)


def decode_memory(change: Change) -> Iterator[Finding]:
    yield from _memory(
        change, "decode device memory", (Role.DECODE,), Phase.HANDED_OVER, lambda e: e.device_kv_used_bytes,
        lambda e: e.device_kv_bytes,
    )  # fmt: skip


def decode_memory_set_aside(change: Change) -> Iterator[Finding]:
    """A request gets engines only where its prompt and expected answer fit: without room it waits for engines."""
    num, decode = change.requests_in(Phase.QUEUED), [e for e in change.engines(Role.DECODE) if e.device_kv_bytes]
    shares = [engine.device_kv_used_bytes / engine.device_kv_bytes for engine in decode]
    if num < WAITING or not shares or min(shares) < FULL_SHARE or any(prefill_compute(change)):
        return
    text = (
        f"every decode engine has {min(shares):.0%} or more of its device memory in use (threshold {FULL_SHARE:.0%}), "
        f"and {num:.1f} requests wait for engines (threshold {WAITING:g}): their answers would not fit"
    )
    yield Finding("decode device memory", "decode engines", min(shares), FULL_SHARE, "of 1", text)


def compute_nic(change: Change) -> Iterator[Finding]:
    """Of nodes whose engines start the transfers: bytes are counted there, and not by the node at the other end."""
    for node in change.nodes.values():
        for direction in Direction:
            rate = change.bytes_per_s(transferred_bytes(direction.value), node.node_id)
            yield from _nic("compute NIC", node, direction.value, rate, node.compute_nic_bytes_per_s)


def prefill_compute(change: Change) -> Iterator[Finding]:
    engines = change.engines(Role.PREFILL)
    busy = change.requests_in(Phase.READY, Phase.PREFILLING) / len(engines) if engines else 0.0
    share = change.share_before_first_token(Phase.READY, Phase.PREFILLING)
    if busy >= BUSY_PER_ENGINE and share >= SHARE_OF_WAIT:
        text = (
            f"{busy:.1f} requests for each of {len(engines)} prefill engines compute or wait for a batch (threshold "
            f"{BUSY_PER_ENGINE:g}); that is {share:.0%} of the time before the first token "
            f"(threshold {SHARE_OF_WAIT:.0%})"
        )
        yield Finding("prefill compute", "prefill engines", busy, BUSY_PER_ENGINE, "requests per engine", text)


def storage_nic_read(change: Change) -> Iterator[Finding]:
    for node in change.nodes.values():
        rate = change.nic_read_bytes_per_s(node.node_id)
        yield from _nic("storage NIC", node, "read", rate, node.storage_nic_bytes_per_s)


def storage_nic_write(change: Change) -> Iterator[Finding]:
    for node in change.nodes.values():
        rate = change.bytes_per_s(lambda engine: engine.storage_write_bytes, node.node_id)
        yield from _nic("storage NIC", node, "write", rate, node.storage_nic_bytes_per_s)


def storage(change: Change) -> Iterator[Finding]:
    """Requests read, and no NIC is full: what is behind the NICs is slow. Not known where a NIC's rate is not."""
    num, share = change.requests_in(Phase.READING), change.share_before_first_token(Phase.READING)
    if num < WAITING or share < SHARE_OF_WAIT:
        return
    readers = [node for node in change.nodes.values() if change.nic_read_bytes_per_s(node.node_id)]
    unknown = [node.node_id for node in readers if not node.storage_nic_bytes_per_s]
    if unknown or not readers:
        which = f"of node {', '.join(unknown)} " if unknown else ""
        change.missing.append(
            f"the rate of the storage NIC {which}(storage_nic_mbps): {num:.1f} requests wait for reads, and whether "
            "the NIC or the storage behind it is slow cannot be told"
        )
    elif not any(storage_nic_read(change)):
        text = (
            f"{num:.1f} requests wait for reads (threshold {WAITING:g}), {share:.0%} of the time before the first "
            f"token, and every storage NIC is below {NIC_SHARE:.0%} of its rate: the storage behind them is slow"
        )
        yield Finding("storage behind the NICs", "storage", num, WAITING, "requests", text)


def staging_slots(change: Change) -> Iterator[Finding]:
    yield from _memory(
        change, "staging slots", tuple(Role), Phase.PLACED, lambda e: e.staging_slots_used + e.staging_slots_aside,
        lambda e: e.staging_slots,
    )  # fmt: skip


def engine_queue(change: Change) -> Iterator[Finding]:
    """Unless it is known what engines lack, or that requests are kept from them."""
    num = change.requests_in(Phase.QUEUED)
    is_known = change.stats.is_paused or any(decode_memory_set_aside(change))
    if num >= WAITING and not is_known and change.share_before_first_token(Phase.QUEUED) >= SHARE_OF_WAIT:
        text = f"{num:.1f} requests wait for a pair of engines (threshold {WAITING:g}): all are at their limits"
        yield Finding("engines", "scheduler", num, WAITING, "requests", text)


BROKEN = (pause, silent_node, stalled_storage, damaged_blocks, store_full)
FULL = (
    decode_memory,
    decode_memory_set_aside,
    compute_nic,
    prefill_compute,
    storage_nic_read,
    storage_nic_write,
    storage,
    staging_slots,
    engine_queue,
)


def _memory(
    change: Change,
    resource: str,
    roles: tuple[Role, ...],
    phase: Phase,
    used: Callable[[EngineStats], int],
    total: Callable[[EngineStats], int],
) -> Iterator[Finding]:
    """Those wait who are in ``phase``, and the fullest engines are what they wait for."""
    num = change.requests_in(phase)
    if num < WAITING:
        return
    for engine in (e for role in roles for e in change.engines(role)):
        share = used(engine) / total(engine) if total(engine) else 0.0
        if share >= FULL_SHARE:
            text = (
                f"{_engine(engine)}: {used(engine):,} of {total(engine):,} in use ({share:.0%}, threshold "
                f"{FULL_SHARE:.0%}), and {num:.1f} requests wait for {resource} (threshold {WAITING:g})"
            )
            yield Finding(resource, _engine(engine), share, FULL_SHARE, "of 1", text)


def _nic(resource: str, node: NodeStats, way: str, rate: float, capacity: float | None) -> Iterator[Finding]:
    """Rates in bytes per second."""
    if capacity and rate >= NIC_SHARE * capacity:
        share, where = rate / capacity, f"{_node(node)}, {way}"
        text = (
            f"{resource} of {where}: {rate * 8 / 1e6:,.0f} of {capacity * 8 / 1e6:,.0f} Mbit/s "
            f"({share:.0%}, threshold {NIC_SHARE:.0%})"
        )
        yield Finding(resource, where, share, NIC_SHARE, "of 1", text)


def _node(node: NodeStats) -> str:
    return f"node {node.node_id} ({node.role.value})"


def _engine(engine: EngineStats) -> str:
    return f"{engine.role.value} engine {engine.engine_id} (node {engine.node_id})"


def _failed(engine: EngineStats) -> int:
    return engine.blocks_failed


def _corrupt(engine: EngineStats) -> int:
    return engine.blocks_corrupt + engine.kv_corrupt


def _only(one: EngineStats, counter: Callable[[EngineStats], int]) -> Callable[[EngineStats], int]:
    return lambda engine: counter(engine) if engine.engine_id == one.engine_id else 0
