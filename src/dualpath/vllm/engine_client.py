"""vLLM servers as the scheduler sees engines: staging and KV by the control line, compute over HTTP.

The reads of a request have ended before its server is asked, so vLLM never waits for storage. A prefill server gets a
prompt with ``max_tokens`` 1; a decode server gets the prompt with its first token (token mode), or what the client has
sent (passthrough). A decode server's last token is held back until its node has told of every write that the answer
began: whoever has read it finds those blocks in the next turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec

from dualpath.core.errors import ConfigError, EngineLostError
from dualpath.core.exchange import Exchanges, RefusedError
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.plan import Role
from dualpath.core.request import FinishReason, SamplingParams, TokenEvent
from dualpath.core.stats import EngineStats
from dualpath.core.weights import Weights
from dualpath.protocol.api import (
    DecodeEngineClient,
    DecodeOrder,
    DecodeStep,
    EngineInfo,
    PrefillEngineClient,
    PrefillOrder,
)
from dualpath.protocol.client import stub
from dualpath.protocol.node_link import NodeLink
from dualpath.scheduler.job import first_id
from dualpath.vllm.api_server import ApiServer
from dualpath.vllm.door import KEY_HEADER, PATH
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine
from dualpath.vllm.messages import attach
from dualpath.vllm.passthrough import answer_steps
from dualpath.vllm.settings import WEIGHTS_ARGUMENTS
from dualpath.vllm.together import all_or_none, end_all, rest
from dualpath.vllm.token_mode import first_token, generate_body, sampling_body, token_events

_PrefillNode: Any = stub(PrefillNodeLine)
_DecodeNode: Any = stub(DecodeNodeLine)
_NOBODYS = SamplingParams(max_tokens=1, temperature=0.0)  # of a token that the decode server samples again


class _Server:
    """What both roles have of a vLLM server."""

    server: ApiServer
    name_weights: Any  # the node's (``line.WeightsLine``)
    door_key: Any
    _link: NodeLink
    _engine_id: EngineId
    _is_paused: bool | None = None  # None: nobody knows, as of a former scheduler's

    def _meet(self, server: ApiServer) -> None:
        self._turn = asyncio.Lock()  # of pauses and their ends, which a server would take in any order
        self.server, self._namespace, self._info = server, self._link.report.namespace, self._link.info(self._engine_id)

    @property
    def info(self) -> EngineInfo:
        """As of the latest session in which the engine was there."""
        found = [info for info in self._link.report.engines if info.engine_id == self._engine_id]
        self._info = found[0] if found else self._info
        return self._info

    async def _stats(self, asked: Coroutine[Any, Any, EngineStats]) -> EngineStats:
        """Of the node, if the server is well, too, and still the one that was met. Raises EngineLostError.

        Whoever starts a server again may have given it other weights: its KV must not be taken for the former one's.
        """
        _, stats = await all_or_none([self.server.check(), asked])
        report = self._link.report
        if report.namespace != self._namespace or self._engine_id not in [info.engine_id for info in report.engines]:
            names = ", ".join(info.engine_id for info in report.engines)
            text = f"vLLM at {self.server.url} came back as another: {names}, {report.namespace}"
            raise EngineLostError(f"{text}; it was {self._engine_id}, {self._namespace}")
        return stats

    async def pause(self) -> None:
        async with self._turn:
            self._is_paused = True
            try:
                await self._ask_door("pause")
            except ConfigError:
                self._is_paused = None  # there is no door, and need not be one for it to go on
                raise

    async def resume(self) -> None:
        """Whoever has no door has never been paused."""
        async with self._turn:
            if self._is_paused is False:
                return
            try:
                await self._ask_door("resume")
            except ConfigError:
                if self._is_paused:
                    raise
            self._is_paused = False

    async def load_weights(self, weights: Weights) -> str:
        """They are looked at: two do not fit."""
        await self._ask_door("check")
        fingerprint: str = await self.name_weights(weights)
        return fingerprint

    async def use_weights(self, weights: Weights) -> None:
        """Once it has begun it comes to its end, whoever waits for that. Raises ConfigError where it has those that it
        had before."""
        await self._ask_door("weights", msgspec.json.encode(weights))

    async def drop_weights(self, weights: Weights) -> None:
        """There are none."""

    async def _ask_door(self, verb: str, body: bytes = b"") -> None:
        key = {KEY_HEADER: await self.door_key()}
        try:
            await self.server.ask(f"{PATH}{verb}", body, key)
        except RefusedError as error:
            text = f"it was started without {' '.join(WEIGHTS_ARGUMENTS)}" if error.status == 404 else str(error)
            raise ConfigError(f"vLLM at {self.server.url}: {text}") from None


class VllmPrefillEngine(_Server, _PrefillNode):
    """``protocol.api.PrefillEngineClient``."""

    def __init__(self, link: NodeLink, engine_id: EngineId, server: ApiServer) -> None:
        super().__init__(link, engine_id)
        self._meet(server)

    async def stats(self) -> EngineStats:
        return await self._stats(super().stats())

    async def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
        request = order.request
        sampling = sampling_body(_NOBODYS if request.is_opaque else request.sampling, 1, request.num_generated)
        async with aclosing(self.hand_over(order)) as line:
            await anext(line)
            yield None
            _, first = await all_or_none([rest(line), self._first(order, sampling)])
        yield first

    async def _first(self, order: PrefillOrder, sampling: dict[str, Any]) -> TokenEvent:
        request = order.request
        kv = attach(request.request_id, order.num_hit_tokens, request.prompt_token_ids)
        body = generate_body(request, request.prompt_token_ids, sampling, kv, stream=False)
        event = await first_token(self.server, body, request.sampling.num_logprobs)
        is_last = event.finish_reason is FinishReason.STOP or request.sampling.max_tokens == 1
        return event if is_last and not request.is_opaque else replace(event, finish_reason=None)


class VllmDecodeEngine(_Server, _DecodeNode):
    """``protocol.api.DecodeEngineClient``. ``exchanges``: of requests that vLLM gets as their clients sent them."""

    def __init__(self, link: NodeLink, engine_id: EngineId, server: ApiServer, exchanges: Exchanges) -> None:
        super().__init__(link, engine_id)
        self._meet(server)
        self._exchanges = exchanges
        self._answers: dict[RequestId, asyncio.Task[None]] = {}

    async def stats(self) -> EngineStats:
        return await self._stats(super().stats())

    async def stop(self, request_id: RequestId) -> None:
        """vLLM is told first, by the end of the connection."""
        answer = self._answers.get(request_id)
        if answer is not None:
            answer.cancel()
            await asyncio.wait([answer])
        await super().stop(request_id)

    async def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        request_id, steps = order.request.request_id, asyncio.Queue[DecodeStep | Exception | None]()
        async with aclosing(self.persist(order)) as line:
            yield await anext(line)
            tasks = [
                asyncio.create_task(_into(steps, self._writes(line, steps))),
                asyncio.create_task(_into(steps, self._answer(order, steps))),
            ]
            self._answers[request_id] = tasks[1]
            num_running = len(tasks)
            try:
                while num_running:
                    step = await steps.get()
                    if isinstance(step, Exception):
                        raise step
                    if step is None:
                        num_running -= 1
                    else:
                        yield step
            finally:
                del self._answers[request_id]
                await end_all(tasks)

    async def _writes(self, line: AsyncGenerator[DecodeStep, None], steps: asyncio.Queue[Any]) -> None:
        async for step in line:
            steps.put_nowait(step)

    async def _answer(self, order: DecodeOrder, steps: asyncio.Queue[Any]) -> None:
        request_id, last = order.request.request_id, None
        if order.request.is_opaque or order.first_token.finish_reason is None:
            async with aclosing(self._tokens(order)) as tokens:
                async for events in tokens:
                    if events[-1].finish_reason is not None:
                        last = events
                        break
                    steps.put_nowait(DecodeStep(tokens=events))
            if last is None:
                raise EngineLostError(f"vLLM at {self.server.url} ended an answer without a reason")
        await super().stop(request_id)
        if last is not None:
            steps.put_nowait(DecodeStep(tokens=last))

    async def _tokens(self, order: DecodeOrder) -> AsyncGenerator[tuple[TokenEvent, ...], None]:
        request = order.request
        kv = attach(request.request_id, len(request.prompt_token_ids), request.prompt_token_ids)
        if request.is_opaque:
            exchange = self._exchanges.find(first_id(request.request_id))
            if exchange is None:
                raise EngineLostError("the client is gone")
            async with aclosing(answer_steps(self.server, exchange, kv)) as found:
                async for opaque in found:
                    yield opaque
            return
        ids = (*request.prompt_token_ids, order.first_token.token_id)
        sampling = sampling_body(request.sampling, request.sampling.max_tokens - 1, request.num_generated + 1)
        body = generate_body(request, ids, sampling, kv, stream=True)
        async with aclosing(token_events(self.server, body, request.sampling.num_logprobs)) as made:
            async for events in made:
                yield tuple(events)


def add_engine(
    link: NodeLink,
    info: EngineInfo,
    server: ApiServer,
    exchanges: Exchanges,
    prefill: list[PrefillEngineClient],
    decode: list[DecodeEngineClient],
) -> None:
    """To those of its role."""
    if info.role is Role.PREFILL:
        prefill.append(VllmPrefillEngine(link, info.engine_id, server))
    else:
        decode.append(VllmDecodeEngine(link, info.engine_id, server, exchanges))


async def _into(steps: asyncio.Queue[Any], work: Coroutine[Any, Any, None]) -> None:
    """None when it has ended, also because it was told to."""
    end: Exception | None = None
    try:
        await work
    except Exception as error:  # raised by whoever reads the queue
        end = error
    finally:
        steps.put_nowait(end)
