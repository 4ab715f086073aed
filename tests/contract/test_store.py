"""What every store has to do, run over each: round trips, failures that stay alone, nothing half-written."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
import torch
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, Bench, block_bytes, fill_block, key_of
from tests.store.s3_server import S3Server, s3_server, set_credentials

from dualpath.core.errors import BlockCorruptError, BlockMissingError, StoreError
from dualpath.core.runtime import SystemRuntime
from dualpath.store import nixl_api
from dualpath.store.contract import BlockStore, IoState
from dualpath.store.files.store import FileStore
from dualpath.store.header import HEADER_BYTES, parse_header, verify
from dualpath.store.memory import MemoryStore
from dualpath.store.nixl_api import build_agent
from dualpath.store.open import open_store
from dualpath.store.s3.store import S3Store
from dualpath.testing.faulty_store import FaultyIo

NUM_SLOTS = 40
_names = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for all tests, each of which has a prefix of its own."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3")) as server:
        set_credentials(patch, server.root)
        yield server


@pytest.fixture(params=["file", "file-durable", "file-plain", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file-plain":
        monkeypatch.setattr(nixl_api, "has_uring", lambda agent: False)
    if request.param == "memory":
        return f"memory://test-{next(_names)}"
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("server")
        return server.url(f"contract/test-{next(_names)}")
    return tmp_path.as_uri() + ("?durable=true" if request.param == "file-durable" else "")


@pytest.fixture
def make_bench(url: str) -> Iterator[Callable[[], Bench]]:
    benches = []

    def make() -> Bench:
        agent = build_agent(f"store-test-{next(_names)}")
        store = open_store(url, NAMESPACE, GEOMETRY)
        io = store.open_io(agent, SystemRuntime())
        staging = torch.zeros((NUM_SLOTS, OBJECT_BYTES), dtype=torch.uint8)
        agent.register_memory(staging)
        benches.append(Bench(store, io, staging, agent))
        return benches[-1]

    yield make
    for bench in benches:
        bench.io.close()
        bench.store.close()


@pytest.fixture
def bench(make_bench: Callable[[], Bench]) -> Bench:
    return make_bench()


def put_raw(store: BlockStore, number: int, data: bytes) -> None:
    """Place any bytes under a key, past all checks."""
    if isinstance(store, MemoryStore):
        store.put_raw(key_of(number), data)
        return
    if isinstance(store, S3Store):
        obstore.put(store.bucket.client, store.name_of(key_of(number)), data, use_multipart=False)
        return
    assert isinstance(store, FileStore)
    path = Path(store.path_of(key_of(number)))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def test_what_was_written_is_read(bench: Bench) -> None:
    assert bench.write(1) == [IoState.DONE]
    assert bench.read(1)[0].error is None
    assert bytes(bench.views[0]) == block_bytes(1)
    verify(bench.views[0], NAMESPACE, key_of(1), GEOMETRY)


def test_many_at_once(bench: Bench) -> None:
    numbers = range(NUM_SLOTS)
    assert set(bench.write(*numbers)) == {IoState.DONE}
    bench.read(*numbers)
    for number in numbers:
        verify(bench.views[number], NAMESPACE, key_of(number), GEOMETRY)
    assert {block.key for block in bench.store.list_blocks()} == {key_of(number) for number in numbers}
    assert sum(block.num_bytes for block in bench.store.list_blocks()) == NUM_SLOTS * OBJECT_BYTES


def test_a_missing_and_a_truncated_block_fail_alone(bench: Bench) -> None:
    bench.write(0, 1, 2, 3)
    bench.store.delete(key_of(1))
    put_raw(bench.store, 2, block_bytes(2)[:-1])
    tickets = bench.read(0, 1, 2, 3)
    assert [type(ticket.error) for ticket in tickets] == [type(None), BlockMissingError, BlockCorruptError, type(None)]
    for slot in (0, 3):
        verify(bench.views[slot], NAMESPACE, key_of(slot), GEOMETRY)


def test_an_empty_and_an_overlong_object_are_corrupt(bench: Bench) -> None:
    """Where storage serves the beginning of a longer object as if that was all, the beginning must be the block."""
    put_raw(bench.store, 1, b"")
    put_raw(bench.store, 2, block_bytes(2) + b"\0")
    empty, overlong = bench.read(1, 2)
    assert isinstance(empty.error, BlockCorruptError)
    if isinstance(bench.store, S3Store):
        verify(bench.views[1], NAMESPACE, key_of(2), GEOMETRY)
    else:
        assert isinstance(overlong.error, BlockCorruptError)
    with pytest.raises(BlockCorruptError):
        bench.store.read_header(key_of(1))


def test_a_flipped_bit_is_read_and_then_found(bench: Bench) -> None:
    damaged = bytearray(block_bytes(1))
    damaged[-1] ^= 1
    put_raw(bench.store, 1, bytes(damaged))
    assert bench.read(1)[0].error is None
    with pytest.raises(BlockCorruptError, match="payload"):
        verify(bench.views[0], NAMESPACE, key_of(1), GEOMETRY)


def test_writing_again_succeeds_and_heals(bench: Bench) -> None:
    put_raw(bench.store, 1, b"rubbish")
    assert bench.write(1) == [IoState.DONE]
    assert bench.write(1) == [IoState.DONE]
    bench.read(1)
    verify(bench.views[0], NAMESPACE, key_of(1), GEOMETRY)


def test_the_directory_knows_headers_existence_and_deletion(bench: Bench) -> None:
    bench.write(7)
    assert bench.store.exists(key_of(7))
    head = parse_header(bench.store.read_header(key_of(7)))
    assert (head.key, head.parent, head.geometry) == (key_of(7), key_of(6), GEOMETRY)
    block = next(iter(bench.store.list_blocks()))
    assert (block.key, block.num_bytes) == (key_of(7), OBJECT_BYTES)
    assert block.modified_unix_s > 1e9
    for _ in range(2):
        bench.store.delete(key_of(7))
    assert not bench.store.exists(key_of(7))
    assert list(bench.store.list_blocks()) == []
    with pytest.raises(BlockMissingError):
        bench.store.read_header(key_of(7))


def test_namespaces_do_not_meet(bench: Bench, url: str) -> None:
    bench.write(1)
    other = open_store(url, b"another-digest--", GEOMETRY)
    assert not other.exists(key_of(1))
    assert list(other.list_blocks()) == []


def test_another_process_view_of_the_store_sees_published_blocks(make_bench: Callable[[], Bench]) -> None:
    writer, reader = make_bench(), make_bench()
    writer.write(1, 2)
    assert [ticket.error for ticket in reader.read(1, 2)] == [None, None]
    verify(reader.views[1], NAMESPACE, key_of(2), GEOMETRY)


def test_a_block_is_visible_whole_or_not_at_all(bench: Bench) -> None:
    """While it is written, whether anybody polls or not."""
    if isinstance(bench.store, S3Store):
        pytest.skip("it is the server's doing: S3 shows whole objects only, rclone shows a file that grows")
    fill_block(bench.views[0], 1)
    tickets = bench.io.submit_writes([bench.request(0, 1)])
    for _ in range(20):
        assert {block.num_bytes for block in bench.store.list_blocks()} <= {OBJECT_BYTES}
    while bench.io.poll(tickets[0]) is IoState.IN_PROGRESS:
        assert {block.num_bytes for block in bench.store.list_blocks()} <= {OBJECT_BYTES}
    assert bench.store.exists(key_of(1))


def test_concurrent_writers_of_one_key_never_show_a_partial_object(make_bench: Callable[[], Bench]) -> None:
    """rclone, unlike S3, lets readers and writers of an object that is being written fail: then only what reads well
    counts.
    """
    reader = make_bench()
    is_s3 = isinstance(reader.store, S3Store)
    accepted = StoreError if is_s3 else BlockMissingError
    stop = threading.Event()
    failures: list[BaseException] = []

    def write_again_and_again(bench: Bench) -> None:
        try:
            while not stop.is_set():
                assert bench.write(5) == [IoState.DONE] or is_s3
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write_again_and_again, args=(make_bench(),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        num_read = 0
        while num_read < 60:
            error = reader.read(5)[0].error
            assert error is None or isinstance(error, accepted)
            if error is None:
                verify(reader.views[0], NAMESPACE, key_of(5), GEOMETRY)
                num_read += 1
            if num_read % 7 == 0:
                reader.store.delete(key_of(5))
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failures == []


def test_a_ticket_given_up_is_quiescent_once_release_says_so(bench: Bench) -> None:
    bench.write(*range(8))
    bench.staging.zero_()
    tickets = bench.io.submit_reads(bench.requests(range(8)))
    for ticket in tickets:
        while not bench.io.release(ticket):
            pass
    bench.read(30)  # anything that lets the store's machinery run
    bench.staging.fill_(7)
    assert all(bench.io.release(ticket) for ticket in tickets)
    assert bool((bench.staging == 7).all())


def test_injected_failures_and_corruption_leave_others_alone(bench: Bench) -> None:
    bench.write(0, 1, 2)
    bench.io = faulty = FaultyIo(bench.io)
    faulty.fail_reads([key_of(0)])
    faulty.corrupt_reads([key_of(1)])
    tickets = bench.read(0, 1, 2)
    assert isinstance(tickets[0].error, StoreError)
    assert [ticket.error for ticket in tickets[1:]] == [None, None]
    with pytest.raises(BlockCorruptError):
        verify(bench.views[1], NAMESPACE, key_of(1), GEOMETRY)
    verify(bench.views[2], NAMESPACE, key_of(2), GEOMETRY)


def test_a_hung_read_keeps_its_memory_until_it_goes_on(bench: Bench) -> None:
    bench.write(0, 1)
    bench.io = faulty = FaultyIo(bench.io)
    faulty.hang_reads([key_of(0)])
    bench.staging.zero_()
    hung, healthy = faulty.submit_reads(bench.requests([0, 1]))
    bench.finish([healthy])
    verify(bench.views[1], NAMESPACE, key_of(1), GEOMETRY)
    for _ in range(3):
        assert faulty.poll(hung) is IoState.IN_PROGRESS
        assert not faulty.release(hung)
    faulty.unhang()
    assert bench.finish([hung]) == [IoState.DONE]
    verify(bench.views[0], NAMESPACE, key_of(0), GEOMETRY)


def test_a_failed_write_publishes_nothing(bench: Bench) -> None:
    bench.io = faulty = FaultyIo(bench.io)
    faulty.fail_writes()
    faulty.writes.delay_s = 0.02
    assert bench.write(3, 4) == [IoState.FAILED] * 2
    faulty.fail_writes([])
    assert bench.write(3) == [IoState.DONE]


def test_requests_may_lie_anywhere_in_registered_memory(bench: Bench) -> None:
    bench.write(9)
    bench.staging.zero_()
    ticket = bench.io.submit_reads([bench.request(NUM_SLOTS - 1, 9)])
    bench.finish(ticket)
    assert ctypes.string_at(bench.staging[-1].data_ptr(), HEADER_BYTES) == block_bytes(9)[:HEADER_BYTES]
    assert not bool(bench.staging[:-1].any())


def test_trying_to_write_leaves_nothing(bench: Bench) -> None:
    bench.write(1)
    bench.store.try_write()
    assert [block.key for block in bench.store.list_blocks()] == [key_of(1)]
    free_bytes = bench.store.free_bytes()
    assert free_bytes is None or free_bytes > 0


def test_nothing_is_stalled_where_nothing_is_under_way(bench: Bench) -> None:
    bench.write(1)
    bench.io = faulty = FaultyIo(bench.io)
    bench.read(1, 2)
    end_s = time.monotonic() + 10.0
    while faulty.stalled_s():  # files are closed later
        assert time.monotonic() < end_s
