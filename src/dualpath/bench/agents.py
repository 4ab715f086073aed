"""Agents that replay a conversation of several turns: each prompt is everything said so far plus a new tool result."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WORDS = [
    "def",
    "return",
    "import",
    "class",
    "error",
    "test",
    "passed",
    "failed",
    "line",
    "file",
    "open",
    "read",
    "write",
    "commit",
    "branch",
    "merge",
    "diff",
    "build",
    "run",
    "cache",
    "block",
    "token",
    "layer",
    "queue",
    "node",
    "engine",
    "store",
    "path",
    "split",
    "read",
    "prefill",
    "decode",
    "transfer",
    "bytes",
    "slot",
    "page",
    "index",
]


@dataclass(frozen=True, slots=True)
class Script:
    """What every agent does; all lengths in tokens of a byte-level tokenizer."""

    num_agents: int = 3
    num_turns: int = 5
    first_prompt_tokens: int = 1280
    append_tokens: int = 96
    answer_tokens: int = 12
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as its client saw it."""

    agent: int
    turn: int
    request_id: str
    latency_s: float  # request sent to last token
    ttft_s: float
    text: str
    prompt_tokens: int
    cached_tokens: int


def filler(random_source: random.Random, num_bytes: int) -> str:
    """Text of exactly ``num_bytes`` ASCII bytes that looks like a tool's output."""
    words: list[str] = []
    while sum(map(len, words)) + len(words) < num_bytes:
        words.append(random_source.choice(_WORDS))
    return " ".join(words)[:num_bytes]


async def replay(client: Any, model: str, script: Script, on_turn: Callable[[Turn], None]) -> list[Turn]:
    """Run all agents at once through the chat API of ``client`` (openai.AsyncOpenAI)."""
    agents = (_agent(client, model, script, number, on_turn) for number in range(script.num_agents))
    return [turn for turns in await asyncio.gather(*agents) for turn in turns]


async def _agent(client: Any, model: str, script: Script, number: int, on_turn: Callable[[Turn], None]) -> list[Turn]:
    source = random.Random(f"{script.seed}/{number}")
    messages: list[dict[str, str]] = [{"role": "system", "content": f"Agent {number}. You fix bugs."}]
    turns = []
    for index in range(script.num_turns):
        size = script.append_tokens if index else script.first_prompt_tokens
        messages.append({"role": "user", "content": filler(source, size)})
        turn = await _turn(client, model, script, number, index, messages)
        messages.append({"role": "assistant", "content": turn.text})
        turns.append(turn)
        on_turn(turn)
    return turns


async def _turn(
    client: Any, model: str, script: Script, number: int, index: int, messages: list[dict[str, str]]
) -> Turn:
    start_s, first_s, text, usage, request_id = time.perf_counter(), None, "", None, ""
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=script.answer_tokens,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        request_id, usage = chunk.id, chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            first_s = first_s or time.perf_counter()
            text += chunk.choices[0].delta.content
    end_s = time.perf_counter()
    assert usage is not None, "the stream ended without usage"
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return Turn(
        number, index, request_id, end_s - start_s, (first_s or end_s) - start_s, text, usage.prompt_tokens, cached or 0
    )
