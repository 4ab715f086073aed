"""What a client owes: a header, a body, that it takes its answer. Whoever owes nothing is never cut off."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from tests.gateway.conftest import Serving
from tests.gateway.fakes import FakeBackend, says
from tests.gateway.test_server import until
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from dualpath.gateway.http import protocol as http_protocol
from dualpath.gateway.http import server
from dualpath.gateway.http.protocol import Connections, HttpProtocol
from dualpath.gateway.http.refusals import LOG_EVERY_S, RefusalCounter
from dualpath.gateway.settings import ConnectionLimits, GatewaySettings

HANG_S = 30.0
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, Any]:
        """The next answer: its status, and its body's JSON."""
        async with asyncio.timeout(HANG_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            body = await self.reader.readexactly(length)
        return int(head.split(b" ")[1]), json.loads(body) if body else None

    async def error(self, status: int, code: str) -> None:
        """The next answer is this error, in the API's shape, and the last one."""
        got, body = await self.answer()
        assert (got, body["error"]["code"]) == (status, code)
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert await self.rest() == b""

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        async with asyncio.timeout(HANG_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def drip(self, data: bytes, every_s: float) -> None:
        """Sends a byte now and then, until the server closes."""
        for i in range(len(data)):
            if self.reader.at_eof() or self.writer.is_closing():
                return
            self.writer.write(data[i : i + 1])
            await asyncio.sleep(every_s)


@asynccontextmanager
async def client(url: str, first: bytes = b"") -> AsyncIterator[Client]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(first)
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def errors(url: str) -> dict[tuple[str, str], int]:
    """(status, code) -> how often, as Prometheus sees it."""
    async with httpx.AsyncClient() as http:
        lines = (await http.get(f"{url}/metrics")).text.splitlines()
    found = {}
    for line in lines:
        if line.startswith("dualpath_http_errors_total{"):
            labels = dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].split(","))
            found[labels["status"].strip('"'), labels["code"].strip('"')] = int(float(line.split(" ")[-1]))
    return found


def limits(**values: Any) -> GatewaySettings:
    return GatewaySettings(connections=ConnectionLimits(**values))


# -- header ----------------------------------------------------------------------------------------------------------


async def test_a_header_that_does_not_come(backend: FakeBackend, serving: Serving) -> None:
    async with serving(backend, settings=limits(header_timeout_s=1.0)) as url:
        async with client(url, POST) as slow:
            await slow.error(408, "header_timeout")
        async with client(url) as silent:
            assert await silent.rest() == b""
        assert await errors(url) == {("408", "header_timeout"): 1, ("none", "no_request"): 1}


async def test_bytes_that_drip_in_buy_no_time(backend: FakeBackend, serving: Serving) -> None:
    async with serving(backend, settings=limits(header_timeout_s=1.0, body_timeout_s=1.0)) as url:
        for start, more, code in (
            (POST, b"X-" + b"y" * 5000, "header_timeout"),
            (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 1000, "body_timeout"),
        ):
            async with client(url, start) as dripping:
                drip = asyncio.create_task(dripping.drip(more, 0.02))
                await dripping.error(408, code)
                drip.cancel()


async def test_the_second_header_of_a_connection_has_the_same_deadline(backend: FakeBackend, serving: Serving) -> None:
    async with serving(backend, settings=limits(header_timeout_s=0.2)) as url, client(url, HEALTH) as slow:
        assert await slow.answer() == (200, {"problems": []})
        slow.writer.write(POST)
        await slow.error(408, "header_timeout")


async def test_an_idle_connection_is_closed_in_silence(
    backend: FakeBackend, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn, "Config", partial(uvicorn.Config, timeout_keep_alive=0))  # its own counts for nothing
    async with serving(backend, settings=limits(keep_alive_s=1.5)) as url:
        async with client(url) as idle:
            for _ in range(3):  # longer than that in all
                idle.writer.write(HEALTH)
                assert await idle.answer() == (200, {"problems": []})
                await asyncio.sleep(0.6)
            assert await idle.rest() == b""
        assert await errors(url) == {}


# -- body ------------------------------------------------------------------------------------------------------------


