"""What only files can do wrong: full disks, vanished directories, dead writers, leaked descriptors."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, Bench, block_bytes, fill_block, key_of
from tests.store.file_bench import NUM_SLOTS, open_bench, until_moving

from dualpath.core.errors import BlockCorruptError, BlockMissingError, StoreError
from dualpath.store.contract import IoState
from dualpath.store.files.directory import pid_space
from dualpath.store.files.store import FileStore
from dualpath.store.files.transfers import FileIo
from dualpath.store.header import verify

POSIX_ENGINES = [None, {"POSIX": {"use_aio": "true"}}]


@pytest.fixture(params=POSIX_ENGINES, ids=["default", "libaio"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with open_bench(FileStore(tmp_path, NAMESPACE, GEOMETRY), request.param) as bench:
        yield bench


def files_of(bench: Bench) -> FileStore:
    assert isinstance(bench.store, FileStore)
    return bench.store


def test_more_blocks_than_may_be_open(bench: Bench) -> None:
    assert isinstance(bench.io, FileIo)
    numbers = range(NUM_SLOTS)
    assert set(bench.write(*numbers)) == {IoState.DONE}
    tickets = bench.io.submit_reads(bench.requests(numbers))
    assert bench.io.num_open_files() <= 20
    last = tickets[-1]
    while bench.io.poll(last) is IoState.IN_PROGRESS:  # nobody polls those before it
        assert bench.io.num_open_files() <= 20
    bench.finish(tickets)
    verify(bench.views[NUM_SLOTS - 1], NAMESPACE, key_of(NUM_SLOTS - 1), GEOMETRY)


def test_hung_transfers_do_not_hold_up_the_queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last, queued ticket is polled, and the first nine of those before it never end."""
    bench.write(*range(NUM_SLOTS))
    tickets = bench.io.submit_reads(bench.requests(range(NUM_SLOTS)))
    real = bench.agent.check_xfer_state

    def check(handle: Any) -> str:
        return "PROC" if any(handle is ticket.handle for ticket in tickets[:9]) else real(handle)

    monkeypatch.setattr(bench.agent, "check_xfer_state", check)
    bench.finish(tickets[-1:])
    assert [bench.io.poll(ticket) for ticket in tickets[:9]] == [IoState.IN_PROGRESS] * 9
    monkeypatch.undo()
    bench.finish(tickets[:-1])


def test_queued_tickets_can_be_given_up(bench: Bench) -> None:
    bench.write(*range(NUM_SLOTS))
    tickets = bench.io.submit_reads(bench.requests(range(NUM_SLOTS)))
    assert bench.io.release(tickets[-1])
    assert bench.finish(tickets[:-1]) == [IoState.DONE] * (NUM_SLOTS - 1)


def test_closing_gives_up_what_is_under_way(bench: Bench) -> None:
    bench.write(*range(NUM_SLOTS))
    bench.io.submit_reads(bench.requests(range(NUM_SLOTS)))
    bench.io.submit_writes(bench.requests(range(NUM_SLOTS)))


def test_a_write_given_up_is_not_published(bench: Bench) -> None:
    fill_block(bench.views[0], 1)
    (ticket,) = bench.io.submit_writes([bench.request(0, 1)])
    while not bench.io.release(ticket):
        pass
    assert not bench.store.exists(key_of(1))


def test_a_failing_transfer_fails_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated files that the check before the transfer does not see: the transfer itself has to fail, and only it."""
    bench.write(*range(16))
    for number in (0, 7, 15):
        os.truncate(files_of(bench).path_of(key_of(number)), OBJECT_BYTES - 100)
    real, calls = os.fstat, itertools.count()
    fake = SimpleNamespace(st_size=OBJECT_BYTES)
    monkeypatch.setattr(os, "fstat", lambda fd: fake if next(calls) < 16 else real(fd))
    tickets = bench.read(*range(16))
    assert [i for i, ticket in enumerate(tickets) if ticket.error is not None] == [0, 7, 15]
    for number in set(range(16)) - {0, 7, 15}:
        verify(bench.views[number], NAMESPACE, key_of(number), GEOMETRY)


def test_a_file_that_cannot_be_registered_fails_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are registered together, and one by one where that fails."""
    bench.write(*range(8))
    register, fds = bench.agent.register_memory, list[int]()

    def refuse_the_first(files: list[tuple[int, int, int, str]], *rest: Any, **more: Any) -> Any:
        fds.extend(fd for _, _, fd, _ in files)
        if any(fd == fds[0] for _, _, fd, _ in files):
            raise RuntimeError("no room")
        return register(files, *rest, **more)

    monkeypatch.setattr(bench.agent, "register_memory", refuse_the_first)
    tickets = bench.io.submit_reads(bench.requests(range(8)))
    assert isinstance(bench.io, FileIo)
    while len(bench.io._calls._ended) < 8:  # all are open before the first is taken
        time.sleep(0.001)
    states = bench.finish(tickets)
    assert sorted(states, key=lambda state: state.value) == [IoState.DONE] * 7 + [IoState.FAILED]
    assert len(fds) > 8, "none were registered together"


