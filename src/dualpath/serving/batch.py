"""Many requests from one file in OpenAI's Batch format to another, through a cluster that lives as long as the file.

Input, one JSON object a line: {"custom_id", "method": "POST", "url", "body"}, the URL one of /v1/chat/completions
and /v1/completions.
Output, one line for each, *in input order*: {"id", "custom_id", "response": {"status_code", "request_id", "body"},
"error"}. A line that cannot be served has its error in the response (status 4xx or 5xx) or, where it is no request at
all, in "error"; the others go on. A line is written as soon as it and all before it are done.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.gateway.backend import Backend
from dualpath.gateway.defaults import read_defaults
from dualpath.gateway.errors import ApiError, as_api_error, invalid
from dualpath.gateway.openai.plan import Plan, Planner
from dualpath.gateway.openai.shapes import json_line
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.report.outputs import writing
from dualpath.report.progress import RunProgress
from dualpath.serving.pick import pick_cluster


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """How many lines there were, and how many were not answered with status 200."""

    num_requests: int
    num_failed: int


def run(config: ServeConfig, source: Path, target: Path, max_concurrent: int) -> int:
    """Exit code 0 even if single lines failed, as their errors are in the output; the summary says how many."""
    outcome = asyncio.run(_run(config, source, target, max_concurrent))
    print(f"{outcome.num_requests} requests, {outcome.num_failed} failed: {target}")
    return 0


async def _run(config: ServeConfig, source: Path, target: Path, max_concurrent: int) -> BatchOutcome:
    lines = _read(source)
    is_ours = config.cluster.engine == "builtin"
    settings = GatewaySettings(sampling=read_defaults(config.model.dir), takes_seeds=is_ours, holds_forms=is_ours)
    tokenizer = await asyncio.to_thread(Tokenizer.load, config.model.dir)
    cluster, _ = pick_cluster(config, lambda _: None)
    await cluster.start()
    try:
        service = cluster.service
        planner = Planner(service.model_name, service.max_context_tokens, tokenizer, settings)
        bars = RunProgress(Console(stderr=True))
        with writing(target), target.open("w", encoding="utf-8") as out, bars.run("batch", len(lines)) as advance:
            return await answer_all(lines, out, LineWorker(service, planner), max_concurrent, advance)
    finally:
        await cluster.close(config.gateway.drain_s)
        tokenizer.close()


def _read(source: Path) -> list[str]:
    try:
        with source.open(encoding="utf-8-sig", newline="\n") as file:  # no other character ends a line of JSON
            return [line for line in file if line.strip()]
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not a text file in UTF-8") from None


class LineWorker:
    """Answers single lines."""

    def __init__(self, backend: Backend, planner: Planner) -> None:
        self._backend = backend
        self._seen: set[str] = set()
        self._planners: dict[str, Callable[[bytes], Plan]] = {
            "/v1/chat/completions": planner.chat,
            "/v1/completions": planner.completion,
        }

    async def answer(self, line: str) -> dict[str, Any]:
        """The output object; never raises but for cancellation."""
        try:
            request = self._parse(line)
        except (ValueError, RecursionError) as error:
            return _output(None, None, {"code": "invalid_line", "message": f"not a batch request: {error}"})
        request_id = f"req_{uuid.uuid4().hex}"
        try:
            status, body = 200, await self._serve(request)
        except Exception as error:
            failure = as_api_error(error)
            status, body = failure.status, json.loads(failure.body())
        return _output(request["custom_id"], {"status_code": status, "request_id": request_id, "body": body}, None)

    def _parse(self, line: str) -> dict[str, Any]:
        """Raises ValueError for what cannot even be answered under its name."""
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("it must be an object")
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str) or custom_id in self._seen:
            raise ValueError(f"custom_id must be a string that no line before has, not {custom_id!r}")
        self._seen.add(custom_id)
        return request

    async def _serve(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("method") != "POST":
            raise invalid("method must be POST", "method")
        url = request.get("url")
        if url not in self._planners:
            raise ApiError(404, f"url must be one of {', '.join(self._planners)}, not {url!r}", param="url")
        plan = self._planners[url](json.dumps(request.get("body")).encode())
        if plan.stream:
            raise invalid("a batch cannot stream", "stream")
        async with aclosing(plan.job.deltas(self._backend)) as deltas:
            async for delta in deltas:
                plan.writer.add(delta)
        answer: dict[str, Any] = json.loads(plan.writer.whole(plan.job.usage(self._backend)))
        return answer


async def answer_all(
    lines: list[str], out: TextIO, worker: LineWorker, max_concurrent: int, on_done: Callable[[], None] = lambda: None
) -> BatchOutcome:
    """Answers ``lines``, ``max_concurrent`` at a time, and writes the answers in the lines' order."""
    num_failed = 0
    waiting: list[asyncio.Task[dict[str, Any]]] = []
    gate = asyncio.Semaphore(max_concurrent)

    async def one(line: str) -> dict[str, Any]:
        async with gate:
            answer = await worker.answer(line)
        on_done()
        return answer

    try:
        waiting = [asyncio.create_task(one(line)) for line in lines]
        for task in waiting:
            answer = await task
            num_failed += (answer["response"] or {}).get("status_code") != 200
            out.write(json_line(answer).decode() + "\n")
            out.flush()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return BatchOutcome(len(lines), num_failed)


def _output(custom_id: str | None, response: dict[str, Any] | None, error: dict[str, str] | None) -> dict[str, Any]:
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
