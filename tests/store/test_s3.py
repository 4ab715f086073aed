"""S3 against a real server, and against one that fails: each failure has its name, and memory is safe in all."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, Bench, block_bytes, key_of
from tests.store.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.store.s3_server import BUCKET, S3Server, s3_server, set_credentials

from dualpath.core.errors import BlockCorruptError, BlockMissingError, ConfigError, StoreError, StoreFullError
from dualpath.core.runtime import SystemRuntime
from dualpath.store import blocking_calls
from dualpath.store import nixl_transfers as nixl_io
from dualpath.store.contract import IoState
from dualpath.store.header import verify
from dualpath.store.index import BlockIndex
from dualpath.store.nixl_api import build_agent
from dualpath.store.open import open_store
from dualpath.store.parents import learn_parents
from dualpath.store.s3.bucket import Bucket
from dualpath.store.s3.store import S3Store
from dualpath.store.s3.transfers import S3Io

NUM_SLOTS = 12
_names = itertools.count()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    set_credentials(monkeypatch, tmp_path)
    with s3_server(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def make_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Bench]]:
    benches = []

    def make(endpoint: str, **options: object) -> Bench:
        more = "".join(f"&{name}={value}" for name, value in ({"timeout_s": 3} | options).items())
        agent = build_agent(f"s3-test-{next(_names)}", ())
        store = open_store(f"s3://{BUCKET}/kv?endpoint={endpoint}{more}", NAMESPACE, GEOMETRY)
        io = store.open_io(agent, SystemRuntime())
        staging = torch.zeros((NUM_SLOTS, OBJECT_BYTES), dtype=torch.uint8)
        agent.register_memory(staging)
        benches.append(Bench(store, io, staging, agent))
        return benches[-1]

    yield make
    monkeypatch.setattr(nixl_io, "CLOSE_TIMEOUT_S", 0.2)
    for bench in benches:
        bench.io.close()


@pytest.fixture
def bench(proxy: FaultyProxy, make_bench: Callable[[str], Bench]) -> Bench:
    """Over the proxy, which is healthy so far."""
    bench = make_bench(proxy.endpoint)
    proxy.seen.clear()
    return bench


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(0.005)


# --- objects ----------------------------------------------------------------------------------------------------------


def test_one_write_is_one_put_of_the_whole_object(bench: Bench, proxy: FaultyProxy) -> None:
    assert bench.write(1) == [IoState.DONE]
    assert [(seen.method, seen.num_bytes, seen.status) for seen in proxy.seen] == [("PUT", OBJECT_BYTES, 200)]
    key = key_of(1).hex()
    assert proxy.seen[0].path.startswith(f"/{BUCKET}/kv/{NAMESPACE.hex()}/{key[:2]}/{key}.kv")


def test_a_read_is_one_get(bench: Bench, proxy: FaultyProxy) -> None:
    numbers = range(NUM_SLOTS)
    bench.write(*numbers)
    proxy.seen.clear()
    assert [ticket.error for ticket in bench.read(*numbers)] == [None] * NUM_SLOTS
    assert proxy.num_seen("GET") == NUM_SLOTS
    assert proxy.num_seen("HEAD") <= NUM_SLOTS  # where the last byte was the mark by chance


@pytest.mark.parametrize("mark", [0, 255])
def test_whole_and_short_objects_are_told_apart_whatever_the_mark(
    mark: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is the very byte that the object ends with, or another one."""
    bench.write(1)
    last = block_bytes(1)[-1]
    monkeypatch.setattr("random.randrange", lambda _: last ^ mark)
    assert bench.read(1)[0].error is None
    assert bytes(bench.views[0]) == block_bytes(1)
    obstore.put(store_of(bench).bucket.client, name_of(bench, 1), block_bytes(1)[:-1], use_multipart=False)
    assert isinstance(bench.read(1)[0].error, BlockCorruptError)


def store_of(bench: Bench) -> S3Store:
    assert isinstance(bench.store, S3Store)
    return bench.store


def name_of(bench: Bench, number: int) -> str:
    return store_of(bench).name_of(key_of(number))


