"""Bodies and prompts that cannot be served are refused before they have cost anything."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from tests.gateway.fakes import FakeBackend
from tests.gateway.test_errors import check
from tests.gateway.test_server import until
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from dualpath.core.errors import OverloadedError
from dualpath.gateway.app import create_app
from dualpath.gateway.errors import ApiError
from dualpath.gateway.http.admission import Admission
from dualpath.gateway.json_size import count_containers
from dualpath.gateway.openai.plan import Planner
from dualpath.gateway.settings import ConnectionLimits, GatewaySettings
from dualpath.gateway.text import tokenizer as tokenizer_module
from dualpath.gateway.text.template import TemplateNeeds
from dualpath.gateway.text.tokenizer import Tokenizer

CONTEXT = 1024  # of the fake backend
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class Spy(Tokenizer):
    """Remembers how much it was given to tokenise; can be made to wait."""

    def __init__(self, inner: Tokenizer) -> None:
        super().__init__(inner._inner, vocab_size=inner.vocab_size)
        self.lengths: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.num_at_once = self.most_at_once = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.lengths.append(len(text))
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        self.go_on.wait(30)
        time.sleep(0.01)  # long enough for another thread to come in, if it may
        self.num_at_once -= 1
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.fixture
def spy(tokenizer: Tokenizer) -> Spy:
    return Spy(tokenizer)


def client_of(backend: FakeBackend, tokenizer: Tokenizer, settings: GatewaySettings) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(backend, tokenizer, settings), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60)


# -- how large -----------------------------------------------------------------------------------------------------


def test_the_largest_body_follows_from_the_longest_context() -> None:
    settings = GatewaySettings()
    assert settings.body_limit_bytes(32768) == 64 * 32768 + (1 << 20)
    assert GatewaySettings(max_body_bytes=5000).body_limit_bytes(32768) == 5000
    longest = json.dumps({"prompt": "\U0001f600" * 32768})  # 12 bytes of escapes for what may be one token
    assert len(longest) < settings.body_limit_bytes(32768)


async def test_a_body_announced_too_large_is_not_read(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("nobody may read it")

    async def send(message: Any) -> None:
        sent.append(message)

    app = create_app(backend, tokenizer, GatewaySettings(max_body_bytes=5000))
    for length in ("5001", "9" * 19, "9" * 300):
        sent.clear()
        await app(_scope(length), receive, send)
        assert sent[0]["status"] == 413
        assert json.loads(sent[1]["body"])["error"]["code"] == "body_too_large"


async def test_a_body_that_grows_too_large_is_read_no_further(http: httpx.AsyncClient) -> None:
    num_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_read
        while True:
            num_read += 1
            yield b" " * 65536

    check(await http.post("/v1/completions", content=endless()), 413, None, "body_too_large")
    assert num_read <= 17  # of the 1 MiB that this app takes


async def test_prompts_of_the_whole_context_pass(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for prompt in ("x" * 1023, [7] * 1023, ["\x7f" * 1000] * 3):
        answer = await http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
        assert answer.status_code == 200, answer.text
    messages = [{"role": "user", "content": [{"type": "text", "text": "{" * 900}]}]
    assert (await http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})).status_code == 200


# -- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "ab " * 300_000}),
        ("/v1/completions", {"prompt": ["x", "ab " * 300_000]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ab " * 300_000}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ab"}] * 4000}),
        ("/tokenize", {"prompt": "ab " * 300_000}),
    ],
)
async def test_text_that_cannot_fit_is_not_tokenised_whole(
    backend: FakeBackend, spy: Spy, path: str, body: dict[str, Any]
) -> None:
    async with client_of(backend, spy, GatewaySettings()) as http:
        message = check(await http.post(path, json=body), 400, "messages" if "messages" in body else "prompt")
    assert "tokens" in message
    assert sum(spy.lengths) <= tokenizer_module.PIECE_CHARS + 1
    assert backend.requests == []


async def test_ids_that_cannot_fit_are_counted_and_no_more(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"prompt": [10**6] * 100_000}  # none of them in the vocabulary: not even that is looked at
    check(await http.post("/v1/completions", json=body), 400, "prompt", "context_length_exceeded")
    assert backend.requests == []


def test_text_of_long_tokens_is_not_taken_for_too_long() -> None:
    """However many bytes a token stands for: only counting says what fits."""
    vocab, merges, piece = {"a": 0, "b": 1}, [], "a"
    while len(piece) < 64:
        merges.append((piece, piece))
        piece *= 2
        vocab[piece] = len(vocab)
    inner = RustTokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner))
    for num_tokens, is_too_long in ((900, False), (1024, False), (2100, True), (100_000, True)):
        assert tokenizer.has_more_than("a" * (64 * num_tokens), 1024) is is_too_long
    assert not tokenizer.has_more_than("b" * 1024, 1024)
    assert tokenizer.has_more_than("b" * 10_000, 1024)


# -- structure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b'{"role":"u"},' * 20_000 + b'{"role":"u"}]}',
        b'{"messages": [{"role": "user", "content": [' + b'{"type":"text","text":""},' * 20_000 + b"{}]}]}",
        b'{"messages": [], "tools": [' + b"{}," * 20_000 + b"{}]}",
        b'{"messages": [], "chat_template_kwargs": {"a": [' + b"[]," * 20_000 + b"[]]}}",
        b'{"messages": [' + b'{"role":"u"},' * 20_000,
    ],
)
async def test_masses_of_small_objects_are_never_built(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("it must not be parsed")

    monkeypatch.setattr(msgspec.json, "decode", decode)
    check(await http.post("/v1/chat/completions", content=body), 400, None, "context_length_exceeded")


async def test_nor_are_those_in_the_arguments_of_calls(
    backend: FakeBackend, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "template_needs", TemplateNeeds())
    arguments = json.dumps({"a": [{}] * 3000})
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "tool_calls": [call, call]}]
    async with client_of(backend, tokenizer, GatewaySettings()) as http:
        answer = await http.post("/v1/chat/completions", json={"messages": messages})
        check(answer, 400, "messages[0].tool_calls[1]", "context_length_exceeded")


@given(JSON)
def test_containers_are_counted_as_they_are(value: Any) -> None:
    def count(item: Any) -> int:
        if isinstance(item, dict):
            return 1 + sum(count(inner) for inner in item.values())
        return 1 + sum(count(inner) for inner in item) if isinstance(item, list) else 0

    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(json.dumps(value))):
        assert count_containers(text.encode("utf-8", "replace")) in (count(value), 0)
    assert count_containers(json.dumps(value).encode()) == count(value)
    assert count_containers(json.dumps(json.dumps(value)).encode()) == 0


# -- at once -------------------------------------------------------------------------------------------------------


def texts(http: httpx.AsyncClient, number: int) -> list[asyncio.Task[httpx.Response]]:
    return [asyncio.create_task(http.post("/tokenize", json={"prompt": "x" * 6000})) for _ in range(number)]


async def test_so_many_bytes_are_tokenised_at_once_and_no_more(backend: FakeBackend, spy: Spy) -> None:
    async with client_of(backend, spy, GatewaySettings(max_body_bytes=8000)) as http:
        assert [answer.status_code for answer in await asyncio.gather(*texts(http, 8))] == [200] * 8
    assert spy.most_at_once == 1


async def test_who_waits_too_long_for_the_tokenizer_is_told_to_come_back(backend: FakeBackend, spy: Spy) -> None:
    settings = GatewaySettings(max_body_bytes=8000, admission_timeout_s=0.1)
    async with client_of(backend, spy, settings) as http:
        spy.go_on.clear()
        (first,) = texts(http, 1)
        await until(lambda: spy.lengths)
        for answer in await asyncio.gather(*texts(http, 3)):
            check(answer, 429, None, "rate_limit_exceeded")
            assert answer.headers["retry-after"] == "1"
        assert (
            await http.post("/detokenize", json={"tokens": [65]})
        ).status_code == 200  # a small one waits for nobody
        spy.go_on.set()
        assert (await first).status_code == 200


def admission(tokenizer: Tokenizer, **settings: Any) -> Admission:
    return Admission(GatewaySettings(max_body_bytes=100_000, **settings), CONTEXT, tokenizer)


def request_of(receive: Callable[[], Any]) -> Request:
    return Request(_scope(None), receive)


def _scope(length: str | None) -> dict[str, Any]:
    headers = [(b"host", b"x")] + ([(b"content-length", length.encode())] if length else [])
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
    }


class Sender:
    """A client that sends its body in pieces when told to."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()

    def send(self, size: int, *, more: bool = True) -> None:
        self._pieces.put_nowait((b"x" * size, more))

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)  # a socket is never read at once
        body, more = await self._pieces.get()
        return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_that_does_not_come_gives_up_and_lets_go(tokenizer: Tokenizer) -> None:
    gate = admission(tokenizer, connections=ConnectionLimits(body_timeout_s=0.1))
    sender = Sender()
    sender.send(50_000)
    with pytest.raises(ApiError) as caught:
        await gate.on_body(request_of(sender.receive), len)
    assert (caught.value.status, caught.value.code) == (408, "body_timeout")
    assert caught.value.headers == {"Connection": "close"}
    assert gate.memory.used_bytes == gate.work.used_bytes == 0


