"""Over a real socket: tokens arrive one by one, clients that leave cancel their work, shutting down drains."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from tests.gateway.conftest import Serving
from tests.gateway.fakes import FakeBackend, says

from dualpath.core.errors import ConfigError
from dualpath.gateway.app import create_app
from dualpath.gateway.http.server import run, serve
from dualpath.gateway.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    """Not the others': servers that end here end its threads."""
    return Tokenizer.load(model_dir)


async def until(condition: object) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


async def test_tokens_arrive_as_they_are_made(backend: FakeBackend, serving: Serving) -> None:
    backend.hang_after = 3
    async with serving(backend) as url, AsyncOpenAI(api_key="-", base_url=f"{url}/v1") as client:
        stream = await client.completions.create(model="fake", prompt="x", stream=True)
        texts = [(await anext(stream)).choices[0].text for _ in range(3)]
        assert texts == ["H", "e", "l"]
        await stream.close()
        await until(lambda: backend.outcomes() == ["cancelled"])


@pytest.mark.parametrize("num_choices", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels(
    backend: FakeBackend, serving: Serving, stream: bool, num_choices: int
) -> None:
    backend.hang_after = 0  # nothing has been sent, so only the connection can tell
    body = {"prompt": "x", "stream": stream, "n": num_choices}
    async with serving(backend) as url, httpx.AsyncClient() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{url}/v1/completions", json=body, timeout=httpx.Timeout(5, read=0.1))
        await until(lambda: backend.outcomes() == ["cancelled"] * num_choices)
        backend.hang_after = None
        assert (await client.post(f"{url}/v1/completions", json={"prompt": "x"})).status_code == 200


async def test_a_slow_reader_holds_back_its_own_answer_only(backend: FakeBackend, serving: Serving) -> None:
    backend.max_context_tokens = 100_000
    backend.script = lambda request: [65] * request.sampling.max_tokens
    async with serving(backend) as url:
        writer = await _ask_and_never_read(url, b'{"prompt":"x","stream":true,"max_tokens":90000}')
        await until(lambda: backend.records)
        (slow,) = backend.records.values()
        num_tokens = -1
        while num_tokens != slow.num_generated_tokens:
            num_tokens = slow.num_generated_tokens
            await asyncio.sleep(0.2)
        assert num_tokens < 60_000
        async with httpx.AsyncClient() as client:
            assert (await client.post(f"{url}/v1/completions", json={"prompt": "y"})).status_code == 200
        writer.close()
        await until(lambda: slow.outcome == "cancelled")


async def test_a_stream_for_a_client_that_knows_no_chunks(backend: FakeBackend, serving: Serving) -> None:
    async with serving(backend) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"prompt":"x","stream":true}'
        writer.write(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(30):
            head, _, events = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert b"chunked" not in head.lower()
    lines = events.decode().split("\n\n")
    assert len(lines) > 3
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])


async def _ask_and_never_read(url: str, body: bytes) -> asyncio.StreamWriter:
    host, port = url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    _, writer = await asyncio.open_connection(sock=sock, limit=1024)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return writer


async def test_long_prompts_do_not_stall_streams(backend: FakeBackend, serving: Serving) -> None:
    backend.max_context_tokens = 3_000_000
    backend.script = says("x" * 100)
    backend.pause_s = 0.002
    async with serving(backend) as url, httpx.AsyncClient(timeout=30) as client:
        long = asyncio.create_task(client.post(f"{url}/tokenize", json={"prompt": "long " * 100_000}))
        gaps, last_s = [], time.monotonic()
        async with client.stream("POST", f"{url}/v1/completions", json={"prompt": "x", "stream": True}) as answer:
            async for _ in answer.aiter_lines():
                gaps.append(time.monotonic() - last_s)
                last_s = time.monotonic()
        assert (await long).json()["count"] == 500_000
        assert max(gaps) < 1.0


