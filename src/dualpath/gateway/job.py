"""A job is one HTTP request's generation: one backend request per choice, their text merged into one stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from dualpath.core import tracing
from dualpath.core.errors import DualPathError, RequestAbortedError
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, TokenEvent
from dualpath.gateway.backend import Backend
from dualpath.gateway.openai.shapes import CachedTokens, Usage
from dualpath.gateway.text.choice import Choice, Delta

T = TypeVar("T")

MAX_QUEUED_DELTAS = 64  # of all choices together; a slow client holds its own choices back, nobody else's


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: tuple[int, ...]
    text: str | None = None  # kept where it is to be echoed; None: the client sent ids


@dataclass(slots=True)
class GenerationJob:
    """Choices are ordered by prompt, ``num_per_prompt`` of each."""

    job_id: str
    model_name: str
    prompts: list[Prompt]
    num_per_prompt: int
    choices: list[Choice]
    created_unix_s: int = field(default_factory=lambda: int(time.time()))

    def prompt_of(self, choice_index: int) -> Prompt:
        return self.prompts[choice_index // self.num_per_prompt]

    def prompt_events(self, choice_index: int) -> list[TokenEvent]:
        """The prompt's tokens, if they were computed. Nothing is known of the first, as nothing came before it."""
        answer = self.choices[choice_index].first
        if answer is None:
            return []
        first, *others = self.prompt_of(choice_index).token_ids
        told = answer.prompt_logprobs or ()
        return [
            TokenEvent(first),
            *(TokenEvent(i, value, top, rank=rank) for i, (value, top, rank) in zip(others, told, strict=True)),
        ]

    def deltas(self, backend: Backend) -> AsyncGenerator[Delta, None]:
        """All choices' pieces as they come. Closing the generator closes every backend iterator before it returns."""
        streams = [_run(backend, choice) for choice in self.choices]
        return streams[0] if len(streams) == 1 else merged_streams(streams)

    def usage(self, backend: Backend) -> Usage:
        """As OpenAI counts: a prompt once, however many choices it has; what each choice generated."""
        num_prompt = sum(len(prompt.token_ids) for prompt in self.prompts)
        num_generated = sum(choice.num_tokens for choice in self.choices)
        records = (backend.record(choice.request.request_id) for choice in self.choices[:: self.num_per_prompt])
        num_cached = sum(record.num_hit_tokens for record in records if record is not None)
        return Usage(num_prompt, num_generated, num_prompt + num_generated, CachedTokens(num_cached))


def request_id_of(job_id: str, choice_index: int, num_choices: int) -> RequestId:
    return RequestId(job_id if num_choices == 1 else f"{job_id}-{choice_index}")


async def _run(backend: Backend, choice: Choice) -> AsyncGenerator[Delta, None]:
    events = backend.generate(traced(choice.request))
    try:
        async for event in events:
            delta = choice.push(event)
            if delta is not None:
                yield delta
            # After a stop string the backend would go on: leave and close. After its own last event let it come to
            # its end, as closing would look like a cancelled request.
            if choice.finished and event.finish_reason is None:
                return
        if not choice.finished:
            raise DualPathError("generation ended without a reason")
    except RequestAbortedError:
        if not choice.finished:
            yield choice.abort()
    finally:
        await _close(events)


def traced(request: Request) -> Request:
    """With the trace of the HTTP request that is served now, if it has one."""
    traceparent = tracing.current.get()
    return replace(request, traceparent=traceparent) if traceparent else request


async def _close(events: AsyncIterator[TokenEvent]) -> None:
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        await aclose()


async def merged_streams(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """One task per stream; the first failure ends them all."""
    queue: asyncio.Queue[T | Exception | None] = asyncio.Queue(MAX_QUEUED_DELTAS)
    tasks = [asyncio.create_task(_drain(stream, queue)) for stream in streams]
    num_running = len(tasks)
    try:
        while num_running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drain(stream: AsyncGenerator[T, None], queue: asyncio.Queue[T | Exception | None]) -> None:
    end: Exception | None = None
    try:
        async with aclosing(stream):
            async for delta in stream:
                await queue.put(delta)
    except Exception as error:  # handed to the reader, who raises it
        end = error
    await queue.put(end)
