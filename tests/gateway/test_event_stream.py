"""Streams that are silent for long: headers and pings in time, and a status of its own for what fails before."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.types import Message
from tests.gateway.conftest import SETTINGS, Serving
from tests.gateway.fakes import FakeBackend
from tests.gateway.sse import events_of
from tests.gateway.test_errors import COMPLETION, check
from tests.gateway.test_odd_bodies import BODIES
from tests.gateway.test_server import until

from dualpath.core.errors import DualPathError
from dualpath.gateway.errors import ApiError
from dualpath.gateway.http.event_stream import EventStream
from dualpath.gateway.http.protocol import WRITE_NOW
from dualpath.gateway.passthrough.dialects import DIALECTS, Dialect
from dualpath.gateway.responses.writer import ResponseWriter
from dualpath.gateway.sse import with_data

PINGING = replace(SETTINGS, stream_ping_s=0.05)
STREAMED = COMPLETION | {"stream": True, "max_tokens": 3}


async def test_headers_and_pings_come_before_the_first_token(backend: FakeBackend, serving: Serving) -> None:
    backend.hang_after = 0
    async with (
        serving(backend, settings=PINGING) as url,
        httpx.AsyncClient() as http,
        http.stream("POST", f"{url}/v1/completions", json=STREAMED) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert [await anext(lines) for _ in range(4)] == [": ping", "", ": ping", ""]


async def test_clients_skip_pings(backend: FakeBackend, serving: Serving) -> None:
    backend.pause_s = 0.2
    async with serving(backend, settings=PINGING) as url:
        client = AsyncOpenAI(api_key="-", base_url=f"{url}/v1", max_retries=0)
        stream = await client.completions.create(**STREAMED)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hel"


async def test_a_failure_after_a_ping_is_an_event(backend: FakeBackend, serving: Serving) -> None:
    backend.pause_s, backend.failure = 0.2, (1, DualPathError("lost it"))
    async with serving(backend, settings=PINGING) as url, httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/completions", json=STREAMED)
    assert answer.status_code == 200
    assert answer.text.startswith(": ping\n\n")
    assert '"message":"lost it"' in answer.text


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/responses", "/v1/messages", "/generate", "/inference/v1/generate"]
)
async def test_no_line_break_of_unicodes_is_in_an_event(
    backend: FakeBackend, http: httpx.AsyncClient, path: str
) -> None:
    """Clients that split by such would break an event in the middle."""
    backend.failure = (3, DualPathError("lost\u2028it\x85"))
    answer = await http.post(path, json=BODIES[path] | {"stream": True})
    assert answer.status_code == 200
    assert not {"\u2028", "\x85"} & set(answer.text)
    assert "lost\u2028it\x85" in [
        (event.get("error") or event["response"]["error"])["message"]
        for event in events_of(answer.text)
        if event.get("error") or event.get("type") == "response.failed"
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nor_in_one_that_passes_through(dialect: Dialect) -> None:
    content = {"type": "x", "said": "a\u2028b"}
    event = dialect.failed(ApiError(500, "a\u2028b")) + with_data(b"event: x\ndata: {}\n\n", content)
    assert "\u2028" not in event.decode()
    assert events_of(event)[-1] == content


async def test_a_failure_before_it_has_a_status(backend: FakeBackend, serving: Serving) -> None:
    backend.failure = (0, DualPathError("lost it"))
    async with serving(backend) as url, httpx.AsyncClient() as http:
        assert check(await http.post(f"{url}/v1/completions", json=STREAMED), 500) == "lost it"


async def test_a_beginning_that_cannot_be_made_has_a_status(
    backend: FakeBackend, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise DualPathError("cannot be said")

    monkeypatch.setattr(ResponseWriter, "begin", fail)
    async with serving(backend) as url, httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/responses", json={"input": "x", "stream": True})
        assert check(answer, 500) == "cannot be said"


async def test_a_client_that_leaves_while_it_waits_ends_its_request(backend: FakeBackend, serving: Serving) -> None:
    backend.hang_after = 0
    async with serving(backend, settings=PINGING) as url, httpx.AsyncClient() as http:
        async with http.stream("POST", f"{url}/v1/completions", json=STREAMED) as answer:
            await anext(answer.aiter_lines())
        await until(lambda: not backend.open_iterators)
    assert backend.outcomes() == ["cancelled"]


async def test_an_event_that_needs_no_wait_never_comes_before_the_beginning() -> None:
    """A ping is the first thing to be written, to a client that does not take it at once."""
    sent: list[bytes] = []
    taken = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await taken.wait()
            sent.append(message["body"])

    def write_now(part: bytes) -> bool:
        sent.append(part)
        return True

    events = EventStream({"state": {WRITE_NOW: write_now}}, send, {}, lambda: b"begin ", b"ping ")
    async with events.pinging(0.001):
        await asyncio.sleep(0.05)
        assert events.started
        if not events.send_now(b"event "):
            sending = asyncio.create_task(events.send(b"event "))
        taken.set()
        await sending
        assert events.send_now(b"now ")
    text = b"".join(sent)
    assert text.startswith(b"begin ping ")
    assert text.index(b"event ") < text.index(b"now ")


@pytest.mark.parametrize("begin", [b"", b"begin "])
async def test_pings_never_cut_into_an_event_and_begin_comes_first(begin: bytes) -> None:
    """A slow client: writing takes longer than the time between pings."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        await asyncio.sleep(0.02)
        sent.append(message)

    events = EventStream({}, send, {}, lambda: begin, b"ping ")
    async with events.pinging(0.005):
        for _ in range(5):
            await asyncio.sleep(0.01)
            await events.send(b"event ")
    await events.end(b"end")
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert sent[0]["type"] == "http.response.start"
    text = b"".join(message["body"] for message in sent[1:])
    assert text.startswith(begin)
    assert text.count(b"event ") == 5
    assert set(text.removeprefix(begin).split()) <= {b"ping", b"event", b"end"}
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
