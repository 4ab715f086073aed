"""Keeping storage small and true: slow, hung and full stores, and blocks that are written while they are deleted."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator

import pytest
from tests.scheduler.cluster import cluster, until_phase
from tests.scheduler.fixtures import make_request
from tests.scheduler.tracebacks import Tracebacks
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import StoreError, StoreFullError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import SystemRuntime
from dualpath.scheduler import evictor as evictor_module
from dualpath.scheduler.evictor import Evictor
from dualpath.store import directory_calls
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex, BlockState
from dualpath.store.memory import MemoryStore

GEOMETRY = KvGeometry(num_layers=1, block_tokens=1, bytes_per_token_layer=1)
SIZE_BYTES = object_bytes(GEOMETRY)
_names = itertools.count()


class LeapingRuntime(SystemRuntime):
    """Tests move the clock."""

    leapt_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.leapt_s


class Storage(MemoryStore):
    """Deletions can be held up; there may be a bound, which others' data comes under, too."""

    def __init__(self) -> None:
        super().__init__(f"memory://evictor-{next(_names)}", b"n" * 16, GEOMETRY)
        self.gate = threading.Event()
        self.gate.set()
        self.num_calls = self.num_most_calls = 0
        self._lock = threading.Lock()
        self.max_objects = 1 << 30
        self.refusal: StoreError | None = None
        self.num_tries = 0
        self.undeletable = set[BlockKey]()

    def put(self, key: BlockKey) -> None:
        """As an engine does."""
        self.put_raw(key, bytes(SIZE_BYTES))

    def delete(self, key: BlockKey) -> None:
        with self._lock:
            self.num_calls += 1
            self.num_most_calls = max(self.num_most_calls, self.num_calls)
        self.gate.wait(30.0)
        if key in self.undeletable:
            raise PermissionError("somebody else's")
        super().delete(key)
        with self._lock:
            self.num_calls -= 1

    def used_bytes(self) -> int:
        return sum(block.num_bytes for block in self.list_blocks())

    def free_bytes(self) -> int | None:
        return self.max_objects * SIZE_BYTES - self.used_bytes()

    def try_write(self, num_bytes: int | None = None) -> None:
        self.num_tries += 1
        if self.refusal is not None:
            raise self.refusal
        if self.used_bytes() >= self.max_objects * SIZE_BYTES:
            raise StoreFullError("no space left")


class Bench:
    """An index, its storage, and whoever keeps them together."""

    def __init__(self, num_blocks: int, capacity_blocks: int | None = None, fraction: float | None = None) -> None:
        self.runtime = LeapingRuntime()
        self.storage, self.index = Storage(), BlockIndex(SIZE_BYTES)
        self.keys = [BlockKey(number.to_bytes(16, "big")) for number in range(num_blocks)]
        for key in self.keys:
            self.write(key)
        capacity_bytes = None if capacity_blocks is None else capacity_blocks * SIZE_BYTES
        self.evictor = Evictor(self.index, self.storage, capacity_bytes, self.runtime, capacity_fraction=fraction)

    def write(self, key: BlockKey) -> None:
        self.storage.put(key)
        self.index.begin_write(key, None)
        self.index.publish(key)

    def check(self) -> None:
        self.index.check_integrity()
        self.index.check_agrees(self.storage)

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(10.0):
            while not condition():  # type: ignore[operator]  # noqa: ASYNC110  (threads have no event for it)
                await asyncio.sleep(0.001)


async def test_a_block_that_is_written_while_it_is_deleted_is_stored_only_if_it_is_there() -> None:
    """The news of the first come after its deletion, those of the second before; the third is written after it."""
    bench = Bench(3, capacity_blocks=0)
    writer = bench.index.open_writer()
    bench.storage.gate.clear()
    eviction = asyncio.create_task(bench.evictor.evict())
    await bench.until(lambda: bench.storage.num_calls)
    for key in bench.keys[:2]:
        bench.storage.put(key)  # before the deletion gets to it
    bench.index.begin_write(bench.keys[1], None)
    bench.index.publish(bench.keys[1])
    assert bench.index.state(bench.keys[1]) is BlockState.WRITING
    waiting = asyncio.create_task(bench.index.wait_durable(bench.keys[1:2], 10.0))
    bench.storage.gate.set()
    assert await eviction == 3
    assert await waiting == 0
    bench.storage.put(bench.keys[2])
    for key in (bench.keys[0], bench.keys[2]):
        bench.index.begin_write(key, None)
        bench.index.publish(key)
    bench.check()
    bench.evictor._capacity_bytes = None
    await bench.evictor.evict()
    bench.check()
    assert [bench.index.state(key) for key in bench.keys] == [None, None, BlockState.STORED]
    bench.index.close_writer(writer)


