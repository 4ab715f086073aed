"""A line of a batch that is no request has its error in the output; the others go on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tests.gateway.fakes import FakeBackend

from dualpath.gateway.plan import Planner
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.tokenizer import Tokenizer
from dualpath.launch.batch import Worker, answer_all
from dualpath.models.init import init_model

GOOD = json.dumps({"custom_id": "good", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}})


@pytest.mark.parametrize("line", ["{", "[" * 100_000, "1" * 5000, "null", '{"custom_id": 5}', GOOD])
async def test_an_odd_line_spoils_itself_only(tmp_path: Path, line: str) -> None:
    backend, tokenizer = FakeBackend(), Tokenizer.load(init_model("llama", tmp_path / "model"))
    planner = Planner(backend.model_name, backend.max_context_tokens, tokenizer, GatewaySettings())
    out = io.StringIO()
    outcome = await answer_all([GOOD, line], out, Worker(backend, planner), 2)
    assert (outcome.num_requests, outcome.num_failed) == (2, 1)
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["response"]["status_code"] == 200
    assert second["error"]["code"] == "invalid_line"
