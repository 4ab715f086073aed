"""Bodies that are no object, or that two readers could read differently: 400 on every route that reads one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from tests.gateway.fakes import FakeBackend

from dualpath.core.exchange import Exchanges
from dualpath.gateway.app import create_app
from dualpath.gateway.passthrough.dialects import DIALECTS
from dualpath.gateway.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "x"}]
CHAT = {"messages": MESSAGES}
BODIES: dict[str, dict[str, Any]] = {  # one that is served, for each route that reads one
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "x"},
    "/v1/responses/input_tokens": {"input": "x"},
    "/v1/messages": {**CHAT, "max_tokens": 5},
    "/v1/messages/count_tokens": CHAT,
    "/tokenize": CHAT,
    "/detokenize": {"tokens": [5]},
    "/inference/v1/generate": {"token_ids": [5]},
    "/generate": {"input_ids": [5]},
    "/inference/v1/abort_requests": {"request_ids": ["a"]},
    "/abort_requests": {"request_ids": ["a"]},
    "/abort_request": {"rid": "a"},
    "/update_weights": {"weight_dir": "/weights"},
    "/update_weights_from_disk": {"model_path": "/weights"},
    "/pause_generation": {"mode": "abort"},
}
READ_NONE = {"/finish_session", "/pause", "/resume", "/continue_generation", "/flush_cache", "/reset_prefix_cache"}
NESTED = '{"a":' * 256 + "1" + "}" * 256
NO_OBJECTS = ["[]", '"x"', "1", "null", "{", "{}x", "NaN"]
ODD_MEMBERS = {
    "nan": b'"x": NaN',
    "infinite": b'"x": -Infinity',
    "long number": b'"x": 1' + b"0" * 400,
    "long number inside": b'"metadata": {"x": [-1' + b"0" * 20 + b"]}",
    "half a surrogate pair": b'"x": "\\ud800"',
    "other half": b'"x": {"\\udc00": 1}',
    "no UTF-8": b'"x": "\xff"',
    "surrogate's bytes": b'"x": "\xed\xa0\x80"',
    "twice": b'"x": 1, "x": 1',
    "twice, spelled otherwise": b'"x": 1, "\\u0078": 1',
    "twice, and a colon that hides it": b'"x": 1, "x": "\\u003A"',
    "twice, and a long text": b'"x": "' + b"a: b, " * 200 + b'", "y": {"z": 1, "z": "::"}',
    "twice inside": b'"metadata": {"x": [{"y": 1, "y": 2}]}',
    "nested": f'"x": {NESTED}'.encode(),
    "nested in what is echoed": f'"metadata": {NESTED}'.encode(),
}
FINE_MEMBERS = [
    f'"x": {2**64 - 1}',
    f'"x": {-(2**63)}',
    '"x": "10000000000000000000000000, NaN"',
    '"x": {"a": 1, "b": {"a": 1}}',
    f'"x": {json.dumps(NESTED)}',
    f'"x": {NESTED[5:-1]}',
    '"x": "\\ud83d\\ude00"',
    '"x\\u003a": "\\u003A:"',
    f'"x": {[10**19] * 3}',
    f'"x": {[[]] * 500}',
]


class _Nobody:
    """What an upstream is asked has passed all checks."""

    exchanges = Exchanges()

    async def ask(self, path: str, body: Mapping[str, Any]) -> bytes:
        raise AssertionError(f"{path} was asked")


def _with(body: Mapping[str, Any], member: bytes) -> bytes:
    return json.dumps(body).encode()[:-1] + b", " + member + b"}"


async def _answers(backend: FakeBackend, tokenizer: Tokenizer, made: Mapping[str, bytes], *, through: bool) -> Any:
    """(path, answer) of every route that takes a POST and reads its body; ``through``: of those that pass it on."""
    app = create_app(backend, tokenizer, upstream=_Nobody() if through else None)
    paths = {path for path, methods in app.openapi()["paths"].items() if "post" in methods} - READ_NONE
    assert paths == made.keys(), "each route has a body here, or reads none"
    if through:
        paths = {dialect.path for dialect in DIALECTS} | {"/v1/messages/count_tokens"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        return [(path, await http.post(path, content=made[path])) for path in sorted(paths)]


def _check_refused(answers: Any) -> None:
    assert {path: answer.text for path, answer in answers if answer.status_code != 400} == {}
    for path, answer in answers:
        found = answer.json()
        assert found["error"]["type"] == "invalid_request_error"
        assert found["error"]["message"]
        assert (found.get("type") == "error") == path.startswith("/v1/messages")


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("raw", NO_OBJECTS)
async def test_what_is_no_object(backend: FakeBackend, tokenizer: Tokenizer, raw: str, through: bool) -> None:
    _check_refused(await _answers(backend, tokenizer, dict.fromkeys(BODIES, raw.encode()), through=through))


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", ODD_MEMBERS)
async def test_odd_members(backend: FakeBackend, tokenizer: Tokenizer, name: str, through: bool) -> None:
    made = {path: _with(body, ODD_MEMBERS[name]) for path, body in BODIES.items()}
    _check_refused(await _answers(backend, tokenizer, made, through=through))


@pytest.mark.parametrize("member", FINE_MEMBERS)
async def test_members_that_only_look_odd(backend: FakeBackend, tokenizer: Tokenizer, member: str) -> None:
    made = {path: _with(body, member.encode()) for path, body in BODIES.items()}
    answers = await _answers(backend, tokenizer, made, through=False)
    assert {path: answer.text for path, answer in answers if answer.status_code != 200} == {}


LONG = 2**64  # one more than 64 bits hold


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize(
    ("member", "param"),
    [
        (f'"seed": {LONG}', "seed"),
        (f'"seed": -{"9" * 300}', "seed"),
        (f'"sampling_params": {{"seed": {LONG}}}', "sampling_params"),
        (f'"x": "{LONG}", "y": [[1, {{"x": {LONG}}}]], "z": 1', "y"),
    ],
)
async def test_a_long_numbers_field_is_named(
    backend: FakeBackend, tokenizer: Tokenizer, member: str, param: str, through: bool
) -> None:
    made = {path: _with(body, member.encode()) for path, body in BODIES.items()}
    for path, answer in await _answers(backend, tokenizer, made, through=through):
        found = answer.json()["error"]
        assert (answer.status_code, found["message"]) == (400, f"{param}: a number does not fit 64 bits"), path
        assert found.get("param", param) == param  # Anthropic's API has none


async def test_long_numbers_where_no_field_can_be_named(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    deep = f'{{"x": {LONG}, "y": {"[" * 900}{"]" * 900}}}'
    for raw in (f"[{LONG}]", str(LONG), deep):
        _check_refused(await _answers(backend, tokenizer, dict.fromkeys(BODIES, raw.encode()), through=True))


@pytest.mark.parametrize("through", [False, True])
def test_each_route_has_an_operation_id_of_its_own(backend: FakeBackend, tokenizer: Tokenizer, through: bool) -> None:
    app = create_app(backend, tokenizer, upstream=_Nobody() if through else None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        app.openapi()
    assert [str(warning.message) for warning in told] == []


@pytest.mark.parametrize("depth", [100, 250, 300, 450, 480, 600, 2000])
async def test_schemas_in_strings_that_are_nested_deeply(http: httpx.AsyncClient, depth: int) -> None:
    """A string's depth is not its body's."""
    schema = '{"properties":{"a":' * depth + "{}" + "}}" * depth
    params = {"sampling_params": {"json_schema": schema}}
    for path, body in {
        "/v1/chat/completions": CHAT | {"guided_json": schema},
        "/v1/completions": {"prompt": "x", "structured_outputs": {"json": schema}},
        "/inference/v1/generate": {"token_ids": [5], "sampling_params": {"guided_json": schema}},
        "/generate": {"input_ids": [5], **params},
    }.items():
        answer = await http.post(path, json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"], answer.text
