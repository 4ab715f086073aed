"""File systems that hang, fail where nobody expects it, or are full: one call at a time, and what is left of it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, Bench, block_bytes, fill_block, key_of
from tests.store.file_bench import num_open_files, open_bench

from dualpath.core.errors import BlockCorruptError, StoreError, StoreFullError
from dualpath.store import blocking_calls
from dualpath.store.contract import IoState
from dualpath.store.files import plain_io as plain_files_io
from dualpath.store.files.store import FileStore
from dualpath.store.header import verify

NUMBERS = range(1, 9)
ALONE = 2  # in its two-digit folder


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "kv", NAMESPACE, GEOMETRY)


@pytest.fixture(params=[False, True], ids=["nixl", "plain"])
def is_plain(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def bench(store: FileStore, is_plain: bool) -> Iterator[Bench]:
    with open_bench(store, is_plain=is_plain) as bench:
        yield bench


class Gate:
    """Holds up calls of one function of ``os`` until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, concerns: Callable[..., bool]) -> None:
        self.has_come = threading.Event()
        self._may_go = threading.Event()
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            if concerns(*args):
                self.has_come.set()
                assert self._may_go.wait(30.0)
            return real(*args, **options)

        patch.setattr(os, name, call)

    def open(self) -> None:
        self._may_go.set()


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.0005)


def open_paths() -> list[str]:
    paths = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
    return paths


def poll_until(bench: Bench, condition: Callable[[], bool], *tickets: Any) -> None:
    end_s = time.monotonic() + 10.0
    while not condition():
        bench.io.submit_reads([])  # takes what other threads have done
        for ticket in tickets:
            bench.io.poll(ticket)
        assert time.monotonic() < end_s
        time.sleep(0.0005)


def names(number: int) -> Callable[..., bool]:
    """Does a call concern this block's file?"""
    return lambda path, *_: key_of(number).hex() in str(path)


# -- hanging -------------------------------------------------------------------------------------------------------