async def test_a_body_that_keeps_coming_has_to_come_to_an_end(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, later_s = asyncio.get_running_loop(), 0.0
    now_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: now_s() + later_s)

    async def receive() -> dict[str, Any]:
        nonlocal later_s
        later_s += 9.0  # soon enough each time
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"x", "more_body": True}

    gate = admission(tokenizer, connections=ConnectionLimits(body_timeout_s=10.0))
    with pytest.raises(ApiError) as caught:
        await gate.on_body(request_of(receive), len)
    assert (caught.value.status, later_s) == (408, 18.0)


async def test_bodies_in_memory_are_bounded_and_those_that_wait_lose_no_time(tokenizer: Tokenizer) -> None:
    limits = ConnectionLimits(body_timeout_s=0.5)
    gate = admission(tokenizer, body_memory_bytes=60_000, connections=limits)
    with gate.memory.share() as other:
        await other.take(60_000, 1.0)
        sender = Sender()
        sender.send(40_000)
        sender.send(10_000, more=False)
        reading = asyncio.create_task(gate.on_body(request_of(sender.receive), len))
        await asyncio.sleep(1.0)  # twice as long as a client may take
        assert not reading.done()
    assert await reading == 50_000
    assert gate.memory.used_bytes == 0


async def test_who_waits_too_long_for_memory_is_told_to_come_back(tokenizer: Tokenizer) -> None:
    gate = admission(tokenizer, body_memory_bytes=60_000, admission_timeout_s=0.05)
    with gate.memory.share() as other:
        await other.take(60_000, 1.0)
        sender = Sender()
        sender.send(50_000, more=False)
        with pytest.raises(OverloadedError):
            await gate.on_body(request_of(sender.receive), len)
    assert gate.memory.used_bytes == 0


