"""A line of a batch that is no request has its error in the output; the others go on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tests.gateway.fakes import FakeBackend, says

from dualpath.gateway.openai.plan import Planner
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init import init_model
from dualpath.serving.batch import LineWorker, _read, answer_all

GOOD = json.dumps({"custom_id": "good", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}})


@pytest.mark.parametrize("line", ["{", "[" * 100_000, "1" * 5000, "null", '{"custom_id": 5}', GOOD])
async def test_an_odd_line_spoils_itself_only(tmp_path: Path, line: str) -> None:
    backend, tokenizer = FakeBackend(), Tokenizer.load(init_model("llama", tmp_path / "model"))
    planner = Planner(backend.model_name, backend.max_context_tokens, tokenizer, GatewaySettings())
    out = io.StringIO()
    outcome = await answer_all([GOOD, line], out, LineWorker(backend, planner), 2)
    assert (outcome.num_requests, outcome.num_failed) == (2, 1)
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["response"]["status_code"] == 200
    assert second["error"]["code"] == "invalid_line"


async def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    """Not at the other line breaks of Unicode, in the input and in the output, and a byte order mark is none of it."""
    prompts = ["a\u2028b", "c\u2029\x85d", "e"]
    lines = [GOOD.replace('"x"', f'"{prompt}"').replace("good", str(i)) for i, prompt in enumerate(prompts)]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\n\n")
    backend, tokenizer = FakeBackend(script=says("x\u2028y")), Tokenizer.load(init_model("llama", tmp_path / "model"))
    planner = Planner(backend.model_name, backend.max_context_tokens, tokenizer, GatewaySettings())
    out = io.StringIO()
    outcome = await answer_all(_read(source), out, LineWorker(backend, planner), 2)
    assert (outcome.num_requests, outcome.num_failed) == (3, 0)
    answers = [json.loads(line)["response"]["body"]["choices"][0]["text"] for line in out.getvalue().splitlines()]
    assert answers == ["x\u2028y"] * 3
