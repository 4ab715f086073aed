"""Unmodified clients through the gateway to real vLLM servers: what vLLM alone would say, from KV of elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from tests.vllm.fake_server import serving_app
from tests.vllm.live import Live, VllmPair, live

from dualpath.core.ids import RequestId
from dualpath.gateway.app import create_app
from dualpath.gateway.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

BLOCK = 128
SYSTEM = {"role": "system", "content": "You are careful, and use tools where there are some. " * 12}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "list_files",
            "parameters": {"type": "object", "properties": {"path": {"enum": ["src", "docs"]}}, "required": ["path"]},
        },
    }
]
FORCED: Any = {"type": "function", "function": {"name": "list_files"}}
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}


@dataclass
class Doors:
    """The gateway's, and those of a server that is asked alone."""

    service: Live
    pair: VllmPair
    ours: str
    clients: list[Any]

    def openai(self, url: str) -> AsyncOpenAI:
        self.clients.append(AsyncOpenAI(api_key="-", base_url=f"{url}/v1", max_retries=0, timeout=300))
        return self.clients[-1]  # type: ignore[no-any-return]

    def anthropic(self, url: str) -> AsyncAnthropic:
        self.clients.append(AsyncAnthropic(api_key="-", base_url=url, max_retries=0, timeout=300))
        return self.clients[-1]  # type: ignore[no-any-return]

    async def both(self, ask: Callable[[str], Awaitable[Any]]) -> tuple[Any, Any]:
        """What the gateway says, and what a server says alone. Neither finds anything in vLLM's own caches."""
        answers = []
        for url in (self.ours, self.pair.decode.url):  # seeds and prompts in chunks end vLLM 0.32 on CPUs
            for server in self.pair.servers:
                await asyncio.to_thread(server.reset_prefix_cache)
            answers.append(await ask(url))
            await self.service.idle()
        return answers[0], answers[1]

    def hits(self) -> list[int]:
        """Of all requests, the first one first."""
        return [record.num_hit_tokens for record in reversed(self.service.service.recent(100))]


@pytest.fixture(scope="module")
def tokenizer(vllm_model: Path) -> Tokenizer:
    return Tokenizer.load(vllm_model)


@pytest.fixture(params=["prefill", "decode", "split"])
async def doors(request: pytest.FixtureRequest, pair: VllmPair, tokenizer: Tokenizer) -> AsyncIterator[Doors]:
    async with open_doors(pair, tokenizer, request.param) as found:
        yield found


@asynccontextmanager
async def open_doors(pair: VllmPair, tokenizer: Tokenizer, path: str) -> AsyncIterator[Doors]:
    async with live(pair, path, max_retries=0) as service:
        app = create_app(service.service, tokenizer, upstream=service.upstream)
        async with serving_app(app) as url:
            found = Doors(service, pair, url, [])
            try:
                yield found
            finally:
                for client in found.clients:
                    await client.close()
        assert not len(service.upstream.exchanges)


def _user(text: str) -> Any:
    return [SYSTEM, {"role": "user", "content": text}]


async def test_a_tool_loop_says_what_vllm_says_alone(doors: Doors) -> None:
    model, salt = str(doors.pair.model), f"loop {doors.service.service.config.path_policy}"

    async def loop(url: str) -> list[Any]:
        messages, said = _user("List my files."), []
        for turn in range(3):
            answer = await doors.openai(url).chat.completions.create(
                model=model,
                messages=messages,
                tools=TOOLS,
                tool_choice="none" if turn == 2 else FORCED,
                max_tokens=140,
                temperature=0,
                logprobs=True,
                extra_body={"cache_salt": salt},
            )
            message, logprobs = answer.choices[0].message, answer.choices[0].logprobs
            assert logprobs is not None
            calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]  # type: ignore[union-attr]
            said.append((message.content, calls, [found.logprob for found in logprobs.content or []]))
            messages = [
                *messages,
                {"role": "assistant", "content": str(calls)},
                {"role": "user", "content": "On. " * 9},
            ]
        return said

    ours, alone = await doors.both(loop)
    assert [turn[:2] for turn in ours] == [turn[:2] for turn in alone]
    for turn, other in zip(ours, alone, strict=True):  # of other shapes: what is loaded is not computed
        assert turn[2] == pytest.approx(other[2], abs=1e-3)
    first, *later = doors.hits()
    assert first == 0
    assert all(hit >= 4 * BLOCK for hit in later)


