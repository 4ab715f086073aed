"""Agents that arrive one after the other and talk to a server over HTTP until they are done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from dualpath.bench.workload import Script
from dualpath.core.errors import DualPathError

REQUEST_DEADLINE_S = 3600.0


class Visitors:
    """Lets agents in at their moments. Leaving the block sends the unfinished ones away. One event loop."""

    def __init__(self, url: str, on_turn: Callable[[], None]) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, timeout=REQUEST_DEADLINE_S, limits=httpx.Limits(max_connections=None)
        )
        self._on_turn = on_turn
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self.num_agents_done = 0

    async def __aenter__(self) -> Visitors:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    async def let_in(self, moments_s: Sequence[float], scripts: Sequence[Script]) -> None:
        """Returns when the last one has come in."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for moment, script in zip(moments_s, scripts, strict=True):
            await asyncio.sleep(max(0.0, start_s + moment - loop.time()))
            task = loop.create_task(self._visit(script))
            self._tasks.add(task)
            task.add_done_callback(self._left)

    async def records(self) -> list[dict[str, Any]]:
        """What the server remembers of its most recent requests. Raises what made an agent fail."""
        if self._failure is not None:
            raise DualPathError(f"an agent's request failed: {self._failure}") from self._failure
        answer = await self._http.get("/v1/dualpath/requests", params={"limit": 10_000})
        found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
        return found

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        self.num_agents_done += 1
        self._failure = self._failure or task.exception()

    async def _visit(self, script: Script) -> None:
        context: list[int] = []
        for index, step in enumerate(script.steps):
            if index and step.think_s:
                await asyncio.sleep(step.think_s)
            context += step.append_ids
            context += await self._turn(context, step.generate_tokens)
            self._on_turn()

    async def _turn(self, prompt: list[int], num_tokens: int) -> list[int]:
        body = {
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = await self._http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            raise DualPathError(f"HTTP {answer.status_code}: {answer.text[:300]}")
        tokens: list[int] = answer.json()["choices"][0]["token_ids"]
        return tokens