async def test_a_body_that_does_not_come(backend: FakeBackend, serving: Serving) -> None:
    async with serving(backend, settings=limits(body_timeout_s=0.2)) as url:
        async with client(url, POST + b"Content-Length: 9000\r\n\r\n" + b" " * 5000) as slow:
            await slow.error(408, "body_timeout")
        assert await errors(url) == {("408", "body_timeout"): 1}
        assert backend.requests == []


@pytest.mark.parametrize("path", [b"/v1/nothing", b"/health", b"/v1/completions"])
async def test_the_rest_of_a_body_that_nobody_wants(backend: FakeBackend, serving: Serving, path: bytes) -> None:
    """It has been answered, and is drained, as many clients do not read before they have sent all; but not for ever."""
    settings = GatewaySettings(max_body_bytes=5000, connections=ConnectionLimits(body_timeout_s=1.0, keep_alive_s=60))
    start = (b"GET " if path == b"/health" else b"POST ") + path + b" HTTP/1.1\r\nHost: x\r\n"
    async with serving(backend, settings=settings) as url:
        async with client(url, start + b"Content-Length: 300000\r\n\r\n" + b"x" * 299_999) as sending:
            status, _ = await sending.answer()
            assert status in (200, 404, 413)
            sending.writer.write(b"x" + HEALTH)
            assert (await sending.answer())[0] == 200
        async with client(url, start + b"Content-Length: 9999999\r\n\r\n") as stalled:
            await stalled.answer()
            drip = asyncio.create_task(stalled.drip(b"x" * 5000, 0.02))
            assert await stalled.rest() == b""
            drip.cancel()
        assert (await errors(url))["none", "body_timeout"] == 1


# -- answer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_take_as_long_as_they_take(backend: FakeBackend, serving: Serving, stream: bool) -> None:
    backend.script, backend.pause_s = says("Hi"), 0.8
    settings = limits(header_timeout_s=2.0, body_timeout_s=2.0, keep_alive_s=0.1, send_timeout_s=0.1)
    async with serving(backend, settings=settings) as url, httpx.AsyncClient(timeout=HANG_S) as http:
        answer = await http.post(f"{url}/v1/completions", json={"prompt": "x", "stream": stream})
        assert answer.status_code == 200
        assert not stream or answer.text.endswith("data: [DONE]\n\n")
        assert backend.outcomes() == ["finished"]