async def test_streams_schemas_penalties_and_seeds(pair: VllmPair, tokenizer: Tokenizer) -> None:
    async with open_doors(pair, tokenizer, "split") as doors:
        model = str(pair.model)
        kinds: list[dict[str, Any]] = [
            {"temperature": 0},
            {
                "temperature": 0,
                "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}},
            },
            {"temperature": 0, "presence_penalty": 1.2, "frequency_penalty": 0.7},
            {"temperature": 1.0, "seed": 11},
        ]
        for kind in kinds:

            async def streamed(url: str, kind: dict[str, Any] = kind) -> str:
                stream = await doors.openai(url).chat.completions.create(
                    model=model, messages=_user("A city?"), max_tokens=60, stream=True, **kind
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            ours, alone = await doors.both(streamed)
            assert ours == alone, kind
            assert ours
        _, *later = doors.hits()
        assert all(hit >= 4 * BLOCK for hit in later)


async def test_responses_and_messages(pair: VllmPair, tokenizer: Tokenizer) -> None:
    async with open_doors(pair, tokenizer, "split") as doors:
        model, said = str(pair.model), "What is a dual path? " * 30

        async def responses(url: str) -> tuple[Any, ...]:
            asked: dict[str, Any] = {"model": model, "input": said, "max_output_tokens": 30, "temperature": 0}
            whole = await doors.openai(url).responses.create(**asked)
            events = [event async for event in await doors.openai(url).responses.create(**asked, stream=True)]
            text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            kinds = [kind for kind, _ in groupby(event.type for event in events)]  # busy, vLLM puts tokens together
            return whole.output_text, text, kinds

        async def messages(url: str) -> tuple[Any, ...]:
            asked: dict[str, Any] = {"model": model, "max_tokens": 30, "messages": [{"role": "user", "content": said}]}
            asked["extra_body"] = {"temperature": 0}
            whole = await doors.anthropic(url).messages.create(**asked)
            async with doors.anthropic(url).messages.stream(**asked) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                usage = (await stream.get_final_message()).usage
            return whole.content, text, whole.stop_reason, usage.input_tokens + (usage.cache_read_input_tokens or 0)

        for ask in (responses, messages):
            ours, alone = await doors.both(ask)
            assert ours == alone
        assert [hit > 0 for hit in doors.hits()] == [False, True, True, True]


async def test_refusals_are_vllms_own(pair: VllmPair, tokenizer: Tokenizer) -> None:
    async with open_doors(pair, tokenizer, "split") as doors:
        client, model = doors.openai(doors.ours), str(pair.model)
        with pytest.raises(NotFoundError, match="does not exist"):
            await client.chat.completions.create(model="other", messages=_user("x"))
        with pytest.raises(BadRequestError, match="maximum context length"):
            await client.chat.completions.create(model=model, messages=_user("x " * 6000))
        assert doors.service.service.record(RequestId("none")) is None


async def test_who_goes_away_leaves_nothing_at_vllm(pair: VllmPair, tokenizer: Tokenizer) -> None:
    async with open_doors(pair, tokenizer, "split") as doors:
        for num_chunks in (1, 3, 20):
            stream = await doors.openai(doors.ours).chat.completions.create(
                model=str(pair.model), messages=_user("Go on."), max_tokens=1500, temperature=0, stream=True
            )
            for _ in range(num_chunks):
                await anext(stream)
            await stream.close()
        while {record.outcome for record in doors.service.service.recent(3)} != {"cancelled"}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await doors.service.idle()
