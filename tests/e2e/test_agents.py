"""An agent's second turn hits its whole first turn, as Claude Code and as Codex hold a conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from dualpath.gateway.app import create_app
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import BLOCK_TOKENS, cluster, settings

RULES = "You are an agent that works on files with its tools. " * 25
SCHEMA = {
    "type": "object",
    "properties": {"line": {"enum": [1, 2]}},
    "required": ["line"],
    "additionalProperties": False,
}
MIN_SHARE = 0.97


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    model_dir = init_model("qwen3", tmp_path / "model", layers=2)
    config = settings(model_dir, (tmp_path / "store").as_uri(), decode=1)
    config = replace(config, memory=replace(config.memory, max_context_tokens=4096))
    async with cluster(config) as embedded:
        transport = httpx.ASGITransport(create_app(embedded.service, Tokenizer.load(model_dir)))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60) as client:
            yield client


async def ask(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the answer, what /v1/dualpath/requests says of it)."""
    answer = await http.post(path, json={"model": "model", "temperature": 0.8, "seed": 1, **body})
    assert answer.status_code == 200, answer.text
    (record,) = (await http.get("/v1/dualpath/requests?limit=1")).json()["data"]
    return answer.json(), record


def check(first: dict[str, Any], second: dict[str, Any], cached: int) -> None:
    num_first = first["num_prompt_tokens"] + first["num_generated_tokens"]
    assert first["num_hit_tokens"] == 0
    assert num_first > 50 * BLOCK_TOKENS
    assert second["num_hit_tokens"] >= MIN_SHARE * num_first
    assert cached == second["num_hit_tokens"]


async def test_claude_code(http: httpx.AsyncClient) -> None:
    def body(version: str, messages: list[Any]) -> dict[str, Any]:
        billing = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.{version}"}
        rules = {"type": "text", "text": RULES, "cache_control": {"type": "ephemeral"}}
        tools = [{"name": name, "description": "A tool", "input_schema": SCHEMA} for name in ("Read", "Bash")]
        thinking = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}
        return {"system": [billing, rules], "messages": messages, "tools": tools, "max_tokens": 100, **thinking}

    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Which line is wrong?"}]}]
    forced = {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    answer, first = await ask(http, "/v1/messages?beta=true", body("a", messages) | forced)
    assert answer["stop_reason"] == "tool_use"
    call = answer["content"][-1]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "x = 1"}
    messages += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result]}]
    messages.append({"role": "system", "content": "The file has changed."})
    answer, second = await ask(http, "/v1/messages?beta=true", body("b", messages))
    check(first, second, answer["usage"]["cache_read_input_tokens"])
    assert answer["usage"]["input_tokens"] + second["num_hit_tokens"] == second["num_prompt_tokens"]


async def test_codex(http: httpx.AsyncClient) -> None:
    def message(role: str, text: str) -> dict[str, Any]:
        return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}

    tool = {"type": "function", "name": "exec_command", "strict": False, "parameters": SCHEMA}
    namespace = {"type": "namespace", "name": "mcp__files__", "description": "", "tools": [tool]}
    body = {"tools": [tool, namespace, {"type": "web_search"}], "store": False, "max_output_tokens": 100}
    body |= {"include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}, "parallel_tool_calls": False}
    items = [message("developer", RULES), message("user", "Which line is wrong?")]
    answer, first = await ask(http, "/v1/responses", body | {"input": items, "tool_choice": "required"})
    call = answer["output"][-1]
    assert call["type"] == "function_call"
    items += [*answer["output"], {"type": "function_call_output", "call_id": call["call_id"], "output": "x = 1"}]
    answer, second = await ask(http, "/v1/responses", body | {"input": items, "tool_choice": "auto"})
    check(first, second, answer["usage"]["input_tokens_details"]["cached_tokens"])