@pytest.mark.parametrize("num_takes", [0, 3])
async def test_a_client_that_takes_nothing_is_cut_off(
    backend: FakeBackend, serving: Serving, monkeypatch: pytest.MonkeyPatch, num_takes: int
) -> None:
    """As long as it takes a little every now and then it is not."""
    backend.max_context_tokens = 1_000_000
    backend.script = lambda request: [65] * request.sampling.max_tokens
    watched, watch = 0, HttpProtocol._watch_sending

    def watching(self: HttpProtocol) -> None:
        nonlocal watched
        watched += 1
        watch(self)
        self._unsent_bytes = self.transport.get_write_buffer_size() + (watched <= num_takes)

    monkeypatch.setattr(HttpProtocol, "_watch_sending", watching)
    body = b'{"prompt":"x","stream":true,"max_tokens":900000}'
    async with serving(backend, settings=limits(send_timeout_s=0.2)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((host, int(port)))
            sock.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            for _ in range(int(HANG_S * 10)):
                await asyncio.sleep(0.1)
                if backend.outcomes() == ["cancelled"]:
                    break
        assert backend.outcomes() == ["cancelled"]
        assert watched > num_takes
        assert await errors(url) == {("none", "send_timeout"): 1}


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_client_that_goes_on_taking_has_all_the_time(goes_on: bool) -> None:
    transport = Mock(asyncio.Transport)
    transport.configure_mock(**{"is_closing.return_value": False, "get_extra_info.return_value": None})
    transport.get_write_buffer_size.return_value = 0
    shared = Connections(ConnectionLimits(send_timeout_s=0.05), 10, RefusalCounter(CollectorRegistry()))
    config = uvicorn.Config(FastAPI(), lifespan="off", log_config=None)
    protocol = HttpProtocol(config=config, server_state=ServerState(), app_state={}, shared=shared)
    protocol.connection_made(transport)
    protocol.pause_writing()
    if goes_on:
        protocol.resume_writing()
    await asyncio.sleep(0.3)
    assert transport.abort.called is not goes_on
    protocol.connection_lost(None)
    assert not shared.idle


# -- how many ----------------------------------------------------------------------------------------------------------


async def test_300_stalled_connections_hurt_nobody(backend: FakeBackend, serving: Serving) -> None:
    """Half of them in a header, half in a body."""
    async with AsyncExitStack() as stack:
        settings = limits(header_timeout_s=600, body_timeout_s=600)
        url = await stack.enter_async_context(serving(backend, drain_s=0.1, settings=settings))
        for i in range(300):
            await stack.enter_async_context(client(url, POST + b"Content-Length: 9000\r\n\r\n" * (i % 2)))
        async with httpx.AsyncClient(timeout=HANG_S) as http:
            assert (await http.post(f"{url}/v1/completions", json={"prompt": "x" * 900})).status_code == 200
        assert await errors(url) == {}  # none of them was closed for it


async def test_too_many_connections(backend: FakeBackend, serving: Serving) -> None:
    """Those without a request make room, longest first; requests that run do not."""
    backend.hang_after = 1
    body = b'{"prompt":"x"}'
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with serving(backend, settings=limits(max_connections=3), drain_s=0.1) as url:
        async with client(url) as oldest, client(url, POST) as older, client(url) as young:
            async with client(url, HEALTH) as fourth:
                assert await fourth.answer() == (200, {"problems": []})
                assert await oldest.rest() == b""
                older.writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
                young.writer.write(request)
                fourth.writer.write(request)
                await until(lambda: len(backend.open_iterators) == 3)
            await until(lambda: len(backend.open_iterators) == 2)
            async with client(url, request):
                await until(lambda: len(backend.open_iterators) == 3)
                async with client(url, HEALTH) as refused:
                    await refused.error(503, "too_many_connections")
                assert len(backend.open_iterators) == 3
        await until(lambda: not backend.open_iterators)
        found = await errors(url)
        assert (found["none", "evicted"], found["503", "too_many_connections"]) == (1, 1)


@pytest.mark.parametrize(("max_files", "max_connections"), [(20, 10), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)])
async def test_connections_leave_half_of_the_files_to_others(
    backend: FakeBackend, serving: Serving, monkeypatch: pytest.MonkeyPatch, max_files: int, max_connections: int
) -> None:
    made: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (max_files, max_files))
    monkeypatch.setattr(server, "Connections", lambda *values: made.append(values[1]) or Connections(*values))
    async with serving(backend):
        assert made == [max_connections]
    async with serving(backend, settings=limits(max_connections=7)):
        assert made == [max_connections, 7]


async def test_shutting_down_does_not_wait_for_the_stalled(backend: FakeBackend, serving: Serving) -> None:
    async with asyncio.timeout(HANG_S):
        async with serving(backend, drain_s=1.0) as url:
            stalled = [client(url, POST + more) for more in (b"", b"Content-Length: 5\r\n\r\n", b"\x00\r\n\r\n")]
            for each in stalled:
                await each.__aenter__()
            await asyncio.sleep(0.1)
        for each in stalled:
            await each.__aexit__(None, None, None)