def test_an_open_that_hangs_costs_its_own_block_only(
    bench: Bench, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is free at once; what it opens in the end is closed."""
    bench.write(*NUMBERS)
    gate = Gate(monkeypatch, "open", names(1))
    hung, *others = bench.io.submit_reads(bench.requests(NUMBERS))
    assert bench.finish(others) == [IoState.DONE] * 7
    for slot, number in list(enumerate(NUMBERS))[1:]:
        verify(bench.views[slot], NAMESPACE, key_of(number), GEOMETRY)
    assert bench.io.poll(hung) is IoState.IN_PROGRESS
    assert bench.write(*range(20, 30)) == [IoState.DONE] * 10
    assert bench.io.stalled_s() > 0.0
    assert bench.io.release(hung)
    assert bench.io.poll(hung) is IoState.FAILED
    bench.staging.fill_(7)
    gate.open()
    wait_until(lambda: bench.io.stalled_s() == 0.0)
    assert not any(key_of(1).hex() in path for path in open_paths()), "nobody needs to poll for that"
    bench.read(2)
    assert bool((bench.staging[1:] == 0).all()), "a read that was given up moved bytes"


def test_more_opens_that_hang_than_there_are_threads(
    bench: Bench, store: FileStore, is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those behind them begin when there are more threads, after a second; here what matters is that they do."""
    num_threads = plain_files_io.NUM_THREADS if is_plain else blocking_calls.NUM_THREADS
    bench.write(*range(num_threads + 1))
    hanging = {key_of(number).hex() for number in range(num_threads)}
    gate = Gate(monkeypatch, "open", lambda path, *_: any(name in str(path) for name in hanging))
    tickets = bench.io.submit_reads(bench.requests(range(num_threads + 1)))
    assert bench.finish(tickets[-1:]) == [IoState.DONE]
    assert {bench.io.poll(ticket) for ticket in tickets[:-1]} == {IoState.IN_PROGRESS}
    gate.open()
    assert bench.finish(tickets[:-1]) == [IoState.DONE] * num_threads


def test_a_write_that_is_given_up_before_it_has_its_name_never_gets_it(
    bench: Bench, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "fstat", lambda fd: ".tmp." in os.readlink(f"/proc/self/fd/{fd}"))
    fill_block(bench.views[0], 1)
    (ticket,) = bench.io.submit_writes([bench.request(0, 1)])
    poll_until(bench, gate.has_come.is_set, ticket)
    assert bench.io.poll(ticket) is IoState.IN_PROGRESS
    assert bench.io.release(ticket), "its memory is not needed any more"
    gate.open()
    bench.write(2)
    poll_until(bench, lambda: bench.io.stalled_s() == 0.0)
    assert not store.exists(key_of(1))


def test_a_rename_that_hangs_publishes_a_whole_block_or_none(
    bench: Bench, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot is used again meanwhile."""
    gate = Gate(monkeypatch, "rename", names(1))
    fill_block(bench.views[0], 1)
    (ticket,) = bench.io.submit_writes([bench.request(0, 1)])
    poll_until(bench, gate.has_come.is_set, ticket)
    assert bench.io.release(ticket)
    bench.staging.fill_(7)
    assert bench.write(2) == [IoState.DONE]
    gate.open()
    poll_until(bench, lambda: store.exists(key_of(1)))
    assert Path(store.path_of(key_of(1))).read_bytes() == block_bytes(1)


@pytest.mark.parametrize("name", ["open", "rename", "unlink", "close"])
def test_the_end_leaves_a_hung_call_behind(name: str, store: FileStore, is_plain: bool) -> None:
    """``close`` returns although the call does not."""
    gates = []
    with open_bench(store, num_hung=1, is_plain=is_plain) as bench, pytest.MonkeyPatch.context() as patch:
        fill_block(bench.views[0], 1)
        if name == "close":
            concerns: Callable[..., bool] = lambda fd: ".tmp." in os.readlink(f"/proc/self/fd/{fd}")  # noqa: E731
        else:
            concerns = names(1)
        if name == "unlink":
            patch.setattr(os, "rename", fails(OSError(errno.EIO, "I/O error")))
        gates.append(Gate(patch, name, concerns))
        (ticket,) = bench.io.submit_writes([bench.request(0, 1)])
        poll_until(bench, gates[0].has_come.is_set, ticket)
        assert bench.io.poll(ticket) is IoState.IN_PROGRESS
        bench.io.close()
        gates[0].open()


def test_memory_that_a_hung_transfer_may_touch_is_not_let_go(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NIXL; with it, that is its word to give."""
    with open_bench(store, is_plain=True) as bench:
        bench.write(1, 2)
        bench.staging.zero_()
        gate = Gate(monkeypatch, "preadv", lambda fd, *_: key_of(1).hex() in os.readlink(f"/proc/self/fd/{fd}"))
        hung, other = bench.io.submit_reads(bench.requests([1, 2]))
        poll_until(bench, gate.has_come.is_set, hung)
        assert bench.finish([other]) == [IoState.DONE]
        assert not bench.io.release(hung)
        gate.open()
        wait_until(lambda: bench.io.release(hung))
        bench.staging.fill_(7)
        assert bench.io.poll(hung) is IoState.FAILED
        assert bool((bench.staging == 7).all())


def test_a_file_that_gets_shorter_while_it_is_read_is_corrupt(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bench(store, is_plain=True) as bench:
        bench.write(1)
        gate = Gate(monkeypatch, "preadv", lambda *_: True)
        (ticket,) = bench.io.submit_reads(bench.requests([1]))
        poll_until(bench, gate.has_come.is_set, ticket)
        os.truncate(store.path_of(key_of(1)), 100)
        gate.open()
        assert bench.finish([ticket]) == [IoState.FAILED]
        assert isinstance(ticket.error, BlockCorruptError)


# -- failing -------------------------------------------------------------------------------------------------------


def fails(error: OSError, concerns: Callable[..., bool] = lambda *_: True, after: Any = None) -> Callable[..., Any]:
    """A function of ``os`` that fails; ``after`` is done nevertheless."""

    def call(*args: Any, **options: Any) -> Any:
        if after is not None:
            after(*args, **options)
        if concerns(*args):
            raise error

    return call


def failing(real: Callable[..., Any], error: OSError, concerns: Callable[..., bool]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if concerns(*args):
            raise error
        return real(*args, **options)

    return call


@pytest.mark.parametrize("name", ["open", "rename", "mkdir"])
def test_a_call_that_fails_fails_its_own_write(name: str, bench: Bench, store: FileStore) -> None:
    folder = key_of(ALONE).hex()[:2]
    concerns = names(ALONE) if name != "mkdir" else lambda path, *_: str(path).endswith(f"/{folder}")
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, failing(getattr(os, name), OSError(number, os.strerror(number)), concerns))
            for slot, block in enumerate(NUMBERS):
                fill_block(bench.views[slot], block)
            tickets = bench.io.submit_writes(bench.requests(NUMBERS))
            bench.finish(tickets)
        errors = {block: ticket.error for block, ticket in zip(NUMBERS, tickets, strict=True) if ticket.error}
        assert list(errors) == [ALONE]
        assert type(errors[ALONE]) is (StoreFullError if number in (errno.ENOSPC, errno.EDQUOT) else StoreError)
        assert {block.key for block in store.list_blocks()} == {key_of(block) for block in NUMBERS if block != ALONE}
    assert bench.write(ALONE) == [IoState.DONE]


def test_a_close_that_fails_is_not_repeated_and_fails_the_write(
    bench: Bench, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS reports what it could not write there; Linux has closed the file all the same."""
    real, closed, lost = os.close, Counter[str](), key_of(3).hex()

    def close(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        real(fd)
        closed[path] += 1
        if lost in path:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "close", close)
        for slot, block in enumerate(NUMBERS):
            fill_block(bench.views[slot], block)
        tickets = bench.io.submit_writes(bench.requests(NUMBERS))
        bench.finish(tickets)
    assert [type(ticket.error) for ticket in tickets] == [StoreFullError if n == 3 else type(None) for n in NUMBERS]
    assert set(closed.values()) == {1}
    assert not store.exists(key_of(3))


def test_a_close_that_fails_after_a_read_is_not_repeated_and_skips_no_other(
    bench: Bench, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(*NUMBERS)
    real, closed = os.close, Counter[str]()

    def close(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        real(fd)
        closed[path] += 1
        if path.endswith(".kv"):
            raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "close", close)
    assert [ticket.error for ticket in bench.read(*NUMBERS)] == [None] * 8
    poll_until(bench, lambda: sum(path.endswith(".kv") for path in closed) == 8)
    assert set(closed.values()) == {1}


def test_without_descriptors_a_ticket_waits_for_one_of_ours(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NIXL no ticket has one while it waits."""
    real, tries = os.open, Counter[str]()

    def open_(path: Any, *args: Any) -> int:
        tries[str(path)] += 1
        if names(5)(path) and tries[str(path)] == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *args)

    with open_bench(store) as bench:
        bench.write(*NUMBERS)
        monkeypatch.setattr(os, "open", open_)
        assert [ticket.error for ticket in bench.read(*NUMBERS)] == [None] * 8
        monkeypatch.setattr(os, "open", fails(OSError(errno.EMFILE, "Too many open files")))
        assert all(isinstance(ticket.error, StoreError) for ticket in bench.read(*NUMBERS)), "nothing to wait for"


# -- full ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for about ten blocks."""
    directory = tmp_path / "small"
    directory.mkdir()
    num_kib = 10 * (OBJECT_BYTES // 1024 + 4)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_kib}k", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


@pytest.mark.root
def test_a_full_disk_is_told_from_other_failures(small_disk: Path, is_plain: bool) -> None:
    store = FileStore(small_disk, NAMESPACE, GEOMETRY)
    with open_bench(store, is_plain=is_plain) as bench:
        free_bytes = store.free_bytes()
        assert free_bytes is not None
        assert free_bytes > 5 * OBJECT_BYTES
        store.try_write()
        for slot in range(20):
            fill_block(bench.views[slot], slot)
        tickets = bench.io.submit_writes(bench.requests(range(20)))
        bench.finish(tickets)
        errors = [ticket.error for ticket in tickets if ticket.error is not None]
        assert 0 < len(errors) < 20
        assert {type(error) for error in errors} == {StoreFullError}
        stored = {block.key for block in store.list_blocks()}
        assert stored == {key_of(i) for i, ticket in enumerate(tickets) if ticket.error is None}
        with pytest.raises(StoreFullError):
            store.try_write()
        assert store.free_bytes() < OBJECT_BYTES  # type: ignore[operator]
        for key in list(stored)[:3]:
            store.delete(key)
        store.try_write()
        assert list(small_disk.rglob("*.tmp.*")) == []


# -- durable -------------------------------------------------------------------------------------------------------


def test_a_durable_write_syncs_every_directory_that_got_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, list[str]()

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "a" / "kv"
    directory = root / NAMESPACE.hex()
    store = FileStore(root, NAMESPACE, GEOMETRY, durable=True)
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(root)]
    with open_bench(store) as bench:
        synced.clear()
        bench.write(1)
        folder = str(directory / key_of(1).hex()[:2])
        assert [".tmp." in path for path in synced] == [True, False, False]
        assert synced[1:] == [folder, str(directory)], "the name, then the folder's own"
        synced.clear()
        bench.write(1)
        assert synced[1:] == [folder], "the folder's own is durable already"
        shutil.rmtree(root)
        synced.clear()
        bench.write(1)
        assert synced[:2] == [str(tmp_path / "a"), str(root)]
        assert synced[3:] == [folder, str(directory)]
    synced.clear()
    FileStore(root, NAMESPACE, GEOMETRY, durable=True)
    assert synced == [str(root)], "whoever made the directory may have died before it was durable"


def test_a_folder_that_another_process_made_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path, NAMESPACE, GEOMETRY, durable=True)
    store.make_folder(key_of(1))
    real, synced = os.fsync, list[str]()
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    with open_bench(store) as bench:
        bench.write(1)
    assert str(tmp_path / NAMESPACE.hex()) in synced


def test_nothing_is_synced_unless_asked_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fails(OSError(errno.EIO, "I/O error")))
    assert bench.write(1) == [IoState.DONE]


def test_a_write_that_is_not_durable_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_bench(FileStore(tmp_path, NAMESPACE, GEOMETRY, durable=True)) as bench:
        num_before = num_open_files()
        monkeypatch.setattr(os, "fsync", fails(OSError(errno.EIO, "I/O error")))
        assert bench.write(1, 2) == [IoState.FAILED] * 2
        poll_until(bench, lambda: num_open_files() <= num_before)
        assert list(bench.store.list_blocks()) == []


def test_polling_a_write_again_and_again_ends_it(bench: Bench) -> None:
    """Nobody else is polled: its file must get its name all the same while other transfers go on."""
    bench.write(*NUMBERS)
    fill_block(bench.views[0], 20)
    reads = bench.io.submit_reads(bench.requests(NUMBERS)[1:])
    (write,) = bench.io.submit_writes([bench.request(0, 20)])
    poll_until(bench, lambda: bench.io.poll(write) is IoState.DONE)
    bench.finish(reads)
