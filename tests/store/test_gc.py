"""``dualpath store gc`` cuts chains from their ends, and deletes only what it was told to."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, block_bytes, key_of

from dualpath.core.errors import ConfigError, StoreError
from dualpath.core.geometry import KvGeometry
from dualpath.store.files.store import FileStore
from dualpath.store.folder import FileFolder, FolderEntry
from dualpath.store.gc import collect
from dualpath.store.header import object_bytes, write_header
from dualpath.store.inspect import IN_USE_S
from dualpath.store.weights_note import NOTE_NAME, WeightsNote

OTHER = b"another-digest--"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Chain 1..6 written in this order, and block 1 of another namespace, the oldest of all."""
    for number in range(1, 7):
        place(tmp_path, NAMESPACE, number, block_bytes(number), age_s=1000 - number)
    place(tmp_path, OTHER, 1, block_bytes(1, OTHER), age_s=5000)
    return tmp_path


def place(root: Path, namespace: bytes, number: int, data: bytes, age_s: float = 0.0) -> Path:
    path = Path(FileStore(root, namespace, GEOMETRY).path_of(key_of(number)))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def left(root: Path, namespace: bytes = NAMESPACE) -> set[bytes]:
    return {block.key for block in FileStore(root, namespace, GEOMETRY).list_blocks()}


def keys(*numbers: int) -> set[bytes]:
    return {key_of(number) for number in numbers}


def test_beyond_a_size_the_oldest_end_of_a_chain_goes_first(root: Path) -> None:
    done = collect(root.as_uri(), capacity_bytes=4 * OBJECT_BYTES)
    assert (done.num_blocks, done.num_deleted, done.deleted_bytes) == (7, 3, 3 * OBJECT_BYTES)
    assert left(root, OTHER) == set()
    assert left(root) == keys(1, 2, 3, 4)
    assert collect(root.as_uri(), capacity_bytes=0).num_deleted == 4
    assert left(root) == set()


def test_a_namespace_goes_as_a_whole_and_others_stay(root: Path) -> None:
    assert collect(root.as_uri(), namespace=NAMESPACE).num_deleted == 6
    assert left(root) == set()
    assert left(root, OTHER) == keys(1)


def test_damaged_headers_and_temporaries_of_the_dead_go_and_nothing_else(root: Path) -> None:
    place(root, NAMESPACE, 7, b"torn")
    place(root, NAMESPACE, 8, block_bytes(9))
    store = FileStore(root, NAMESPACE, GEOMETRY)
    orphan = Path(f"{store.path_of(key_of(1))}.tmp.elsewhere.1.0")
    orphan.write_bytes(b"half")
    os.utime(orphan, (0, 0))
    foreign = root / NAMESPACE.hex() / "README"
    foreign.write_text("not ours")
    done = collect(root.as_uri())
    assert (done.num_deleted, done.num_swept) == (2, 1)
    assert left(root) == keys(*range(1, 7))
    assert foreign.exists()


def test_a_dry_run_deletes_nothing(root: Path) -> None:
    assert collect(root.as_uri(), capacity_bytes=0, dry_run=True).num_deleted == 7
    assert left(root) == keys(*range(1, 7))


def note(root: Path, namespace: bytes, age_s: float, version: str = "7") -> None:
    FileFolder(str(root)).write_note(namespace, WeightsNote("m", version, "/weights/step_7", time.time() - age_s))


def test_former_weights_go_and_the_latest_stay(root: Path) -> None:
    third, other_kind = b"third-namespace-", b"another-geometry"
    place(root, third, 1, block_bytes(1, third), age_s=3000)
    geometry = KvGeometry(num_layers=2, block_tokens=16, bytes_per_token_layer=64)
    small = bytearray(object_bytes(geometry))
    write_header(memoryview(small), other_kind, key_of(1), key_of(0), geometry)
    place(root, other_kind, 1, bytes(small), age_s=9000)
    assert collect(root.as_uri(), keep_latest=2, dry_run=True).num_deleted == 1
    done = collect(root.as_uri(), keep_latest=1)
    assert {share.namespace.namespace_digest: share.num_deleted for share in done.shares} == {
        NAMESPACE: 0,
        OTHER: 1,
        third: 1,
        other_kind: 0,
    }
    assert (left(root, OTHER), left(root, third)) == (set(), set())
    assert left(root) == keys(*range(1, 7))
    assert left(root, other_kind) == keys(1)


def test_ranks_parts_of_the_same_blocks_stay_and_go_together(root: Path) -> None:
    """Each rank has a namespace of its own: they are one version of weights."""
    third = b"third-namespace-"
    place(root, third, 1, block_bytes(1, third), age_s=9000)
    for namespace in (NAMESPACE, OTHER):
        told = WeightsNote("m", "7", "/weights/step_7", time.time() - 4000, whole="ab" * 16)
        FileFolder(str(root)).write_note(namespace, told)
    done = collect(root.as_uri(), keep_latest=1)
    deleted = {share.namespace.namespace_digest: share.num_deleted for share in done.shares}
    assert deleted == {NAMESPACE: 0, OTHER: 0, third: 1}
    assert collect(root.as_uri(), namespace=OTHER).num_deleted == 7
    assert (left(root), left(root, OTHER)) == (set(), set())