async def test_shutting_down_lets_running_requests_end(backend: FakeBackend, serving: Serving) -> None:
    backend.pause_s = 0.05
    async with httpx.AsyncClient() as client:
        async with serving(backend) as url:
            answer = asyncio.create_task(client.post(f"{url}/v1/completions", json={"prompt": "x"}))
            await until(lambda: backend.open_iterators)
        assert (await answer).json()["choices"][0]["text"] == "Hello"
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/health")


@pytest.mark.parametrize("stream", [False, True])
async def test_shutting_down_cuts_off_at_the_deadline(backend: FakeBackend, serving: Serving, stream: bool) -> None:
    backend.hang_after = 1
    async with httpx.AsyncClient() as client:
        async with serving(backend, drain_s=0.1) as url:
            body = {"prompt": "x", "stream": stream}
            answer = asyncio.create_task(client.post(f"{url}/v1/completions", json=body))
            await backend.started.wait()
        assert not backend.open_iterators
        assert (await answer).status_code == (200 if stream else 503)
        assert '"code":"shutting_down"' in (await answer).text


async def test_what_running_requests_get_is_said_at_the_stop(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    backend.hang_after = 1
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop, drain_s = asyncio.Event(), 60.0
    told = lambda _, port: listening.set_result(port)  # noqa: E731
    app = create_app(backend, tokenizer)
    server = asyncio.create_task(
        serve(app, "127.0.0.1", 0, drain_s=lambda: drain_s, stop=stop, handle_signals=False, on_listening=told)
    )
    async with httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{await listening}"
        answer = asyncio.create_task(client.post(f"{url}/v1/completions", json={"prompt": "x"}))
        await backend.started.wait()
        drain_s = 0.1
        stop.set()
        await asyncio.wait_for(server, 10)
        assert (await answer).status_code == 503


async def test_cancelling_the_server_does_not_wait(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    backend.hang_after = 1
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    app = create_app(backend, tokenizer)
    server = asyncio.create_task(
        serve(app, "127.0.0.1", 0, handle_signals=False, on_listening=lambda _, port: listening.set_result(port))
    )
    url = f"http://127.0.0.1:{await listening}"
    async with httpx.AsyncClient() as client:
        answer = asyncio.create_task(client.post(f"{url}/v1/completions", json={"prompt": "x"}))
        await backend.started.wait()
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(server, 2)
        assert not backend.open_iterators
        assert (await answer).status_code == 503


async def test_a_cancelled_server_leaves_nothing_that_waits(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    before = asyncio.all_tasks()
    listening = asyncio.Event()
    server = asyncio.create_task(
        serve(create_app(backend, tokenizer), "127.0.0.1", 0, on_listening=lambda *_: listening.set())
    )
    await listening.wait()
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server
    await asyncio.sleep(0)
    left = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - before]
    assert left in ([], ["LifespanOn.main"]), "uvicorn leaves that when it is forced to end"


def test_a_signal_ends_the_server(model_dir: Path) -> None:
    app = create_app(FakeBackend(), Tokenizer.load(model_dir))

    def on_listening(_: str, __: int) -> None:
        signal.raise_signal(signal.SIGTERM)

    run(serve(app, "127.0.0.1", 0, on_listening=on_listening))


async def test_a_taken_port_is_one_line(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            await serve(create_app(backend, tokenizer), "127.0.0.1", port)


async def test_where_the_port_is_taken_the_first_free_one_of_the_others_is(
    backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [taken.getsockname()[1] for taken in (one, two)]
        stop, found = asyncio.Event(), list[int]()

        def on_listening(_: str, port: int) -> None:
            found.append(port)
            stop.set()

        app = create_app(backend, tokenizer)
        await serve(app, "127.0.0.1", ports[0], other_ports=[ports[1], 0], stop=stop, on_listening=on_listening)
        assert len(found) == 1
        assert found[0] not in ports
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{ports[0]}: Address already in use"):
            await serve(app, "127.0.0.1", ports[0], other_ports=[ports[1]])


def test_a_directory_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError) as caught:
            Tokenizer.load(path)
        assert "\n" not in str(caught.value)
