"""Requests that no client should send: each gets an answer that is not the server's fault, and none is left behind."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest
from tests.gateway.conftest import Serving
from tests.gateway.fakes import FakeBackend
from tests.gateway.test_errors import check

from dualpath.bench.odd_requests import odd_requests
from dualpath.bench.raw_http import statuses_of
from dualpath.gateway.app import create_app
from dualpath.gateway.openai.bodies import ChatBody, CompletionBody
from dualpath.gateway.openapi import openapi_document
from dualpath.gateway.settings import ConnectionLimits, GatewaySettings
from dualpath.gateway.text.template import TemplateNeeds
from dualpath.gateway.text.tokenizer import Tokenizer

NUM_REQUESTS = 400
HANG_S = 60.0


async def test_odd_requests_are_answered(backend: FakeBackend, serving: Serving) -> None:
    settings = GatewaySettings(connections=ConnectionLimits(header_timeout_s=3.0, body_timeout_s=3.0))
    async with serving(backend, settings=settings) as url:
        host, port = url.removeprefix("http://").split(":")
        requests, answers = odd_requests(7, NUM_REQUESTS), Counter[int]()

        async def work() -> None:
            for request in requests:
                statuses = await statuses_of(host, int(port), request.raw, HANG_S)
                assert statuses, f"no answer to {request}"
                assert max(statuses) < 500, request
                answers.update(statuses)

        await asyncio.gather(*(work() for _ in range(NUM_REQUESTS // 5)))
        async with httpx.AsyncClient() as http:
            assert (await http.post(f"{url}/v1/completions", json={"prompt": "x"})).status_code == 200
    assert {200, 400, 404, 405, 408, 413} <= answers.keys()


def test_the_same_seed_makes_the_same_requests() -> None:
    assert list(odd_requests(1, 50)) == list(odd_requests(1, 50)) != list(odd_requests(2, 50))


NESTED = "[" * 4000  # few enough to be looked at, deep enough for Python
ODD_ARGUMENTS = [NESTED, '{"a": "\\ud800"}', "1" * 5000, "\x00"]  # what JSON in a string can be


@pytest.mark.parametrize(
    "needs", [TemplateNeeds(), TemplateNeeds(arguments_as_text=True), TemplateNeeds(arguments_as_object_only=True)]
)
@pytest.mark.parametrize("arguments", ODD_ARGUMENTS)
async def test_odd_tool_calls(
    http: httpx.AsyncClient,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    needs: TemplateNeeds,
    arguments: str,
) -> None:
    monkeypatch.setattr(tokenizer, "template_needs", needs)
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    body = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    assert (await http.post("/v1/chat/completions", json=body)).status_code in (200, 400)


@pytest.mark.parametrize("depth", [100, 400, 480, 600, 960, 985, 995])
async def test_schemas_and_arguments_that_are_nested_deeply(
    backend: FakeBackend, tokenizer: Tokenizer, depth: int
) -> None:
    backend.max_context_tokens = 100_000
    schema = '{"properties": {"a": ' * depth + "{}" + "}}" * depth
    tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}'
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "tools": [{tool}]}}'
    transport = httpx.ASGITransport(create_app(backend, tokenizer), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        for path in ("/v1/chat/completions", "/tokenize"):
            answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 200 or (answer.status_code == 400 and depth > 100), answer.text
        arguments = '{"a": ' * depth + "{}" + "}" * depth
        call = f'{{"type": "function", "function": {{"name": "f", "arguments": {arguments}}}}}'
        body = f'{{"messages": [{{"role": "assistant", "tool_calls": [{call}]}}]}}'
        answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200 or (answer.status_code == 400 and depth > 100), answer.text


@pytest.mark.parametrize("error", [RecursionError("too deep"), OverflowError("too much"), AssertionError("\ud800")])
async def test_a_template_that_fails_is_the_requests_fault(
    http: httpx.AsyncClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(tokenizer._inner, "apply_chat_template", fail)
    body = {"messages": [{"role": "user", "content": "x"}]}
    check(await http.post("/v1/chat/completions", json=body), 400, "messages")


@pytest.mark.parametrize("limit", ["9" * 5000, "%00", "1e3", "٣" * 4301, "-1"])
async def test_odd_limits(http: httpx.AsyncClient, limit: str) -> None:
    check(await http.get(f"/v1/dualpath/requests?limit={limit}"), 400, "limit")


@pytest.mark.parametrize("host", ["[", "a b", "", "]:x", "x:99999999"])
async def test_odd_hosts(http: httpx.AsyncClient, host: str) -> None:
    for path in ("/v1/nothing", "/health", "/v1/models/"):
        assert (await http.get(path, headers={"Host": host})).status_code < 500


def test_the_openapi_document_has_every_route_and_no_field_that_is_refused(
    backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    app, document = create_app(backend, tokenizer), openapi_document()
    routes = {(path, method) for path, methods in app.openapi()["paths"].items() for method in methods}
    documented = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert routes - documented == {("/openapi.json", "get")}
    assert documented <= routes
    for body in (CompletionBody, ChatBody):
        fields = set(document["components"]["schemas"][body.__name__]["properties"])
        assert fields == set(body.__struct_fields__) - set(body.REFUSED)


async def test_the_openapi_document_is_served(http: httpx.AsyncClient) -> None:
    assert (await http.get("/openapi.json")).json() == openapi_document()