async def test_a_restarted_program_rebuilds_its_index_from_the_listing(
    server: S3Server, make_bench: Callable[[str], Bench]
) -> None:
    bench = make_bench(server.endpoint)
    bench.write(1, 2, 3)
    obstore.put(store_of(bench).bucket.client, name_of(bench, 4), b"torn", use_multipart=False)
    obstore.put(store_of(bench).bucket.client, "kv/README", b"not a block", use_multipart=False)
    server.kill()
    server.start()
    store = open_store(server.url("kv"), NAMESPACE, GEOMETRY)
    index = BlockIndex(OBJECT_BYTES)
    await asyncio.to_thread(index.rebuild, store)
    assert index.take_useless(2) == [key_of(4)]
    index.deleted([key_of(4)])
    assert index.match([key_of(1), key_of(2), key_of(3)]) == 3
    await learn_parents(index, store, SystemRuntime())
    assert index.num_useless() == 0
    index.check_integrity()
    fresh = make_bench(server.endpoint)
    assert [ticket.error for ticket in fresh.read(1, 2, 3)] == [None] * 3
    verify(fresh.views[2], NAMESPACE, key_of(3), GEOMETRY)


def test_headers_come_by_range_where_the_server_gives_ranges(bench: Bench, proxy: FaultyProxy) -> None:
    bench.write(1)
    by_start = bench.store.read_header(key_of(1))  # rclone answers a range with everything
    proxy.fail("GET", gives_ranges=True)
    proxy.seen.clear()
    store = open_store(f"s3://{BUCKET}/kv?endpoint={proxy.endpoint}", NAMESPACE, GEOMETRY)
    assert store.read_header(key_of(1)) == by_start == block_bytes(1)[:4096]
    assert 206 in [seen.status for seen in proxy.seen]


# --- a server that answers errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (403, StoreError, "refuses our credentials"),
        (500, StoreError, "status 500"),
        (404, BlockMissingError, "not stored"),
    ],
)
def test_an_answered_error_has_its_name(
    status: int, error: type[StoreError], text: str, bench: Bench, proxy: FaultyProxy
) -> None:
    bench.write(1)
    proxy.choose = lambda method, path: Fault(status=status)
    (ticket,) = bench.read(1)
    assert type(ticket.error) is error
    assert text in str(ticket.error)
    assert "\n" not in str(ticket.error)
    assert bench.write(2) == [IoState.FAILED]
    proxy.heal()
    assert [ticket.error for ticket in bench.read(1)] == [None]
    assert not bench.store.exists(key_of(2))


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after": 1000}, {"cut_after": 0}], ids=str)
def test_a_passing_fault_of_a_read_costs_a_second_attempt(
    fault: dict[str, int], bench: Bench, proxy: FaultyProxy
) -> None:
    bench.write(1)
    proxy.fail("GET", times=1, **fault)
    proxy.seen.clear()
    assert bench.read(1)[0].error is None
    assert bytes(bench.views[0]) == block_bytes(1)
    assert proxy.num_seen("GET") == 2


def test_a_passing_fault_of_a_write_costs_a_second_attempt(bench: Bench, proxy: FaultyProxy) -> None:
    proxy.fail("PUT", times=1, status=503)
    assert bench.write(1) == [IoState.DONE]
    assert proxy.num_seen("PUT") == 2
    proxy.heal()
    assert bench.read(1)[0].error is None
    verify(bench.views[0], NAMESPACE, key_of(1), GEOMETRY)


def test_a_lasting_fault_ends_after_two_attempts_and_leaves_others_alone(bench: Bench, proxy: FaultyProxy) -> None:
    bench.write(1, 2, 3)
    proxy.choose = lambda method, path: Fault(status=500 if method == "GET" and key_of(2).hex() in path else 0)
    proxy.seen.clear()
    errors = [ticket.error for ticket in bench.read(1, 2, 3)]
    assert (errors[0], errors[2]) == (None, None)
    assert "failed to read it 2 times" in str(errors[1])
    assert proxy.num_seen("GET") == 4


@pytest.mark.parametrize(("status", "error"), [(507, StoreFullError), (500, StoreError), (403, StoreError)])
def test_a_server_without_room_is_told_from_one_that_fails(
    status: int, error: type[StoreError], bench: Bench, proxy: FaultyProxy
) -> None:
    proxy.fail("PUT", status=status)
    with pytest.raises(StoreError) as caught:
        bench.store.try_write()
    assert type(caught.value) is error
    proxy.heal()
    bench.store.try_write()
    assert list(bench.store.list_blocks()) == []


