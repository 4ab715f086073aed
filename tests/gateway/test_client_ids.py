"""Which requests a client's own id means, and that what is remembered of them has an end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dualpath.core.ids import RequestId
from dualpath.gateway.rollout import client_ids
from dualpath.gateway.rollout.client_ids import MAX_IDS_OF_NAME, ClientIds


def _ids(start: int, count: int) -> list[RequestId]:
    return [RequestId(f"gen-{number}") for number in range(start, start + count)]


def test_an_id_means_all_requests_that_have_it() -> None:
    ids = ClientIds()
    ids.add("mine", _ids(0, 2))
    ids.add("mine", _ids(2, 1))
    assert ids.find("mine") == _ids(0, 3)
    assert ids.find("gen-7") == [RequestId("gen-7")]


def test_an_id_that_is_used_for_ever_means_the_latest_requests() -> None:
    ids = ClientIds()
    for number in range(MAX_IDS_OF_NAME + 5):
        ids.add("mine", _ids(number, 1))
    assert ids.find("mine") == _ids(5, MAX_IDS_OF_NAME)


def test_the_longest_unused_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_ids, "MAX_IDS", 6)
    ids = ClientIds()
    for name in ("a", "b", "a", "c"):
        ids.add(name, _ids(0, 2))
    assert [len(ids.find(name)) for name in "abc"] == [4, 1, 2]
    ids.add("d", _ids(0, 6))
    assert [len(ids.find(name)) for name in "abcd"] == [1, 1, 1, 6]


@pytest.fixture
def eager_threads() -> Iterator[None]:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("eager_threads")
def test_threads_may_add_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_ids, "MAX_IDS", 3)
    ids = ClientIds()

    def work(number: int) -> None:
        for turn in range(20_000):
            ids.add(f"{(number + turn) % 5}", _ids(turn, 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sum(len(ids._requests[name]) for name in ids._requests) == ids._num_ids <= 3
