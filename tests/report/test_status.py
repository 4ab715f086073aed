"""What status tells of several gateways, some of which do not answer or take their time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from dualpath.core.errors import ConfigError
from dualpath.report import status
from dualpath.report.status import read_status


class Gateways:
    """One engine, which has read 1,000 bytes more each time that somebody asks ``a``."""

    def __init__(self) -> None:
        self.num_asked = Counter[str]()
        self.silent: set[tuple[str, int]] = set()  # (URL, which of its answers does not come)
        self.late_s: dict[str, float] = {}

    def ask(self, url: str, *_: object) -> dict[str, Any]:
        self.num_asked[url] += 1
        time.sleep(self.late_s.get(url, 0.0))
        if (url, self.num_asked[url]) in self.silent:
            raise ConfigError(f"{url} does not answer: refused")
        engine = {"engine_id": "pe0", "node_id": "n0", "storage_read_bytes": 1000 * self.num_asked["a"]}
        engine |= {"storage_write_bytes": 0, "kv_transfer_bytes": {}}
        node = {"node_id": "n0"}
        return {"engines": [engine], "nodes": [node], "num_running_requests": 2, "num_queued_requests": 1}


@pytest.fixture
def gateways(monkeypatch: pytest.MonkeyPatch) -> Gateways:
    made = Gateways()
    monkeypatch.setattr(status, "ask", made.ask)
    return made


def test_requests_are_added_up_and_engines_are_not(gateways: Gateways) -> None:
    found = read_status(["a", "b"], None, 0.1)
    assert (found["num_running_requests"], found["num_queued_requests"], len(found["engines"])) == (4, 2, 1)
    assert found["nodes"][0]["storage_read_bytes_per_s"] == pytest.approx(1000 / found["interval_s"], rel=0.02)
    assert [gateway["answers"] for gateway in found["gateways"]] == [True, True]


def test_one_that_is_late_does_not_change_the_others_rates(gateways: Gateways) -> None:
    gateways.late_s["b"] = 0.5
    found = read_status(["a", "b"], None, 0.1)
    assert 0.1 <= found["interval_s"] < 0.5


@pytest.mark.parametrize("num_answer", [1, 2])
def test_one_that_does_not_answer(gateways: Gateways, num_answer: int) -> None:
    gateways.silent = {("a", num_answer)}
    found = read_status(["a", "b"], None, 0.01)
    assert [gateway["answers"] for gateway in found["gateways"]] == [num_answer == 1, True]
    assert found["num_running_requests"] == (4 if num_answer == 1 else 2)


@pytest.mark.parametrize("num_answer", [1, 2])
def test_where_none_answers_that_is_the_error(gateways: Gateways, num_answer: int) -> None:
    gateways.silent = {("a", 1), ("b", 1)} if num_answer == 1 else {("a", 2), ("b", 1)}
    with pytest.raises(ConfigError, match="b does not answer"):
        read_status(["a", "b"], None, 0.01)
