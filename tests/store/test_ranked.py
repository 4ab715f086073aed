"""Blocks in parts: there when all parts are, one size, one deletion; a part that is alone goes after a while."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError, StoreError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.keys import Namespace
from dualpath.core.runtime import SystemRuntime
from dualpath.store.header import object_bytes
from dualpath.store.memory import MemoryStore, forget
from dualpath.store.open import open_store
from dualpath.store.ranked import RankedStore, parts_listed

WHOLE = Namespace("f" * 32, "float32", KvGeometry(2, 4, 16), "test", "vllm-tp2", num_ranks=2)
URL = "memory://ranked"


class _Stubborn(MemoryStore):
    def delete(self, key: BlockKey) -> None:
        raise StoreError("a test's fault")


class _Later(SystemRuntime):
    def unix_s(self) -> float:
        return 10_000.0


def test_a_block_is_there_when_all_its_parts_are() -> None:
    try:
        parts = [MemoryStore(URL, part.digest, part.geometry) for part in WHOLE.parts()]
        size = object_bytes(parts[0].geometry)
        for number, sizes in enumerate(((size, size), (size, size - 1), (size, None), (None, size))):
            for part, num_bytes in zip(parts, sizes, strict=True):
                if num_bytes is not None:
                    part.put_raw(BlockKey(bytes([number]) * 16), bytes(num_bytes))
        store = RankedStore(WHOLE, parts)
        found = {block.key[0]: block.num_bytes for block in store.list_blocks()}
        assert found == {0: object_bytes(WHOLE.geometry), 1: 0}
        whole, alone = BlockKey(bytes(16)), BlockKey(bytes([3]) * 16)
        assert store.exists(whole)
        assert not store.exists(alone)
        store.delete(whole)
        assert [part.exists(whole) for part in parts] == [False, False]
        assert parts_listed(store) == 6  # whoever waits for the first block sees that storage answers
        assert parts_listed(parts[0]) == 0
    finally:
        forget(URL)


def test_an_old_part_that_is_alone_is_deleted() -> None:
    """A crash between two parts has left it; a young one's writer may be about to add the other."""
    try:
        parts = [MemoryStore(URL, part.digest, part.geometry) for part in WHOLE.parts()]
        old, young = BlockKey(bytes([1]) * 16), BlockKey(bytes([2]) * 16)
        parts[1]._shelf.put(old, bytes(8), 10_000.0 - 3_601)
        parts[1]._shelf.put(young, bytes(8), 10_000.0 - 3_599)
        assert list(RankedStore(WHOLE, parts, _Later()).list_blocks()) == []
        assert [parts[1].exists(key) for key in (old, young)] == [False, True]
    finally:
        forget(URL)


def test_a_part_that_cannot_be_deleted_keeps_no_other_and_no_start(caplog: pytest.LogCaptureFixture) -> None:
    try:
        first, second = WHOLE.parts()
        parts = [_Stubborn(URL, first.digest, first.geometry), MemoryStore(URL, second.digest, second.geometry)]
        key, alone = BlockKey(bytes(16)), BlockKey(bytes([1]) * 16)
        for part in parts:
            part.put_raw(key, bytes(object_bytes(part.geometry)))
        parts[0].put_raw(alone, bytes(8))
        store = RankedStore(WHOLE, parts, _Later())
        assert [block.key for block in store.list_blocks()] == [key]
        assert "a test's fault" in caplog.text
        with pytest.raises(StoreError, match="a test's fault"):
            store.delete(key)
        assert [part.exists(key) for part in parts] == [True, False]
    finally:
        forget(URL)


def test_ranks_never_meet_each_other_and_one_rank_is_what_it_always_was(tmp_path: Path) -> None:
    first, second = WHOLE.parts()
    assert len({WHOLE.digest, first.digest, second.digest}) == 3
    assert first.geometry == KvGeometry(2, 4, 8)
    assert (first.num_ranks, first.parts()) == (1, (first,))
    alone = replace(WHOLE, num_ranks=1)
    assert alone.parts() == (alone,)
    store = open_store(f"file://{tmp_path}", WHOLE, WHOLE.geometry)
    assert isinstance(store, RankedStore)
    assert (store.namespace_digest, store.geometry) == (WHOLE.digest, WHOLE.geometry)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) != []
    with pytest.raises(ConfigError, match="moved by their ranks"):
        store.open_io(None, SystemRuntime())
    store.close()
