"""``dualpath store gc`` cuts chains from their ends, and deletes only what it was told to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, block_bytes, key_of

from dualpath.store.files import FileStore
from dualpath.store.gc import collect

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