async def test_storage_is_not_asked_about_a_block_whose_deletion_is_still_to_come() -> None:
    bench = Bench(1, capacity_blocks=0)
    bench.evictor._calls = directory_calls.DirectoryCalls(bench.runtime, patience_s=0.02)
    bench.storage.gate.clear()
    await bench.evictor.evict()
    bench.evictor._capacity_bytes = None
    bench.write(bench.keys[0])
    await bench.evictor.evict()
    bench.storage.gate.set()
    await bench.until(lambda: bench.evictor.stats.stalled_s == 0.0)
    assert bench.storage.used_bytes() == 0
    bench.check()


async def test_doubts_are_settled_where_storage_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(1, capacity_blocks=0)
    bench.index.open_writer()
    await bench.evictor.evict()
    bench.evictor._capacity_bytes = None
    bench.write(bench.keys[0])

    def fail(key: BlockKey) -> bool:
        raise StoreError("no answer")

    monkeypatch.setattr(bench.storage, "exists", fail)
    await bench.evictor.evict()
    assert bench.index.state(bench.keys[0]) is None, "not stored, as far as anybody knows; computed again"
    assert bench.evictor.stats.used_bytes == bench.storage.used_bytes() == SIZE_BYTES
    bench.runtime.leapt_s += 5.0
    await bench.evictor.evict()
    assert bench.evictor.stats.used_bytes == bench.storage.used_bytes() == 0


async def test_a_doubted_object_of_former_weights_stays_one_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage does not say whether it is there while other weights are taken: it is deleted where it lies."""
    bench = Bench(1, capacity_blocks=0)
    key, former = bench.keys[0], bench.index.shelf
    bench.index.open_writer()
    await bench.evictor.evict()
    bench.evictor._capacity_bytes = None
    bench.write(key)
    bench.index.use_namespace(b"other weights")

    def fail(key: BlockKey) -> bool:
        raise StoreError("no answer")

    monkeypatch.setattr(bench.storage, "exists", fail)
    await bench.evictor.evict()
    assert bench.index.state(key) is None
    assert bench.index.num_useless() == 1
    assert bench.index.namespace_of(key) == former.namespace_digest


async def test_storage_that_hangs_keeps_a_few_threads_and_no_more_blocks_go(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(500, capacity_blocks=0)
    bench.evictor._calls = directory_calls.DirectoryCalls(bench.runtime, 2, patience_s=0.02)
    bench.storage.gate.clear()
    for _ in range(3):
        assert await bench.evictor.evict() >= 0
    assert bench.storage.num_most_calls == 2
    assert bench.index.num_blocks() == 500 - 2 * evictor_module._KEYS_PER_CALL
    bench.runtime.leapt_s += 100.0
    assert bench.evictor.stats.stalled_s >= 100.0
    bench.check()
    bench.storage.gate.set()
    await bench.until(lambda: bench.evictor.stats.stalled_s == 0.0)
    while await bench.evictor.evict():
        pass
    assert bench.storage.used_bytes() == 0
    bench.check()


async def test_others_have_the_event_loop_while_many_blocks_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is left alone for a turn after every few blocks, and is whole whenever it is."""
    bench = Bench(2000, capacity_blocks=10)
    num_blocks = [bench.index.num_blocks()]

    async def watch() -> None:
        while True:
            await asyncio.sleep(0)
            num_blocks.append(bench.index.num_blocks())

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    assert await bench.evictor.evict() == 1990
    watching.cancel()
    assert max(before - after for before, after in itertools.pairwise(num_blocks)) <= 4 * evictor_module._KEYS_PER_CALL
    bench.check()


async def test_the_capacity_follows_what_others_leave() -> None:
    bench = Bench(50, fraction=0.8)
    bench.storage.max_objects = 100
    assert await bench.evictor.evict() == 0
    assert bench.evictor.stats.capacity_bytes == 80 * SIZE_BYTES
    bench.storage.max_objects = 50  # somebody else has taken the rest
    assert await bench.evictor.evict() == 0, "asked a moment ago"
    bench.runtime.leapt_s += 10.0
    assert await bench.evictor.evict() == 10
    assert bench.evictor.stats.free_bytes == 0, "when it was asked"
    bench.runtime.leapt_s += 10.0
    assert await bench.evictor.evict() == 0
    bench.check()


async def test_a_number_of_bytes_goes_before_a_share() -> None:
    bench = Bench(20, capacity_blocks=15, fraction=0.5)
    bench.storage.max_objects = 20
    assert await bench.evictor.evict() == 5


