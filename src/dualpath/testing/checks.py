"""What must hold of a world: when it has come to rest, and of every request that was not answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dualpath.core.ids import BlockKey
from dualpath.core.keys import chain_keys, root_key
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.store.header import HEADER_BYTES, verify
from dualpath.store.index import BlockIndex, BlockState
from dualpath.store.memory import MemoryStore
from dualpath.testing.client import Book, Failure, Violation
from dualpath.testing.hash_model import BLOCK_TOKENS, GEOMETRY, NAMESPACE
from dualpath.testing.parts import node_names
from dualpath.testing.scenario import PATH_FAULTS, Fault, Scenario

Downtimes = dict[str, list[tuple[float, float]]]  # node -> (from, to)
EXCUSE_S = 15.0  # without a pair of engines that can serve: longer, and a request may end with an error


def check_engines(engines: Iterable[PrefillEngine | DecodeEngine]) -> None:
    """Nothing is held, counted or counted twice."""
    for engine in engines:
        name = engine.info.engine_id
        traffic = engine.traffic
        for pool in (traffic.slots, traffic.write_slots):
            pool.check_integrity()
            _expect(pool.num_used == 0, f"{name}: {pool.num_used} staging slots are not free")
        stats = traffic.stats()
        _expect(stats.read_queue_tokens == 0, f"{name}: {stats.read_queue_tokens} tokens are still to be read")
        _expect(stats.num_in_flight + stats.num_lingering == 0, f"{name}: transfers are under way")
        _expect(not stats.broken_peers, f"{name}: the path to {stats.broken_peers} was not mended")
        engine.check_idle()


def check_index(index: BlockIndex, store: MemoryStore, excused: set[BlockKey]) -> None:
    """What the index says is stored is there, unless somebody took it away from outside."""
    index.check_integrity()
    _expect(not index.num_pins(), "blocks are still pinned")
    there = {block.key for block in MemoryStore.list_blocks(store)}
    for key in index.known():
        _expect(index.state(key) is BlockState.STORED, f"block {key.hex()} is {index.state(key)}")
        _expect(key in there or key in excused, f"block {key.hex()} is in the index and not in the store")


def check_stored(store: MemoryStore, book: Book, damaged: set[BlockKey]) -> int:
    """Every stored object is what its key says, unless storage itself damaged it. Returns how many there are."""
    right: dict[BlockKey, tuple[tuple[int, ...], int]] = {}
    for tenant, tokens in book.sequences.values():
        for index, key in enumerate(chain_keys(root_key(NAMESPACE, tenant), tokens, BLOCK_TOKENS)):
            right[key] = (tokens, index)
    num_checked = 0
    for block in MemoryStore.list_blocks(store):
        if block.key in damaged:
            continue
        _expect(block.key in right, f"block {block.key.hex()} belongs to no request")
        data = bytearray(store.raw(block.key))
        verify(memoryview(data), NAMESPACE.digest, block.key, GEOMETRY)
        tokens, index = right[block.key]
        payload = np.frombuffer(data, np.uint8)[HEADER_BYTES:].tobytes()
        _expect(payload == book.truth.block(tokens, index), f"block {block.key.hex()} is stored with wrong bytes")
        num_checked += 1
    return num_checked


# -- requests without an answer ---------------------------------------------------------------------------------------


def check_failures(scenario: Scenario, failures: Sequence[Failure], down: Downtimes) -> None:
    """A request may fail only when for a while no pair of engines could have served it."""
    for failure in failures:
        without_s = _longest_s(failure.start_s, failure.end_s, lambda s: not _has_pair(scenario, s, down))
        if without_s < EXCUSE_S:
            raise Violation(
                f"{failure.request_id} failed after {failure.end_s - failure.start_s:.1f} s with {failure.error}, "
                f"though at most {without_s:.1f} s in a row passed without a pair of engines that could serve it"
            )


def _has_pair(scenario: Scenario, now_s: float, down: Downtimes) -> bool:
    names = node_names(scenario)
    ill = {name for name in names if any(start <= now_s < end for start, end in down.get(name, ()))}
    order = list(names)
    ill |= {
        order[fault.target % len(order)]
        for fault in scenario.faults
        if fault.at_s <= now_s < fault.at_s + fault.for_s + 2.0 and _cuts_off(fault)
    }
    well = [name for name in names if name not in ill]
    return any(names[a] is not names[b] for a in well for b in well)


def _cuts_off(fault: Fault) -> bool:
    """Does a node that it meets serve nobody meanwhile?"""
    return fault.kind in PATH_FAULTS or fault.kind in ("stop", "cut line", "hang line")


def _longest_s(start_s: float, end_s: float, holds: Callable[[float], bool], step_s: float = 0.25) -> float:
    longest = current = 0.0
    moment_s = start_s
    while moment_s < end_s:
        current = current + step_s if holds(moment_s) else 0.0
        longest = max(longest, current)
        moment_s += step_s
    return longest


def _expect(condition: bool, text: str) -> None:
    if not condition:
        raise Violation(text)
