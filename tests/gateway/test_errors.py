"""Whatever is wrong, the client gets OpenAI's error shape, the right status and the name of the field."""

from __future__ import annotations

from typing import Any

import httpx
import openai as openai_package
import pytest
from openai import AsyncOpenAI
from tests.gateway.fakes import FakeBackend

from dualpath.core.errors import DualPathError, EngineLostError, InvalidRequestError, OverloadedError
from dualpath.gateway.app import create_app
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer

COMPLETION: dict[str, Any] = {"model": "fake", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f"}}

BAD_COMPLETIONS = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["x", 1]}, "prompt"),
    ({"prompt": [1, "x"]}, "prompt"),
    ({"prompt": [1, [2]]}, "prompt"),
    ({"prompt": [[1], 2]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [264]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [97, 2**32 + 97]}, "prompt"),
    ({"prompt": [[97], [2**64 - 1]]}, "prompt"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"prompt": ["x"] * 100, "n": 2}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": 1}, "stop"),
    ({"stop_token_ids": [9999]}, "stop_token_ids"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": "yes"}, "stream"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {"9999": 1}}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"bad_words": [""]}, "bad_words"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_p": 1.1}, "min_p"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
    ({"priority": 3}, "priority"),
]
BAD_CHATS = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 30}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    (
        {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"echo": True}, "echo"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
]


def check(answer: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    assert "\n" not in error["message"]
    return str(error["message"])


@pytest.mark.parametrize(("fields", "param"), BAD_COMPLETIONS)
async def test_bad_completions(http: httpx.AsyncClient, backend: FakeBackend, fields: Any, param: str) -> None:
    check(await http.post("/v1/completions", json=COMPLETION | fields), 400, param)
    assert backend.requests == []


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS)
async def test_bad_chats(http: httpx.AsyncClient, backend: FakeBackend, fields: Any, param: str) -> None:
    check(await http.post("/v1/chat/completions", json=CHAT | fields), 400, param)
    assert backend.requests == []


async def test_bodies_that_are_no_json_objects(http: httpx.AsyncClient) -> None:
    check(await http.post("/v1/completions", content=b'{"prompt": '), 400, None, "invalid_json")
    check(await http.post("/v1/completions", content=b""), 400, None, "invalid_json")
    check(await http.post("/v1/completions", content=b'{"prompt": "\xff"}'), 400, None)
    check(await http.post("/v1/completions", content=b'{"prompt": "\\ud800"}'), 400, None)
    check(await http.post("/v1/completions", content=b'{"prompt": NaN}'), 400, None, "invalid_json")
    check(await http.post("/v1/completions", content=b"[1]"), 400, None, "invalid_type")
    check(await http.post("/v1/completions", content=b"[" * 100_000), 400, None)
    check(await http.post("/v1/completions", json={"model": "fake"}), 400, "prompt")
    check(await http.post("/v1/completions", content=b"x" * (2 << 20)), 413, None)


async def test_unknown_model_and_paths(http: httpx.AsyncClient) -> None:
    check(await http.post("/v1/completions", json=COMPLETION | {"model": "gpt"}), 404, "model", "model_not_found")
    check(await http.get("/v1/models/gpt"), 404, "model", "model_not_found")
    check(await http.get("/v1/nothing"), 404)
    check(await http.get("/v1/completions"), 405)


async def test_too_long_prompts_name_both_numbers(http: httpx.AsyncClient) -> None:
    body = COMPLETION | {"prompt": [1] * 1024}
    message = check(await http.post("/v1/completions", json=body), 400, "prompt", "context_length_exceeded")
    assert "1024" in message
    long = CHAT | {"messages": [{"role": "user", "content": "x" * 5000}]}
    message = check(await http.post("/v1/chat/completions", json=long), 400, "messages", "context_length_exceeded")
    assert "1024" in message
    assert "50" in message


@pytest.mark.parametrize("stream", [False, True])
async def test_failures_before_the_first_token(http: httpx.AsyncClient, backend: FakeBackend, stream: bool) -> None:
    body = COMPLETION | {"stream": stream}
    backend.refusal = OverloadedError("the queue is full", retry_after_s=2.5)
    answer = await http.post("/v1/completions", json=body)
    check(answer, 429, None, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "3"
    assert 'dualpath_requests_total{outcome="rejected"} 1.0' in (await http.get("/metrics")).text
    backend.refusal = InvalidRequestError("no", param="cache_salt", code="why")
    check(await http.post("/v1/completions", json=body), 400, "cache_salt", "why")
    backend.refusal, backend.failure = None, (0, EngineLostError("engine lost"))
    assert check(await http.post("/v1/completions", json=body), 500) == "engine lost"
    backend.failure = (0, RuntimeError("secret"))
    assert check(await http.post("/v1/completions", json=body), 500) == "internal error"
    backend.is_ready = False
    check(await http.post("/v1/completions", json=body), 503, None, "not_ready")
    backend.failure, backend.is_soon_ready = None, True
    check(await http.get("/health"), 503, None, "not_ready")
    assert (await http.post("/v1/completions", json=body)).status_code == 200


async def test_failure_amid_an_answer(http: httpx.AsyncClient, openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.failure = (2, DualPathError("lost it"))
    check(await http.post("/v1/completions", json=COMPLETION), 500)
    answer = await http.post("/v1/completions", json=COMPLETION | {"stream": True})
    assert answer.status_code == 200
    *_, last, end = answer.text.split("\n\n")
    assert '"message":"lost it"' in last
    assert end == ""
    stream = await openai.completions.create(**COMPLETION, stream=True)
    assert [(await anext(stream)).choices[0].text for _ in range(2)] == ["H", "e"]
    with pytest.raises(openai_package.APIError, match="lost it"):
        await anext(stream)


async def test_one_failing_choice_ends_all(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.failure = (2, DualPathError("lost it"))
    check(await http.post("/v1/completions", json=COMPLETION | {"n": 3}), 500)
    assert len(backend.records) == 3
    assert "finished" not in backend.outcomes()


async def test_an_answer_without_an_end_is_an_error(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda _: []
    check(await http.post("/v1/completions", json=COMPLETION), 500)


async def test_keys(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    app = create_app(backend, tokenizer, GatewaySettings(api_keys=("one", "two")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}):
            answer = await http.get("/v1/models", headers=headers)
            check(answer, 401, None, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in ("one", "two"):
            assert (await http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code == 200
            assert (await http.get("/v1/models", headers={"x-api-key": key})).status_code == 200
            both = {"x-api-key": "three", "Authorization": f"Bearer {key}"}
            assert (await http.get("/v1/models", headers=both)).status_code == 200
        check(await http.get("/v1/models", headers={"x-api-key": "three"}), 401, None, "invalid_api_key")
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/metrics")).status_code == 200