async def test_where_storage_is_full_some_blocks_go_until_it_takes_writes_again() -> None:
    bench = Bench(100)
    bench.storage.max_objects = 100
    assert await bench.evictor.evict() == 0
    assert bench.storage.num_tries == 0, "nobody has complained"
    bench.index.fail_write(BlockKey(b"f" * 16))
    assert await bench.evictor.evict() == 10
    assert bench.evictor.stats.accepts_writes
    for number in range(20):
        bench.write(BlockKey(bytes([255]) + number.to_bytes(15, "big")))
        await bench.evictor.evict()
    assert bench.index.num_blocks() == 90, "so that it does not get full again"
    assert bench.storage.num_tries == 2
    bench.storage.max_objects = 90  # others have taken the rest
    bench.index.fail_write(BlockKey(b"g" * 16))
    assert await bench.evictor.evict() == 0, "not at once"
    bench.runtime.leapt_s += 1.0
    assert await bench.evictor.evict() == 9
    bench.check()


async def test_what_was_full_once_may_be_filled_again_after_a_while() -> None:
    bench = Bench(100)
    bench.storage.max_objects = 100
    bench.index.fail_write(BlockKey(b"f" * 16))
    await bench.evictor.evict()
    assert bench.evictor.stats.capacity_bytes == 90 * SIZE_BYTES
    for _ in range(120):
        bench.runtime.leapt_s += 5.0
        await bench.evictor.evict()
    capacity_bytes = bench.evictor.stats.capacity_bytes
    assert capacity_bytes is not None
    assert capacity_bytes > 100 * SIZE_BYTES


@pytest.mark.parametrize("num_blocks", [0, 1])
async def test_a_store_that_others_filled_is_used_again_once_they_leave(num_blocks: int) -> None:
    """Few blocks of ours, or none, are no measure of what it takes."""
    bench = Bench(num_blocks)
    bench.storage.refusal = StoreFullError("others have it all")
    bench.index.fail_write(BlockKey(b"f" * 16))
    await bench.evictor.evict()
    assert not bench.evictor.stats.accepts_writes
    bench.storage.refusal = None
    for number in range(100):
        bench.runtime.leapt_s += 10.0
        await bench.evictor.evict()
        bench.write(BlockKey(bytes([255]) + number.to_bytes(15, "big")))
    await bench.evictor.evict()
    assert bench.index.num_blocks() >= 99


async def test_a_full_store_that_does_not_get_better_is_not_emptied_at_once() -> None:
    """Others take whatever becomes free. The state says so, and since when."""
    bench = Bench(100)
    bench.storage.refusal = StoreFullError("quota used up")
    bench.index.fail_write(BlockKey(b"f" * 16))
    began_s = bench.runtime.now_s()
    num_rounds = 0
    since = None
    while bench.index.num_blocks() > 50:
        num_rounds += await bench.evictor.evict() > 0
        stats = bench.evictor.stats
        assert (stats.accepts_writes, stats.reason) == (False, "quota used up")
        since = since or stats.since_unix_s
        assert stats.since_unix_s == since
        bench.runtime.leapt_s += 1.0
    assert bench.runtime.now_s() - began_s > 300.0
    assert num_rounds == 7
    bench.storage.refusal = None
    bench.runtime.leapt_s += 300.0
    assert await bench.evictor.evict() == 0
    assert bench.evictor.stats.accepts_writes


async def test_where_writes_fail_for_another_reason_nothing_goes() -> None:
    bench = Bench(10)
    bench.storage.refusal = StoreError("the file system is gone")
    bench.index.fail_write(BlockKey(b"f" * 16))
    assert await bench.evictor.evict() == 0
    assert not bench.evictor.stats.accepts_writes
    bench.storage.refusal = None
    bench.runtime.leapt_s += 6.0
    await bench.evictor.evict()
    assert bench.evictor.stats.accepts_writes
    bench.runtime.leapt_s += 100.0
    await bench.evictor.evict()
    assert bench.storage.num_tries == 2, "not asked any more"


async def test_the_patrol_looks_without_being_woken() -> None:
    bench = Bench(10, capacity_blocks=4)
    patrol = asyncio.create_task(bench.evictor.run())
    bench.evictor.wake()
    await bench.until(lambda: bench.index.num_blocks() == 4)
    patrol.cancel()
    await asyncio.gather(patrol, return_exceptions=True)


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    """No thread waits on a gate when a test is over."""
    storages: list[Storage] = []
    real = Storage.__init__

    def init(self: Storage) -> None:
        real(self)
        storages.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "__init__", init)
        yield
    for storage in storages:
        storage.gate.set()


