"""Agents that talk about a document for several turns: each prompt is everything said so far and one more question."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dualpath.bench.document import QUESTIONS, harbour_log


@dataclass(frozen=True, slots=True)
class Script:
    """What every agent does, each with a document of its own."""

    num_agents: int = 3
    num_turns: int = 5
    document_chars: int = 1280
    answer_tokens: int = 12
    storage_nic_mbps: float = 320.0  # of every node
    ends_itself: bool = False  # an answer may be shorter: the model knows when it is over
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as its client saw it."""

    agent: int
    turn: int
    request_id: str
    latency_s: float  # request sent to last token
    ttft_s: float
    question: str
    text: str
    prompt_tokens: int
    cached_tokens: int


async def replay(client: Any, model: str, script: Script, on_turn: Callable[[Turn], None]) -> list[Turn]:
    """Run all agents at once through the chat API of ``client`` (openai.AsyncOpenAI)."""
    agents = (_agent(client, model, script, number, on_turn) for number in range(script.num_agents))
    return [turn for turns in await asyncio.gather(*agents) for turn in turns]


async def _agent(client: Any, model: str, script: Script, number: int, on_turn: Callable[[Turn], None]) -> list[Turn]:
    document = harbour_log(f"{script.seed}/{number}", script.document_chars)
    messages = [{"role": "system", "content": f"You are assistant {number}. You answer in one short sentence."}]
    turns: list[Turn] = []
    for index in range(script.num_turns):
        question = QUESTIONS[index % len(QUESTIONS)]
        messages.append({"role": "user", "content": question if index else f"{document}\n{question}"})
        turn = await _turn(client, model, script, (number, index, question), messages)
        messages.append({"role": "assistant", "content": turn.text})
        turns.append(turn)
        on_turn(turn)
    return turns


async def _turn(
    client: Any, model: str, script: Script, place: tuple[int, int, str], messages: list[dict[str, str]]
) -> Turn:
    start_s, first_s, text, usage, request_id = time.perf_counter(), None, "", None, ""
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=script.answer_tokens,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": not script.ends_itself},
    )
    async for chunk in stream:
        request_id, usage = chunk.id, chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            first_s = first_s or time.perf_counter()
            text += chunk.choices[0].delta.content
    end_s = time.perf_counter()
    assert usage is not None, "the stream ended without usage"
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    number, index, question = place
    return Turn(
        number,
        index,
        request_id,
        latency_s=end_s - start_s,
        ttft_s=(first_s or end_s) - start_s,
        question=question,
        text=text,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=cached or 0,
    )
