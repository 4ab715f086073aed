"""The server as a user runs it: a child process, the official client, Ctrl-C, kill -9, a restart on the same store."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from pydantic import BaseModel, Field

from dualpath.bench.server import running_server, store_url
from dualpath.cluster.free_ports import free_ports
from dualpath.models.init import init_model

BLOCK = 16
LONG = "The quick brown fox jumps over the lazy dog. " * 6


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("llama", tmp_path_factory.mktemp("serve") / "tiny", layers=2)


def flags(model_dir: Path, store: Path, **extra: Any) -> list[str]:
    settings = {"prefill": 1, "decode": 2, "block-tokens": BLOCK, "max-context-tokens": 4096} | extra
    pairs = [("--model", model_dir), ("--store", store_url(store)), *((f"--{k}", v) for k, v in settings.items())]
    return [str(part) for pair in pairs for part in pair]


def client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=60, max_retries=0)


async def test_turns_hit_across_a_restart_and_metrics_tell(model_dir, tmp_path):
    store = tmp_path / "kv"
    messages = [{"role": "user", "content": LONG}]
    async with running_server(flags(model_dir, store, path="decode")) as url, client(url) as api:
        answer = await api.chat.completions.create(model="tiny", messages=messages, max_tokens=40, temperature=0)
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
        assert answer.usage.completion_tokens == 40
        messages += [{"role": "assistant", "content": answer.choices[0].message.content}]
        earlier = answer.usage.prompt_tokens + answer.usage.completion_tokens
    messages += [{"role": "user", "content": "Again."}]
    async with running_server(flags(model_dir, store, path="decode")) as url, client(url) as api:
        answer = await api.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
        assert answer.usage.prompt_tokens_details.cached_tokens == earlier // BLOCK * BLOCK
        async with httpx.AsyncClient(base_url=url) as http:
            metrics = (await http.get("/metrics")).text
            (record,) = (await http.get("/v1/dualpath/requests")).json()["data"]
    assert record["path"] == "decode"
    assert record["num_hit_tokens"] == earlier // BLOCK * BLOCK
    assert record["storage_read_bytes"]["prefill"] == 0 < record["storage_read_bytes"]["decode"]
    assert {"queued", "reading", "prefilling", "decoding"} <= record["phases_s"].keys()
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line and not line.startswith("#"))
    reads = {name: float(v) for name, v in values.items() if name.startswith("dualpath_storage_read_bytes_total")}
    assert sum(v for name, v in reads.items() if 'role="prefill"' in name) == 0
    assert sum(v for name, v in reads.items() if 'role="decode"' in name) == record["storage_read_bytes"]["decode"]
    assert float(values['dualpath_kv_transfer_bytes_total{direction="decode_to_prefill"}']) > 0
    assert float(values['dualpath_requests_total{outcome="finished"}']) == 1
    assert not list(store.rglob("*.tmp*"))


async def test_bad_requests_get_clear_errors_and_the_server_goes_on_with_good_ones(model_dir, tmp_path):
    async with running_server(flags(model_dir, tmp_path / "kv")) as url, client(url) as api:
        with pytest.raises(NotFoundError, match="model"):
            await api.completions.create(model="other", prompt="x")
        with pytest.raises(BadRequestError, match="4096"):
            await api.completions.create(model="tiny", prompt="x" * 5000)
        async with httpx.AsyncClient(base_url=url) as http:
            for body in (
                "{",
                '{"model": "tiny", "prompt": 7}',
                '{"model": "tiny", "prompt": "x", "temperature": "hot"}',
            ):
                answer = await http.post("/v1/completions", content=body)
                assert answer.status_code == 400
                assert answer.json()["error"]["type"] == "invalid_request_error"
            stats = (await http.get("/v1/dualpath/stats")).json()
        await stop_string(api)
    assert all(engine["staging_slots_used"] == 0 and engine["num_requests"] == 0 for engine in stats["engines"])


async def stop_string(api: AsyncOpenAI) -> None:
    """A stop string ends a turn exactly before it, and the next turn finds what was computed."""
    salt = {"cache_salt": "other"}
    plain = await api.completions.create(model="tiny", prompt=LONG, max_tokens=60, temperature=0)
    text = plain.choices[0].text
    stop = text[30:33]
    cut = await api.completions.create(
        model="tiny", prompt=LONG, max_tokens=60, temperature=0, stop=stop, extra_body=salt
    )
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].text == text[: text.index(stop)]
    again = await api.completions.create(
        model="tiny", prompt=LONG + cut.choices[0].text + "!", max_tokens=1, extra_body=salt
    )
    known = len(LONG) + len(cut.choices[0].text)
    assert again.usage.prompt_tokens_details.cached_tokens >= (known - BLOCK) // BLOCK * BLOCK


async def test_ctrl_c_lets_a_stream_end_and_leaves_with_0(model_dir, tmp_path):
    process, url = await start(model_dir, tmp_path / "kv")
    async with client(url) as api:
        stream = await api.completions.create(model="tiny", prompt=LONG, max_tokens=80, stream=True)
        await anext(aiter(stream))
        process.send_signal(signal.SIGINT)
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_kill_9_in_the_middle_costs_nothing_but_time(model_dir, tmp_path):
    process, url = await start(model_dir, tmp_path / "kv")
    async with client(url) as api:
        stream = await api.completions.create(model="tiny", prompt=LONG, max_tokens=500, stream=True)
        for _ in range(40):
            await anext(aiter(stream))
        process.kill()
        await process.wait()
    async with running_server(flags(model_dir, tmp_path / "kv")) as url, client(url) as api:
        cold = {"cache_salt": "cold"}
        truth = await api.completions.create(model="tiny", prompt=LONG, max_tokens=20, temperature=0, extra_body=cold)
        reply = await api.completions.create(model="tiny", prompt=LONG, max_tokens=20, temperature=0)
        assert reply.choices[0].text == truth.choices[0].text
        assert reply.usage.prompt_tokens_details.cached_tokens > 0


async def start(model_dir: Path, store: Path) -> tuple[asyncio.subprocess.Process, str]:
    """A server that the test ends itself."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "dualpath", "serve", "--port", str(port), *flags(model_dir, store)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    while line := (await asyncio.wait_for(process.stdout.readline(), 60)).decode():
        if line.startswith("listening"):
            return process, f"http://127.0.0.1:{port}"
    raise AssertionError("the server ended before it listened")