def test_what_is_deleted_while_an_attempt_may_write_is_remembered_until_its_end() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(max_tokens=50)
            running = c.start(request)
            await until_phase(c, request, "decoding")
            key = BlockKey(b"k" * 16)
            c.index.deleted([key])
            c.index.publish(key)
            assert c.index.state(key) is BlockState.WRITING, "it may be older than the deletion"
            c.index.forget(key)
            await running
            await c.quiet()
            c.index.publish(key)
            assert c.index.state(key) is BlockState.STORED
            c.index.forget(key)

    run_virtual(scenario())


async def test_the_patrol_outlives_a_bug_in_a_store(monkeypatch: pytest.MonkeyPatch, tracebacks: Tracebacks) -> None:
    bench = Bench(10, fraction=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(bench.storage, "free_bytes", lambda: {}["no such key"])
        patrol = asyncio.create_task(bench.evictor.run())
        bench.evictor.wake()
        await bench.until(lambda: not bench.evictor._due.is_set())
    bench.storage.max_objects = 10
    bench.runtime.leapt_s += 10.0
    bench.evictor.wake()
    await bench.until(lambda: bench.index.num_blocks() == 1)
    patrol.cancel()
    await asyncio.gather(patrol, return_exceptions=True)
    assert tracebacks.take() == {"dualpath.scheduler.evictor: KeyError('no such key')"}


async def test_what_is_damaged_counts_until_it_is_deleted() -> None:
    """A deletion that fails is tried again with the next look, not at once."""
    bench = Bench(4, capacity_blocks=4)
    real, bench.storage.delete = bench.storage.delete, lambda _: {}["a bug"]  # type: ignore[method-assign]
    await bench.evictor.evict()
    for key in bench.keys[:2]:
        bench.index.forget(key)
    assert bench.evictor.stats.used_bytes == bench.storage.used_bytes() == 4 * SIZE_BYTES
    for _ in range(3):
        bench.runtime.leapt_s += 5.0
        assert await bench.evictor.evict() == 0
        assert bench.evictor.stats.used_bytes == bench.storage.used_bytes() == 4 * SIZE_BYTES
    bench.storage.delete = real  # type: ignore[method-assign]
    await bench.evictor.evict()
    assert bench.storage.used_bytes() == 4 * SIZE_BYTES, "not at once"
    bench.write(bench.keys[1])
    bench.runtime.leapt_s += 5.0
    await bench.evictor.evict()
    bench.check()
    assert bench.evictor.stats.used_bytes == bench.storage.used_bytes() == 3 * SIZE_BYTES
    assert not bench.storage.exists(bench.keys[0])
    assert bench.index.state(bench.keys[1]) is BlockState.STORED, "written anew, so it stays"


async def test_damaged_blocks_of_a_store_that_hangs_are_deleted_once_it_answers() -> None:
    bench = Bench(100)
    bench.evictor._calls = directory_calls.DirectoryCalls(bench.runtime, 2, patience_s=0.02)
    bench.storage.gate.clear()
    for key in bench.keys:
        bench.index.forget(key)
    await bench.evictor.evict()
    assert bench.evictor.stats.used_bytes == (100 - 2 * evictor_module._KEYS_PER_CALL) * SIZE_BYTES
    bench.storage.gate.set()
    await bench.until(lambda: bench.evictor.stats.stalled_s == 0.0)
    bench.runtime.leapt_s += 5.0
    await bench.evictor.evict()
    assert bench.storage.used_bytes() == bench.evictor.stats.used_bytes == 0
    bench.check()


async def test_a_block_that_cannot_be_deleted_stays_a_hit_and_counts() -> None:
    """The others go; it is tried again after a pause, or all blocks would be tried in a loop."""
    bench = Bench(40, capacity_blocks=4)
    stubborn = bench.keys[0]
    bench.storage.undeletable.add(stubborn)
    num_evicted = 0
    while bench.index.used_bytes() > 4 * SIZE_BYTES:
        num_evicted += await bench.evictor.evict()
        assert bench.index.state(stubborn) is BlockState.STORED
        assert bench.index.used_bytes() == bench.storage.used_bytes()
        assert await bench.evictor.evict() == 0
        bench.check()
        bench.runtime.leapt_s += 6.0
    assert num_evicted == 36
    bench.evictor._capacity_bytes = 0
    assert await bench.evictor.evict() == 3
    assert bench.index.known() == [stubborn]
    bench.storage.undeletable.clear()
    bench.runtime.leapt_s += 6.0
    assert await bench.evictor.evict() == 1
    bench.check()
    assert bench.index.used_bytes() == bench.storage.used_bytes() == 0
