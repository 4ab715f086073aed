"""An offline rollout, as in reinforcement learning: all agents start at once and run to completion.

An agent pauses between turns only where its script says so.
Turn i+1's prompt is every append and every generation before it, plus the new append (paper section 7.1). Exactly the
trace's number of tokens is generated, greedily.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from dualpath.bench.nic_watch import kv_transfers, node_reads, watching
from dualpath.bench.workload import Script
from dualpath.core.errors import DualPathError
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.gateway.backend import Backend
from dualpath.report.results import RunResult, TurnResult


async def run_rollout(
    backend: Backend, system: str, scripts: Sequence[Script], on_turn: Callable[[], None] = lambda: None
) -> RunResult:
    """Replay all agents at once against a cluster that nobody else uses. The first failure ends the run."""
    start_s = time.perf_counter()
    async with watching(backend) as log:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_agent(backend, i, script, on_turn)) for i, script in enumerate(scripts)]
        except ExceptionGroup as errors:
            raise _first(errors) from errors
        jct_s = time.perf_counter() - start_s
    assert log.last is not None
    return RunResult(
        system=system,
        jct_s=jct_s,
        turns=[turn for task in tasks for turn in task.result()],
        storage_read_bytes=node_reads(log.last),
        kv_transfer_bytes=kv_transfers(log.last),
        nic_series=log.series(jct_s),
    )


async def _agent(backend: Backend, agent: int, script: Script, on_turn: Callable[[], None]) -> list[TurnResult]:
    context: list[int] = []
    turns = []
    for index, step in enumerate(script.steps):
        if index and step.think_s:
            await asyncio.sleep(step.think_s)
        context += step.append_ids
        turn = await _turn(backend, agent, index, context, step.generate_tokens)
        context += turn.token_ids
        turns.append(turn)
        on_turn()
    return turns


async def _turn(backend: Backend, agent: int, index: int, prompt: Sequence[int], num_tokens: int) -> TurnResult:
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    request = Request(RequestId(f"bench-{agent}-{index}-{uuid.uuid4().hex[:8]}"), tuple(prompt), sampling)
    tokens = tuple([event.token_id async for event in backend.generate(request)])
    record = backend.record(request.request_id)
    if record is None or len(tokens) != num_tokens:
        raise DualPathError(f"agent {agent}, turn {index}: {len(tokens)} tokens came instead of {num_tokens}")
    return TurnResult(agent, index, tokens, replace(record))


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """The first error that says what happened."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
