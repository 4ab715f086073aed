"""The cluster as a Python object, for loops that generate and learn in one process: agents are async functions.

    async def agent(session):
        answer = await session.complete("List the files.", max_tokens=32)
        answer = await session.complete(answer.text + run_tools(answer.text), max_tokens=32)
        return answer.text

    async with dualpath.Cluster(model="models/m", store="file:///data/kv", prefill=1, decode=2) as cluster:
        rollout = await cluster.rollout([agent] * 64)

Sessions share nothing but the store: what one has computed, any other with the same prefix reads.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from dualpath.config import ServeConfig
from dualpath.config.fields import entries, tables
from dualpath.core.errors import ConfigError, DualPathError, InvalidRequestError, RequestAbortedError
from dualpath.core.ids import RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.request import FinishReason, Request, RequestRecord, SamplingParams, TokenEvent, WeightSpan
from dualpath.core.stats import ClusterStats
from dualpath.gateway.openai.sampling import check_distribution, resolve_temperature
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.serving.pick import pick_cluster
from dualpath.serving.serve import check_answers

DRAIN_S = 30.0


class RolloutStoppedError(DualPathError):
    """The rollout has as many finished agents as it wants: this one's turn comes in a later one."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model answered, and where the request's time went."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] | None  # of each token, if asked for
    finish_reason: FinishReason  # ABORT: ended by ``Cluster.abort``, ``Cluster.pause`` or the rollout's end
    prompt_token_ids: tuple[int, ...]
    record: RequestRecord

    @property
    def weight_versions(self) -> list[WeightSpan]:
        """Whose weights made which tokens: one, unless they changed meanwhile."""
        return self.record.weight_versions


@dataclass(slots=True)
class Session:
    """One agent's line to the cluster. It keeps its completions; the conversation is the agent's own."""

    cluster: Cluster
    agent: int
    completions: list[Completion] = field(default_factory=list)
    is_stopped: bool = False  # the rollout has as many finished agents as it wants
    running: dict[RequestId, None] = field(default_factory=dict)

    async def complete(self, prompt: str | Sequence[int], max_tokens: int, **sampling: Any) -> Completion:
        """Up to ``max_tokens`` more. ``sampling``: the other fields of ``SamplingParams``, and ``cache_salt``.

        ``num_logprobs=0`` gives each token's log probability. Raises DualPathError; cancelling it cancels the request.
        """
        if self.is_stopped:
            raise RolloutStoppedError("the rollout has ended")
        request_id = RequestId(uuid.uuid4().hex)
        self.running[request_id] = None
        try:
            answer = await self.cluster.complete(prompt, max_tokens, request_id=request_id, **sampling)
        finally:
            del self.running[request_id]
        self.completions.append(answer)
        return answer

    def stop(self) -> None:
        """What runs ends with the tokens that it has."""
        self.is_stopped = True
        self.cluster.abort(list(self.running))