# -- malformed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (POST + b"Content-Length: x\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (POST + b"X: " + b"y" * 40_000, 431),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nnot a length\r\n", 400),
        (HEALTH.replace(b"/health", b"/v1/models/" + b"%ed%a0%80"), 404),
    ],
)
async def test_malformed_http_gets_an_error_like_any_other(
    backend: FakeBackend, serving: Serving, raw: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(backend) as url:
        async with client(url, raw) as odd:
            got, body = await odd.answer()
            assert got == status
            assert set(body["error"]) == {"message", "type", "param", "code"}
            assert status == 404 or await odd.rest() == b""
        found = await errors(url)
        assert found[str(status), "model_not_found" if status == 404 else "malformed_http"] == 1
        assert backend.requests == []
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_garbage_behind_a_request_does_not_spoil_its_answer(backend: FakeBackend, serving: Serving) -> None:
    backend.pause_s = 0.05
    body = b'{"prompt":"x"}'
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with serving(backend) as url, client(url, request * 2 + b"\x00garbage\r\n\r\n") as odd:
        for _ in range(2):
            status, answer = await odd.answer()
            assert (status, answer["choices"][0]["text"]) == (200, "Hello")
        await odd.error(400, "malformed_http")


async def test_garbage_in_a_body_ends_the_request(
    backend: FakeBackend, serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, though the client keeps its side open; and then the connection, which it has not closed."""
    made: list[Connections] = []
    monkeypatch.setattr(server, "Connections", lambda *values: made.append(Connections(*values)) or made[0])
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.5)
    async with serving(backend, settings=limits(body_timeout_s=0.3)) as url:
        async with client(url, POST + b"Transfer-Encoding: chunked\r\n\r\nnot a length\r\n") as odd:
            await odd.error(400, "malformed_http")
            (lingering,) = made[0].idle
            await until(lambda: lingering.transport.is_closing())
        assert await errors(url) == {("400", "malformed_http"): 1, ("499", "client_closed_request"): 1}
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_whatever_the_parser_lets_through_is_an_answer(
    backend: FakeBackend, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: H11Protocol) -> None:
        raise UnicodeDecodeError("ascii", b"", 0, 1, "unforeseen")

    async with serving(backend) as url, client(url) as odd:
        with monkeypatch.context() as patched:
            patched.setattr(H11Protocol, "handle_events", fail)
            odd.writer.write(HEALTH)
            await odd.error(400, "malformed_http")


async def test_garbage_in_a_body_that_has_been_answered_ends_the_connection(
    backend: FakeBackend, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(backend) as url:
        async with client(url, POST.replace(b"completions", b"none") + b"Transfer-Encoding: chunked\r\n\r\n") as odd:
            assert (await odd.answer())[0] == 404
            odd.writer.write(b"not a length\r\n")
            assert await odd.rest() == b""
        assert (await errors(url))["none", "malformed_http"] == 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


# -- what is said of it ------------------------------------------------------------------------------------------------


async def test_every_error_is_counted_by_status_and_kind(
    backend: FakeBackend, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.script = says("x")
    async with serving(backend, settings=GatewaySettings(api_keys=("k",))) as url:
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer k"}) as http:
            await http.post("/v1/completions", content=b"{")
            await http.post("/v1/completions", json={"prompt": 5})
            await http.post("/v1/completions", json={"prompt": "x", "n": 0})
            await http.get("/v1/nothing")
            await http.get("/v1/completions")
            await http.get("/v1/models", headers={"Authorization": "Bearer other"})
            backend.failure = (0, RuntimeError("unforeseen"))
            await http.post("/v1/completions", json={"prompt": "x"})
            monkeypatch.setattr(backend.control, "recent", lambda _: 1 / 0)
            assert (await http.get("/v1/dualpath/requests")).status_code == 500
        assert await errors(url) == {
            ("400", "invalid_json"): 1,
            ("400", "invalid_type"): 1,
            ("400", "invalid_request_error"): 1,
            ("404", "not_found"): 1,
            ("405", "method_not_allowed"): 1,
            ("401", "invalid_api_key"): 1,
            ("500", "internal_error"): 2,
        }


def test_the_log_has_a_line_per_kind_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 100.0
    refusals = RefusalCounter(CollectorRegistry(), lambda: now_s)
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            refusals.count(400, "invalid_json", "POST /x from a:1")
        refusals.count(None, "send_timeout", "client a:1")
        now_s += LOG_EVERY_S
        refusals.count(400, "invalid_json", "POST /y from b:2")
    assert [record.getMessage() for record in caplog.records] == [
        "POST /x from a:1: 400 invalid_json",
        "client a:1: none send_timeout",
        "POST /y from b:2: 400 invalid_json, and 999 more like it",
    ]


async def test_the_log_shows_no_key_no_body_and_no_control_characters(
    backend: FakeBackend, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = GatewaySettings(api_keys=("secret-key",))
    async with serving(backend, settings=settings) as url, httpx.AsyncClient(base_url=url) as http:
        for key in ("secret-key", "secret-other"):
            headers = {"Authorization": f"Bearer {key}"}
            await http.post("/v1/a%0Ab%1b[31m", json={"prompt": "secret-text"}, headers=headers)
            await http.post("/v1/completions", json={"prompt": "secret-text", "n": 0}, headers=headers)
    told = [record.getMessage() for record in caplog.records if record.name == "dualpath.gateway.http.refusals"]
    assert len(told) == 3
    assert not [line for line in told if "secret" in line or not line.isprintable()]