async def test_clients_that_send_little_and_stall_hold_no_memory(tokenizer: Tokenizer) -> None:
    """What they have announced counts for nothing, only what they have sent."""
    gate = admission(tokenizer, body_memory_bytes=60_000)
    stalled = [Sender() for _ in range(100)]
    tasks = [asyncio.create_task(gate.on_body(request_of(sender.receive), len)) for sender in stalled]
    for sender in stalled:
        sender.send(4000)
    honest = Sender()
    for _ in range(10):
        honest.send(9000)
    honest.send(0, more=False)
    assert await asyncio.wait_for(gate.on_body(request_of(honest.receive), len), 30) == 90_000
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert gate.memory.used_bytes == 0


# -- what is left of a body ----------------------------------------------------------------------------------------


async def test_what_a_waiting_request_keeps_is_bounded(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    body: dict[str, Any] = {"prompt": "x"}
    check(await http.post("/v1/completions", json=body | {"cache_salt": "s" * 5000}), 400, "cache_salt")
    check(await http.post("/v1/completions", json=body | {"stop_token_ids": [1] * 2000}), 400, "stop_token_ids")
    assert (await http.post("/v1/completions", json=body | {"top_k": 10**18})).status_code == 200
    assert backend.requests[0].sampling.top_k == 1 << 31


def test_the_text_of_a_prompt_is_kept_only_to_be_echoed(tokenizer: Tokenizer) -> None:
    planner = Planner("m", CONTEXT, tokenizer, GatewaySettings())
    for body, kept in (({}, None), ({"echo": True}, "abc")):
        plan = planner.completion(json.dumps({"prompt": "abc"} | body).encode())
        assert [prompt.text for prompt in plan.job.prompts] == [kept]
    messages = json.dumps({"messages": [{"role": "user", "content": "abc"}]}).encode()
    assert planner.chat(messages).job.prompts[0].text is None
