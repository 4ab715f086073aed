"""``dualpath why`` against the gateway's own routes, and against what is no such server."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from dataclasses import dataclass, field, replace

import pytest
from tests.gateway.conftest import Serving
from tests.gateway.fakes import STATS, FakeBackend

from dualpath.cli.main import main
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, NodeStats, StoreStats
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.verdict.client import recent_requests

NODES = (
    NodeStats(NodeId("n0"), Role.PREFILL, (STATS.engines[0].engine_id,), storage_nic_bytes_per_s=1000.0),
    NodeStats(NodeId("n1"), Role.DECODE, (STATS.engines[1].engine_id,), storage_nic_bytes_per_s=1000.0),
)
FIRST = replace(STATS, nodes=NODES, store=StoreStats(), num_queued_requests=0, num_running_requests=0)
KEYS = GatewaySettings(api_keys=("user",), admin_keys=("boss",))


@dataclass
class BusyBackend(FakeBackend):
    """Its NIC of n1 moves a lot from one call to the next."""

    num_looks: int = 0
    last: list[RequestRecord] = field(default_factory=list)

    async def stats(self) -> ClusterStats:
        self.num_looks += 1
        engine = replace(FIRST.engines[1], nic_read_bytes=1_000_000 * self.num_looks)
        return replace(FIRST, engines=(FIRST.engines[0], engine))


async def why(*words: str) -> int:
    return await asyncio.to_thread(main, ["why", *words, "--interval-s", "0.5"])


async def test_it_names_what_binds(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(BusyBackend()) as url:
        assert await why(url) == 0
        assert capsys.readouterr().out.startswith("storage NIC: storage NIC of node n1 (decode), read: ")
        assert await why(f"{url}/", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["missing"]) == ("binds", [])
    assert [finding["resource"] for finding in found["findings"]] == ["storage NIC"]


async def test_the_server_may_be_named_by_its_flag(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(BusyBackend()) as url:
        assert await why("--url", url, "--quick") == 0
    assert capsys.readouterr().out.startswith("storage NIC: ")


async def test_it_says_what_is_missing(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    """The fake cluster has no nodes to describe, and requests that no record is of."""
    async with serving(FakeBackend()) as url:
        assert await why(url) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == "cannot tell; missing: records of requests: 0 of 3 running ones can be seen (does the key see all?)"
    )
    assert sum(line.startswith("  missing: ") for line in lines) == 3


@pytest.mark.parametrize(
    ("key", "said"), [(None, "401"), ("wrong", "401"), ("user", "give an admin key"), ("\n", "not")]
)
async def test_a_bad_key_is_wrong_input(
    key: str | None,
    said: str,
    serving: Serving,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DUALPATH_API_KEY", raising=False)
    async with serving(FakeBackend(), settings=KEYS) as url:
        assert await why(url, *([] if key is None else ["--api-key", key])) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


async def test_an_admin_key_from_the_environment(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALPATH_API_KEY", "boss")
    async with serving(FakeBackend(), settings=KEYS) as url:
        assert await why(url) == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:8000", "file:///etc", "http://[", "http://x y", ""])
def test_nobody_there(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", url]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dualpath: error: ")
    assert error.count("\n") == 1
    assert "urlopen" not in error


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n[1]", b"HTTP/1.1 200 OK\r\n\r\nhi", b"SSH-2.0\r\n", b""])
async def test_another_kind_of_server(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await why(f"http://127.0.0.1:{port}") == 2
    assert "does not answer" in capsys.readouterr().err


async def test_one_request(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(FakeBackend()) as url:
        await asyncio.to_thread(
            urllib.request.urlopen,
            urllib.request.Request(f"{url}/v1/completions", b'{"prompt": "abc"}', {"Content-Type": "application/json"}),
        )
        (known,) = (await asyncio.to_thread(recent_requests, url, None)).records
        assert await why(known.request_id, "--url", url) == 0
        assert known.outcome in capsys.readouterr().out
        assert await why(known.request_id, "--url", url, "--json") == 0
        assert json.loads(capsys.readouterr().out)["request_id"] == known.request_id
        assert await why("cmpl-nobody", "--url", url) == 2
    assert "knows no recent request cmpl-nobody" in capsys.readouterr().err


async def test_gateways_that_give_no_answer_are_named(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    backend = BusyBackend()
    lack = "requests of gateway1, gateway2: no answer in time"
    async with serving(backend) as url:
        payload = urllib.request.Request(
            f"{url}/v1/completions", b'{"prompt": "abc"}', {"Content-Type": "application/json"}
        )
        await asyncio.to_thread(urllib.request.urlopen, payload)
        backend.control.missing = ("gateway1", "gateway2")
        (known,) = (await asyncio.to_thread(recent_requests, url, None)).records
        for command in ((url, "--quick"), (known.request_id, "--url", url)):
            assert await why(*command) == 0
            assert f"missing: {lack}" in capsys.readouterr().out
        assert await why("cmpl-nobody", "--url", url) == 2
    assert lack in capsys.readouterr().err


async def test_without_data_there_is_no_counterfactual(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(BusyBackend()) as url:
        assert await why(url) == 0
        assert "no counterfactual: 0 requests came and finished" in capsys.readouterr().out
        assert await why(url, "--quick") == 0
    assert "counterfactual" not in capsys.readouterr().out
