"""Whole numbers may be spelled as floats where nothing else is wanted, and nowhere else."""

from __future__ import annotations

import httpx
import msgspec
import pytest
from tests.gateway.fakes import FakeBackend

from dualpath.gateway.openai.bodies import ChatBody, CompletionBody
from dualpath.gateway.openai.numbers import decode_body


def test_whole_numbers_spelled_as_floats() -> None:
    raw = (
        b'{"messages": [{"content": 1.0}], "max_tokens": 1e2, "stop_token_ids": [7.0], "seed": -5.0, "temperature": 1}'
    )
    body = decode_body(raw, ChatBody)
    assert (body.max_tokens, body.stop_token_ids, body.seed) == (100, [7], -5)
    assert isinstance(body.messages[0]["content"], float)
    assert decode_body(b'{"prompt": [[1.0, 2], [3e0]], "n": 1.0}', CompletionBody).prompt == [[1, 2], [3]]
    assert decode_body(b'{"prompt": ["5"], "n": 1.0}', CompletionBody).prompt == ["5"]


@pytest.mark.parametrize("number", ["1.5", "1e300", "9007199254740993.5", "1e-9"])
def test_other_numbers_are_refused(number: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="max_tokens"):
        decode_body(f'{{"prompt": "x", "max_tokens": {number}}}'.encode(), CompletionBody)


async def test_they_are_served(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 3.0, "stop_token_ids": [7.0]})
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert backend.requests[0].sampling.max_tokens == 3
