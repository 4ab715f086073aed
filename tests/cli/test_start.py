"""A start over a store that is ill: what cannot be deleted or read is told, what hangs has a deadline."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.scheduler.fakes import FakeDecode, FakePrefill, FakeStorage
from tests.store.blocks import GEOMETRY, OBJECT_BYTES, key_of

from dualpath.cluster import composition
from dualpath.cluster.composition import Nodes, ServingCluster
from dualpath.config import ModelConfig, ServeConfig, StoreConfig
from dualpath.core.errors import BlockCorruptError, StoreError
from dualpath.core.ids import BlockKey
from dualpath.core.keys import Namespace
from dualpath.scheduler import evictor
from dualpath.scheduler.config import SchedulerConfig
from dualpath.store import parents
from dualpath.store.memory import MemoryStore

NAMESPACE = Namespace("model", "float32", GEOMETRY, "cpu")
_names = itertools.count()


class IllStore(MemoryStore):
    """``ills``: what comes before a call of that name."""

    def __init__(self) -> None:
        super().__init__(f"memory://start-{next(_names)}", NAMESPACE.digest, GEOMETRY)
        self.ills: dict[str, Callable[[], None]] = {}
        for number in range(3):
            self.put_raw(key_of(number), bytes(OBJECT_BYTES))
        for number in range(3, 6):
            self.put_raw(key_of(number), b"torn")

    def list_blocks(self) -> Iterator[Any]:
        for block in super().list_blocks():
            self.ills.get("list", lambda: None)()
            yield block

    def delete(self, key: BlockKey) -> None:
        self.ills.get("delete", lambda: None)()
        super().delete(key)

    def read_header(self, key: BlockKey) -> bytes:
        self.ills.get("read", lambda: None)()
        return super().read_header(key)


class Fakes(ServingCluster):
    """Over engines that move nothing."""

    def __init__(self, store: IllStore) -> None:
        super().__init__(
            ServeConfig(model=ModelConfig(dir=Path("/none")), store=StoreConfig(url=store.url)), lambda _: None
        )
        self._ill = store

    async def _start_nodes(self) -> Nodes:
        storage = FakeStorage()
        decode = FakeDecode("d0", storage)
        prefill = FakePrefill("p0", storage, {decode.info.engine_id: decode})
        return Nodes([prefill], [decode], NAMESPACE, self._ill, "fake", 4096, SchedulerConfig())

    async def _close_nodes(self) -> None: ...


@asynccontextmanager
async def started(store: IllStore) -> Any:
    cluster = Fakes(store)
    await cluster.start()
    yield cluster
    await cluster.close(0.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110  (threads have no event for it)
            await asyncio.sleep(0.001)


@pytest.fixture
def store() -> Iterator[IllStore]:
    store = IllStore()
    yield store
    for ill in store.ills.values():
        if isinstance(ill, Hang):
            ill.gate.set()


class Hang:
    """Lets some calls pass before."""

    def __init__(self, num_passing: int = 0) -> None:
        self.gate, self._left = threading.Event(), num_passing

    def __call__(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.gate.wait(30.0)


def fail() -> None:
    raise StoreError("no permission")


async def test_what_a_start_finds_damaged_is_deleted(store: IllStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evictor, "_LOOK_EVERY_S", 0.05)
    async with started(store) as cluster:
        assert cluster.desk.evictor.stats.used_bytes == 6 * OBJECT_BYTES
        await until(lambda: not list(store.list_blocks()) and not cluster.index.used_bytes())
    assert len(cluster.index) == 0


@pytest.mark.parametrize("is_hanging", [False, True])
async def test_a_start_does_not_wait_for_deletions(
    is_hanging: bool, store: IllStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evictor, "_LOOK_EVERY_S", 0.05)
    hang = store.ills["delete"] = Hang() if is_hanging else fail  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(5.0), started(store) as cluster:
            assert cluster.service.ready()
            assert f"store {store.url}: 3 objects of a wrong size are deleted" in caplog.text
            if not is_hanging:
                await until(lambda: "3 of 3 blocks cannot be deleted from storage" in caplog.text)
            await until(lambda: len(cluster.index) == 0)
            store.ills.clear()
            if is_hanging:
                hang.gate.set()  # type: ignore[attr-defined]
            await until(lambda: not list(store.list_blocks()))


async def test_a_listing_that_hangs_ends_the_start(store: IllStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "_LISTING_S", 0.05)
    store.ills["list"] = Hang(2)
    async with asyncio.timeout(5.0):
        with pytest.raises(StoreError, match=r"no answer for 0\.05 s; 2 blocks were listed"):
            await Fakes(store).start()


async def test_a_long_listing_takes_its_time(store: IllStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "_LISTING_S", 0.2)
    pause = threading.Event()
    store.ills["list"] = lambda: pause.wait(0.1) and None
    async with started(store):
        pass


async def test_headers_that_cannot_be_read_are_counted(store: IllStore, caplog: pytest.LogCaptureFixture) -> None:
    store.ills["read"] = fail
    with caplog.at_level(logging.WARNING):
        async with started(store) as cluster:
            await until(lambda: f"{store.url}: 3 headers cannot be read: no permission" in caplog.text)
            assert len(cluster.index) == 3


async def test_headers_without_an_answer_hold_nothing_up(
    store: IllStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ills["read"] = Hang()
    with caplog.at_level(logging.WARNING):
        async with started(store) as cluster:
            for learning in cluster._learning.values():
                learning.cancel()
            await parents.learn_parents(cluster.index, store, cluster._runtime, batch_blocks=1, patience_s=0.02)
            assert "3 headers cannot be read: storage has not answered" in caplog.text
            assert len(cluster.index) == 3
            assert cluster.index.unknown_parents(1) == []


async def test_damaged_headers_are_told(store: IllStore, caplog: pytest.LogCaptureFixture) -> None:
    def damaged() -> None:
        raise BlockCorruptError("not one of ours")

    store.ills["read"] = damaged
    with caplog.at_level(logging.WARNING):
        async with started(store):
            await until(lambda: "3 of the blocks found are damaged or gone; they are deleted" in caplog.text)
