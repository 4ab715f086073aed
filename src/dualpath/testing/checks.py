"""What must hold of a world: when it has come to rest, and of every request that was not answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from dualpath.core.ids import BlockKey
from dualpath.core.keys import chain_keys, root_key
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.store.header import HEADER_BYTES, verify
from dualpath.store.index import BlockIndex, BlockState
from dualpath.store.memory import MemoryStore
from dualpath.testing.answer_check import stored_sequences
from dualpath.testing.client import Book, Failure, Violation
from dualpath.testing.hash_model import BLOCK_TOKENS, GEOMETRY, namespace_of
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


def check_index(index: BlockIndex, stores: Sequence[MemoryStore], excused: set[BlockKey]) -> None:
    """What the index says is stored is there, unless somebody took it away from outside."""
    index.check_integrity()
    _expect(not index.num_pins(), "blocks are still pinned")
    there = {block.key for store in stores for block in MemoryStore.list_blocks(store)}
    for key in index.known():
        _expect(index.state(key) is BlockState.STORED, f"block {key.hex()} is {index.state(key)}")
        _expect(key in there or key in excused, f"block {key.hex()} is in the index and not in the store")


def check_stored(store: MemoryStore, book: Book, damaged: set[BlockKey], weights: str = "") -> int:
    """Every object that is stored for these weights is what its key says, unless storage itself damaged it.

    Returns how many there are.
    """
    namespace = namespace_of(weights)
    right: dict[BlockKey, tuple[tuple[int, ...], int]] = {}
    for tenant, tokens in _sequences(book, weights):
        for index, key in enumerate(chain_keys(root_key(namespace, tenant), tokens, BLOCK_TOKENS)):
            right[key] = (tokens, index)
    num_checked = 0
    for block in MemoryStore.list_blocks(store):
        if block.key in damaged:
            continue
        _expect(block.key in right, f"block {block.key.hex()} belongs to no request")
        data = bytearray(store.raw(block.key))
        verify(memoryview(data), namespace.digest, block.key, GEOMETRY)
        tokens, index = right[block.key]
        payload = np.frombuffer(data, np.uint8)[HEADER_BYTES:].tobytes()
        _expect(
            payload == book.truth.block(tokens, index, weights), f"block {block.key.hex()} is stored with wrong bytes"
        )
        num_checked += 1
    return num_checked


def check_weights(engines: Iterable[PrefillEngine | DecodeEngine]) -> None:
    """All have the same, when all is at rest."""
    found = {engine.info.engine_id: engine.namespace.model_fingerprint for engine in engines}
    _expect(len(set(found.values())) < 2, f"engines have different weights: {found}")


def _sequences(book: Book, weights: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(tenant, tokens)"""
    yield from book.sequences.values()
    for asked in book.asked.values():
        for tokens in stored_sequences(book.truth, asked.prompt, asked.generated, asked.num_tokens, weights):
            yield asked.tenant, tokens


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
    return fault.kind in PATH_FAULTS or fault.kind in ("stop", "cut line", "hang line", "part gateway", "late sends")


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