def test_an_unexplained_error_keeps_the_memory_for_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write(1)

    def fail(handle: Any) -> str:
        raise RuntimeError("queue failed")

    monkeypatch.setattr(bench.agent, "check_xfer_state", fail)
    (ticket,) = bench.io.submit_reads([bench.request(0, 1)])
    until_moving(bench, [ticket])
    assert not bench.io.release(ticket)
    assert bench.finish([ticket]) == [IoState.FAILED]
    assert isinstance(ticket.error, StoreError)


def test_a_full_disk_fails_the_write_and_leaves_nothing(bench: Bench) -> None:
    bench.write(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (OBJECT_BYTES - 512, limits[1]))
    try:
        assert bench.write(2, 3) == [IoState.FAILED] * 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [block.key for block in bench.store.list_blocks()] == [key_of(1)]
    assert bench.write(2) == [IoState.DONE]


def test_a_vanished_mount_fails_tickets_and_what_is_in_its_place_is_not_filled(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an unmount the mount point is an empty directory of the file system below."""
    shutil.rmtree(tmp_path / NAMESPACE.hex())
    monkeypatch.setattr(files_of(bench), "_device", os.stat("/proc").st_dev)
    fill_block(bench.views[0], 1)
    (ticket,) = bench.io.submit_writes([bench.request(0, 1)])
    assert bench.finish([ticket]) == [IoState.FAILED]
    assert "file system is gone" in str(ticket.error)
    with pytest.raises(StoreError, match="file system is gone"):
        bench.store.try_write()
    assert isinstance(bench.read(1)[0].error, BlockMissingError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["folders", "namespace", "root"])
def test_a_store_that_was_deleted_comes_back_to_work(depth: int, tmp_path: Path) -> None:
    root = tmp_path / "kv"
    store = FileStore(root, NAMESPACE, GEOMETRY)
    with open_bench(store) as bench:
        bench.write(1)
        for path in (
            [*(root / NAMESPACE.hex()).iterdir()] if depth == 0 else [[root / NAMESPACE.hex(), root][depth - 1]]
        ):
            shutil.rmtree(path)
        assert isinstance(bench.read(1)[0].error, BlockMissingError)
        assert bench.write(1, 2) == [IoState.DONE] * 2
        assert [ticket.error for ticket in bench.read(1, 2)] == [None] * 2
        store.try_write()


def test_a_directory_in_the_way_fails_alone(bench: Bench) -> None:
    os.makedirs(files_of(bench).path_of(key_of(1)))
    assert bench.write(1, 2) == [IoState.FAILED, IoState.DONE]
    assert [type(ticket.error) for ticket in bench.read(1, 2)] == [BlockCorruptError, type(None)]


def test_temporaries_of_dead_writers_are_swept_and_others_stay(tmp_path: Path) -> None:
    store = FileStore(tmp_path, NAMESPACE, GEOMETRY)
    path = Path(store.path_of(key_of(1)))
    path.parent.mkdir()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    names = {
        "dead": f"{path.name}.tmp.{pid_space()}.{int(dead.stdout)}.0",
        "alive": f"{path.name}.tmp.{pid_space()}.{os.getpid()}.0",
        "elsewhere": f"{path.name}.tmp.00000000.{int(dead.stdout)}.0",
        "old": f"{path.name}.tmp.00000000.1.0",
        "foreign": "notes.tmp.txt",
    }
    for name in names.values():
        (path.parent / name).write_bytes(b"half")
    os.utime(path.parent / names["old"], (0, 0))
    path.write_bytes(block_bytes(1))
    assert [block.key for block in store.list_blocks()] == [key_of(1)]
    assert {entry.name for entry in path.parent.iterdir()} == {
        path.name,
        names["alive"],
        names["elsewhere"],
        names["foreign"],
    }


def test_a_writer_killed_in_mid_write_leaves_no_block(tmp_path: Path) -> None:
    """The writer fills its temporary and dies before it can rename."""
    code = f"""
import os, signal
from pathlib import Path
from dualpath.core.geometry import KvGeometry
from dualpath.store.files.store import FileStore
store = FileStore(Path({str(tmp_path)!r}), {NAMESPACE!r}, KvGeometry(4, 16, 64))
path = store.temporary_of({key_of(1)!r})
os.mkdir(os.path.dirname(path))
open(path, "wb").write(b"x" * 1000)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run(
        [sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert len(list(tmp_path.rglob("*.tmp.*"))) == 1
    store = FileStore(tmp_path, NAMESPACE, GEOMETRY)
    assert list(store.list_blocks()) == []
    assert list(tmp_path.rglob("*.tmp.*")) == []