def test_what_a_server_uses_is_latest_whenever_it_was_written(root: Path) -> None:
    note(root, OTHER, age_s=20)  # it reads what was written long ago
    assert collect(root.as_uri(), keep_latest=1).num_deleted == 6
    assert left(root, OTHER) == keys(1)
    assert collect(root.as_uri(), keep_latest=0).num_deleted == 0
    with pytest.raises(ConfigError, match=f"the namespace {OTHER.hex()} is in use"):
        collect(root.as_uri(), namespace=OTHER)
    assert left(root, OTHER) == keys(1)
    note(root, OTHER, age_s=IN_USE_S + 1)
    assert collect(root.as_uri(), keep_latest=0).num_deleted == 1
    assert list((root / OTHER.hex()).glob("*.json")) == []


def test_beyond_a_size_what_a_server_uses_goes_last(root: Path) -> None:
    note(root, OTHER, age_s=20)
    assert collect(root.as_uri(), capacity_bytes=OBJECT_BYTES).num_deleted == 6
    assert left(root, OTHER) == keys(1)


def test_a_note_that_is_no_note_is_none(root: Path) -> None:
    fields = '{"model": "", "version": "", "directory": "", "used_unix_s": %s}'
    for torn in ("", "[]", '{"model": "m"}', fields % "[]", fields % ("9" * 400), "[" * 60_000, "\xff"):
        (root / OTHER.hex() / NOTE_NAME).write_bytes(torn.encode("latin-1"))
        assert FileFolder(str(root)).read_note(OTHER) is None
    FileFolder(str(root)).write_note(b"nobody-has-this-", WeightsNote("m", "7", "/w", 0.0))
    assert not (root / b"nobody-has-this-".hex()).exists()


def test_what_was_written_just_now_is_in_use_without_a_note(root: Path) -> None:
    """Of a server whose first note is yet to come, or of an earlier version that writes none."""
    note(root, NAMESPACE, age_s=20)
    place(root, OTHER, 2, block_bytes(2, OTHER), age_s=IN_USE_S - 20)
    assert collect(root.as_uri(), keep_latest=0).num_deleted == 0
    place(root, OTHER, 2, block_bytes(2, OTHER), age_s=IN_USE_S + 20)
    assert collect(root.as_uri(), keep_latest=0).num_deleted == 2
    assert left(root, OTHER) == set()


@pytest.mark.parametrize(("ahead_s", "num_deleted"), [(-150, 0), (4000, 0), (-IN_USE_S, 1)])
def test_a_clock_that_is_off_by_less_than_four_minutes_or_ahead_does_no_harm(
    root: Path, ahead_s: float, num_deleted: int
) -> None:
    note(root, OTHER, age_s=60 - ahead_s)  # the next is due
    assert collect(root.as_uri(), keep_latest=0).num_deleted == 6 + num_deleted


def test_what_cannot_be_read_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise StoreError("input/output error")

    monkeypatch.setattr(FileFolder, "read", refuse)
    assert collect(root.as_uri(), keep_latest=0).num_deleted == 0


def test_gc_that_is_killed_leaves_what_the_next_one_deletes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note(root, NAMESPACE, age_s=600)
    delete, num_left = FileFolder.delete, 3

    def die(folder: FileFolder, entry: FolderEntry) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise KeyboardInterrupt
        delete(folder, entry)

    with monkeypatch.context() as patch:
        patch.setattr(FileFolder, "delete", die)
        with pytest.raises(KeyboardInterrupt):
            collect(root.as_uri(), keep_latest=0)
    assert collect(root.as_uri(), keep_latest=0).num_deleted == 7 - 3
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_the_note_of_a_server_that_begins_while_gc_deletes_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delete = FileFolder.delete

    def begin(folder: FileFolder, entry: FolderEntry) -> None:
        note(root, OTHER, age_s=0)
        delete(folder, entry)

    monkeypatch.setattr(FileFolder, "delete", begin)
    assert collect(root.as_uri(), namespace=OTHER).num_deleted == 1
    assert FileFolder(str(root)).read_note(OTHER) is not None


def test_a_note_is_replaced_as_a_whole_and_its_writer_may_die(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note(root, OTHER, age_s=20, version="old")
    written = []

    def refuse(temporary: str, path: str) -> None:
        written.append(temporary)
        assert Path(path).name == NOTE_NAME
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        for _ in range(2):
            with pytest.raises(StoreError, match="input/output error"):
                note(root, OTHER, age_s=0, version="new")
    kept = FileFolder(str(root)).read_note(OTHER)
    assert kept is not None
    assert kept.version == "old"
    assert len(set(written)) == 2, "two servers of one process write at once"
    assert not any(Path(temporary).exists() for temporary in written)
    orphan = root / OTHER.hex() / f"{NOTE_NAME}.tmp.elsewhere.1.0"
    orphan.write_text("half")
    assert collect(root.as_uri()).num_swept == 0
    os.utime(orphan, (0, 0))
    assert collect(root.as_uri()).num_swept == 1
    assert not orphan.exists()