class City(BaseModel):
    name: Annotated[str, Field(max_length=8)]
    size: Literal["large", "small"]
    founded: Annotated[int, Field(ge=0, le=2000)]


async def test_answers_have_the_form_that_is_asked_for(model_dir, tmp_path):
    """By the official client's own ways to ask, from a model that knows nothing."""
    messages = [{"role": "user", "content": "Which city?"}]
    parameters = {**City.model_json_schema(), "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "tell", "parameters": parameters, "strict": True}}]
    asked = {"model": "tiny", "max_tokens": 800, "seed": 3}
    async with running_server(flags(model_dir, tmp_path / "kv")) as url, client(url) as api:
        one = await api.chat.completions.parse(messages=messages, response_format=City, **asked)
        assert isinstance(one.choices[0].message.parsed, City)
        called = await api.chat.completions.create(messages=messages, tools=tools, tool_choice="required", **asked)
        for call in called.choices[0].message.tool_calls:
            City.model_validate_json(call.function.arguments)
        async with api.chat.completions.stream(messages=messages, response_format=City, **asked) as stream:
            streamed = await stream.get_final_completion()
        assert isinstance(streamed.choices[0].message.parsed, City)
        chosen = await api.completions.create(
            prompt="x", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, **asked
        )
        assert chosen.choices[0].text in ("yes", "no")
        told = await api.completions.create(model="tiny", prompt=LONG, max_tokens=0, echo=True, logprobs=1)
        assert told.choices[0].text == LONG
        by_token = told.choices[0].logprobs.token_logprobs
        assert len(by_token) == told.usage.prompt_tokens == told.usage.total_tokens
        told = await api.completions.create(
            model="tiny", prompt=LONG, max_tokens=1, extra_body={"prompt_logprobs": 1, "return_token_ids": True}
        )
        places = zip(told.choices[0].prompt_logprobs, told.choices[0].prompt_token_ids, strict=True)
        assert [place and place[str(token_id)]["logprob"] for place, token_id in places] == by_token
        wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
        with pytest.raises(BadRequestError, match="Invalid schema for response_format 'x'"):
            await api.chat.completions.create(messages=messages, response_format=wrong, **asked)
