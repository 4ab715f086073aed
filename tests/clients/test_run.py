"""What the clients' runner stands on: the scripted model, its record of what was hit, and going on after a failure."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.clients import run
from tests.clients.model import ScriptedModel

from dualpath.gateway.app import create_app
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init import init_model

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


async def test_an_agents_turns_are_told_newest_first_with_their_hits(tmp_path: Path) -> None:
    app = create_app(ScriptedModel(model_name="scripted"), Tokenizer.load(init_model("qwen3", tmp_path / "model")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        messages: list[object] = [{"role": "user", "content": "Say it."}]
        asked = await http.post("/v1/chat/completions", json={"messages": messages, "tools": [ADD]})
        call = asked.json()["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "5"}
        told = await http.post("/v1/chat/completions", json={"messages": [*messages, call, result], "tools": [ADD]})
        records = (await http.get("/v1/dualpath/requests?limit=2")).json()["data"]
    assert told.json()["choices"][0]["message"]["content"] == "It says: 5"
    second, first = records
    assert second["num_hit_tokens"] >= run.MIN_SHARE * first["num_prompt_tokens"] > 0


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("odd"), AssertionError("odd"), OSError("odd")])
def test_one_that_breaks_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def script(name: str, url: str, home: Path) -> str:
        if name == "openai_sdk":
            raise error
        return "1.0"

    monkeypatch.setattr(run, "run_script", script)
    outcomes = run.try_all(["openai_sdk", "anthropic_sdk"], "http://nobody", Path("nowhere"))
    assert outcomes["openai_sdk"].startswith("FAILED: ")
    assert "odd" in outcomes["openai_sdk"]
    assert outcomes["anthropic_sdk"] == "ok: 1.0"