Agent = Callable[[Session], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What an agent returned, or what it raised, and everything it was answered."""

    value: Any
    error: Exception | None
    completions: tuple[Completion, ...]
    is_partial: bool = False  # the rollout ended before the agent did: go on from its completions


@dataclass(frozen=True, slots=True)
class Rollout:
    """Results in the order of the agents."""

    results: tuple[AgentResult, ...]
    duration_s: float

    @property
    def records(self) -> list[RequestRecord]:
        return [answer.record for result in self.results for answer in result.completions]

    def statistics(self) -> dict[str, Any]:
        """Counts and latencies over all requests, in the words of the benchmarks' JSON."""
        from dualpath.report.summary import phase_summary, summarize

        records = self.records
        prompt = sum(record.num_prompt_tokens for record in records)
        hit = sum(record.num_hit_tokens for record in records)
        return {
            "duration_s": self.duration_s,
            "agents": len(self.results),
            "failed_agents": sum(result.error is not None for result in self.results),
            "partial_agents": sum(result.is_partial for result in self.results),
            "requests": len(records),
            "prompt_tokens": prompt,
            "hit_tokens": hit,
            "hit_rate": hit / prompt if prompt else 0.0,
            "generated_tokens": sum(record.num_generated_tokens for record in records),
            "ttft_s": summarize(record.ttft_s for record in records),
            "tpot_s": summarize(record.tpot_s for record in records),
            "phases_s": phase_summary([record.phases_s for record in records]),
        }


class Cluster:
    """All engines in this process. Use as ``async with``; settings are those of ``dualpath serve``, by field name."""

    def __init__(self, *, model: str | Path, store: str = "memory://", **settings: Any) -> None:
        """``settings``: any field of ``ServeConfig``'s tables, e.g. ``decode=2``, ``max_context_tokens=4096``."""
        self._config = serve_config(model, store, settings)
        self._cluster, _ = pick_cluster(self._config, lambda _: None)
        self._tokenizer: Tokenizer | None = None

    async def __aenter__(self) -> Cluster:
        self._tokenizer = await asyncio.to_thread(Tokenizer.load, self._config.model.dir)
        await self._cluster.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cluster.close(DRAIN_S if kind is None else 0.0)
        self.tokenizer.close()

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise DualPathError("the cluster has not been started: use it as 'async with Cluster(...) as cluster'")
        return self._tokenizer

    def session(self, agent: int = 0) -> Session:
        return Session(self, agent)

    @property
    def max_context_tokens(self) -> int:
        """Of a prompt and its answer together."""
        return self._cluster.service.max_context_tokens

    async def stats(self) -> ClusterStats:
        return await self._cluster.service.stats()

    # -- the weights, and all requests -------------------------------------------------------------------------------

    @property
    def weight_version(self) -> str:
        """Of the weights that new requests are served with."""
        return self._cluster.service.control.weight_version

    async def update_weights(self, directory: str | Path, version: str | None = None) -> str:
        """Serve the weights in another directory of the same model. Returns their version.

        Requests that run go on, and name both. Nothing that was stored before is found any more, until the same weights
        come back. Raises WeightsError where they cannot be loaded; nothing has changed then.
        """
        return await self._cluster.service.control.update_weights(str(directory), version)

    async def pause(self, mode: str = PauseMode.ABORT.value) -> None:
        """Begin no request until ``resume``. ``mode``: a ``PauseMode``'s value: what becomes of those that run."""
        await self._cluster.service.control.pause(PauseMode(mode))

    async def resume(self) -> None:
        await self._cluster.service.control.resume()

    def abort(self, request_ids: Sequence[str] | None = None) -> int:
        """End these requests, or all, with the tokens that they have. Returns how many there were."""
        named = None if request_ids is None else [RequestId(request_id) for request_id in request_ids]
        return self._cluster.service.control.abort_here(named)

    async def flush(self) -> None:
        """Find nothing of what is stored now any more."""
        await self._cluster.service.control.flush()

    async def complete(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        *,
        cache_salt: str = "",
        request_id: str | None = None,
        **sampling: Any,
    ) -> Completion:
        """One request; see ``Session.complete``. ``request_id``: for ``abort``."""
        ids = self._ids(prompt)
        try:
            params = SamplingParams(max_tokens=max_tokens, **sampling)
        except TypeError as error:
            raise InvalidRequestError(str(error).replace("SamplingParams.__init__() ", "complete() ")) from None
        check_distribution(params.temperature, params.top_p, params.top_k, params.seed)
        if not params.repetition_penalty > 0:
            raise InvalidRequestError("repetition_penalty must be above 0")
        params = replace(params, temperature=resolve_temperature(params.temperature), top_k=max(params.top_k, 0))
        service = self._cluster.service
        request = Request(RequestId(request_id or uuid.uuid4().hex), ids, params, cache_salt)
        events: list[TokenEvent] = []
        try:
            async with aclosing(service.generate(request)) as stream:
                async for event in stream:
                    events.append(event)
            reason = events[-1].finish_reason
        except RequestAbortedError:
            reason = FinishReason.ABORT
        record = service.record(request.request_id)
        assert record is not None
        assert reason is not None
        kept = events[:-1] if reason is FinishReason.STOP else events  # the text ends before the token that ended it
        text = self.tokenizer.decode([event.token_id for event in kept], skip_special_tokens=True)
        logprobs = tuple(event.logprob or 0.0 for event in events) if params.num_logprobs is not None else None
        return Completion(tuple(event.token_id for event in events), text, logprobs, reason, ids, replace(record))

    async def rollout(
        self,
        agents: Sequence[Agent],
        *,
        max_concurrent: int | None = None,
        num_finished: int | None = None,
        raise_errors: bool = True,
    ) -> Rollout:
        """Run all agents, at most ``max_concurrent`` at a time. ``raise_errors=False`` keeps the first failure from
        ending the others: it is in the agent's result instead.

        ``num_finished``: when so many agents have come to their end, the requests of the others are aborted. Their next
        ``complete`` raises RolloutStoppedError, and their results are partial: a later rollout goes on with them.
        """
        gate = asyncio.Semaphore(max_concurrent or max(1, len(agents)))
        sessions = [Session(self, number) for number in range(len(agents))]
        left = len(agents) if num_finished is None else num_finished

        def ended(task: asyncio.Task[AgentResult]) -> None:
            nonlocal left
            left -= not task.cancelled() and task.exception() is None and not task.result().is_partial
            if left == 0:
                for session in sessions:
                    session.stop()

        start_s = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_run(gate, agent, session, raise_errors))
                    for agent, session in zip(agents, sessions, strict=True)
                ]
                for task in tasks:
                    task.add_done_callback(ended)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return Rollout(tuple(task.result() for task in tasks), time.perf_counter() - start_s)

    def _ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt, add_special_tokens=True))
        ids = tuple(int(token_id) for token_id in prompt)
        self.tokenizer.check_ids(ids, "prompt")
        return ids


async def _run(gate: asyncio.Semaphore, agent: Agent, session: Session, raise_errors: bool) -> AgentResult:
    async with gate:
        try:
            value, error = await agent(session), None
        except RolloutStoppedError:
            return AgentResult(None, None, tuple(session.completions), is_partial=True)
        except Exception as failure:
            if raise_errors:
                raise
            value, error = None, failure
    is_partial = any(answer.finish_reason is FinishReason.ABORT for answer in session.completions)
    return AgentResult(value, error, tuple(session.completions), is_partial)


def serve_config(model: str | Path, store: str, settings: dict[str, Any]) -> ServeConfig:
    """Each setting goes to the one table that has it. Raises ConfigError for a name that none has."""
    values: dict[str, dict[str, Any]] = {"model": {"dir": Path(model)}, "store": {"url": store}}
    homes = {entry.name: name for name, table in tables(ServeConfig) for entry in entries(table)}
    for name, value in settings.items():
        if name not in homes or name in ("dir", "url"):
            raise ConfigError(f"Cluster has no setting {name!r}")
        values.setdefault(homes[name], {})[name] = value
    config = ServeConfig(**{name: table(**values.get(name, {})) for name, table in tables(ServeConfig)})  # type: ignore[arg-type]
    check_answers(config)
    return config