@pytest.mark.parametrize("step", ["register_memory", "transfer"])
def test_an_object_that_nixl_refuses_fails_alone_and_nobody_is_asked(
    step: str, bench: Bench, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(1, 2, 3)
    real, name, calls = getattr(bench.agent, step), name_of(bench, 2), itertools.count(1)

    def refuse_the_second(what: Any, *rest: Any, **more: Any) -> Any:
        if next(calls) == 2 if step == "transfer" else name in [region[3] for region in what]:
            raise RuntimeError("no room")
        return real(what, *rest, **more)

    monkeypatch.setattr(bench.agent, step, refuse_the_second)
    proxy.seen.clear()
    errors = [ticket.error for ticket in bench.read(1, 2, 3)]
    assert (errors[0], errors[2]) == (None, None)
    assert "NIXL says" in str(errors[1])
    assert not any(name in seen.path for seen in proxy.seen)
    monkeypatch.undo()
    assert bench.read(2)[0].error is None


def test_what_is_asked_of_the_bucket_at_the_end_leads_to_no_second_attempt(bench: Bench, proxy: FaultyProxy) -> None:
    bench.write(1)
    is_asked, may_answer = threading.Event(), threading.Event()

    def choose(method: str, path: str) -> Fault:
        if method == "HEAD":
            is_asked.set()
            assert may_answer.wait(30.0)
        return Fault(status=503 if method == "GET" else 0)

    proxy.choose = choose
    proxy.seen.clear()
    (ticket,) = bench.io.submit_reads(bench.requests([1]))
    wait_until(lambda: bench.io.poll(ticket) is not IoState.IN_PROGRESS or is_asked.is_set())
    threading.Timer(0.1, may_answer.set).start()
    bench.io.close()
    assert bench.io.poll(ticket) is IoState.FAILED
    assert proxy.num_seen("GET") == 1


# --- a server that does not answer ------------------------------------------------------------------------------------


def test_a_dead_server_fails_at_once_and_a_restarted_one_serves_again(
    server: S3Server, make_bench: Callable[[str], Bench]
) -> None:
    bench = make_bench(server.endpoint)
    bench.write(1)
    server.kill()
    (ticket,) = bench.read(1)
    assert type(ticket.error) is StoreError
    assert "cannot connect" in str(ticket.error)
    assert bench.write(2) == [IoState.FAILED]
    for call in (bench.store.exists, bench.store.read_header, bench.store.delete):
        with pytest.raises(StoreError, match="cannot connect"):
            call(key_of(1))
    with pytest.raises(StoreError, match="cannot list"):
        list(bench.store.list_blocks())
    server.start()
    assert bench.read(1)[0].error is None
    verify(bench.views[0], NAMESPACE, key_of(1), GEOMETRY)
    assert bench.write(2) == [IoState.DONE]


def test_late_bytes_fall_into_memory_that_is_still_held(bench: Bench, proxy: FaultyProxy) -> None:
    """Given up half way: ``release`` refuses while bytes may come, they do come, and after it agrees none come."""
    bench.write(1)
    bench.staging.zero_()
    proxy.fail("GET", is_held=True)
    (ticket,) = bench.io.submit_reads(bench.requests([1]))
    wait_until(lambda: bytes(bench.views[0][: OBJECT_BYTES // 4]) == block_bytes(1)[: OBJECT_BYTES // 4])
    assert not bench.io.release(ticket)
    assert not bench.io.release(ticket)
    assert bench.io.stalled_s() > 0.0
    proxy.let_go()
    wait_until(lambda: bench.io.release(ticket))
    assert bytes(bench.views[0]) == block_bytes(1)  # so it was right not to reuse it
    bench.staging.fill_(7)
    time.sleep(0.2)
    assert bool((bench.staging == 7).all())


def test_a_slow_network_is_no_stalled_storage(
    bench: Bench, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read takes long. Storage answers all the same, unless what asks it is as large as what it asks about."""
    bench.write(1)
    proxy.fail("GET", is_held=True)
    monkeypatch.setattr(blocking_calls, "TRIED_AFTER_S", 0.2)
    write = Bucket.write

    def write_slowly(bucket: Bucket, name: str, data: bytes) -> None:
        time.sleep(10.0 * len(data) / OBJECT_BYTES)
        write(bucket, name, data)

    monkeypatch.setattr(Bucket, "write", write_slowly)
    (ticket,) = bench.io.submit_reads(bench.requests([1]))
    wait_until(lambda: bench.io.stalled_s() > 0.2)
    wait_until(lambda: bench.io.stalled_s() == 0.0, timeout_s=5.0)
    assert bench.io.poll(ticket) is IoState.IN_PROGRESS
    proxy.let_go()
    wait_until(lambda: bench.io.release(ticket))


def test_a_stopped_server_keeps_no_more_than_the_posted_transfers_memory_and_not_for_ever(
    server: S3Server, make_bench: Callable[[str], Bench]
) -> None:
    bench = make_bench(server.endpoint, connections=1)
    assert isinstance(bench.io, S3Io)
    bench.write(*range(6))
    server.stop()
    try:
        tickets = bench.io.submit_reads(bench.requests(range(6)))
        assert bench.io.num_posted == 2
        assert [bench.io.release(ticket) for ticket in tickets] == [False] * 2 + [True] * 4
        wait_until(lambda: all(bench.io.release(ticket) for ticket in tickets))  # the client gives up after 3 s each
        assert bench.io.num_posted == 0
    finally:
        server.go_on()
    bench.staging.fill_(7)
    time.sleep(0.2)
    assert bool((bench.staging == 7).all())
    assert bench.read(3)[0].error is None


def test_a_slow_server_is_waited_for(bench: Bench, proxy: FaultyProxy) -> None:
    """How long, the traffic manager's deadline decides."""
    bench.write(1)
    proxy.fail("GET", drip_s=0.01)
    assert bench.read(1)[0].error is None
    assert bytes(bench.views[0]) == block_bytes(1)


def test_a_process_ends_well_while_a_transfer_hangs(server: S3Server, make_bench: Callable[[str], Bench]) -> None:
    make_bench(server.endpoint).write(1)
    program = f"""
import torch
from tests.store.blocks import *
from dualpath.core.runtime import SystemRuntime
from dualpath.store import nixl_transfers
from dualpath.store.nixl_api import build_agent
from dualpath.store.open import open_store
nixl_transfers.CLOSE_TIMEOUT_S = 0.1
agent = build_agent("hangs", ())
store = open_store("s3://{BUCKET}/kv?endpoint={server.endpoint}", NAMESPACE, GEOMETRY)
io = store.open_io(agent, SystemRuntime())
staging = torch.zeros((4, OBJECT_BYTES), dtype=torch.uint8)
agent.register_memory(staging)
print("ready", flush=True)
input()
bench = Bench(store, io, staging, agent)
io.submit_reads(bench.requests([1, 1]))
io.submit_writes([bench.request(2, 2), bench.request(3, 3)])
io.close()
agent.agent = None
print("closed", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        server.stop()
        out, _ = process.communicate("go\n", timeout=60)
        assert out == "closed\n"
        assert process.returncode == 0
    finally:
        server.go_on()
        process.kill()
        process.wait()


# --- at start ---------------------------------------------------------------------------------------------------------


def refusal(url: str) -> str:
    with pytest.raises(ConfigError) as caught:
        open_store(url, NAMESPACE, GEOMETRY)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_at_the_start_is_said_in_one_line(
    server: S3Server, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"there is no bucket nobody at {server.endpoint}" in refusal(f"s3://nobody/kv?endpoint={server.endpoint}")
    for status, text in ((500, "status 500"), (403, "refuses our credentials")):
        proxy.fail("GET", status=status)
        assert text in refusal(f"s3://{BUCKET}?endpoint={proxy.endpoint}")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert "refuses our credentials (SignatureDoesNotMatch)" in refusal(server.url())
    server.stop()
    assert "does not answer within 0.5 s" in refusal(server.url(timeout_s=0.5))
    server.go_on()
    server.kill()
    assert "cannot connect to" in refusal(server.url())
