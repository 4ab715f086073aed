"""The desk as a gateway in another process has it: questions over a link, notes in batches, the latest news.

A desk that is silent, cut off or replaced delays what asks it and nothing else. In each session the gateway first says
which attempts it has; then come the notes that the desk has not acknowledged, perhaps for the second time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from dualpath.core.errors import DualPathError, EngineLostError, EngineSilentError, OverloadedError
from dualpath.core.ids import BlockKey, EngineId, PeerId, RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.plan import ReadPlan
from dualpath.core.request import RecordAnswer, RecordQuery
from dualpath.core.runtime import Runtime
from dualpath.core.weights import WeightEpoch
from dualpath.protocol import wire
from dualpath.protocol.client import stub
from dualpath.protocol.node_link import NodeLink
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.demand import Demand, Placement
from dualpath.scheduler.desk.api import DESK, DeskStats, Note, Outlook, PauseState, Registered, SeatCalls
from dualpath.scheduler.desk.notes import Recorder, note_of
from dualpath.scheduler.engine_call import EngineFailure
from dualpath.scheduler.tasks import TaskSet

_log = logging.getLogger(__name__)
_RETRY_S = 0.05
_RemoteSeat = stub(SeatCalls)


class _Attempt:
    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.left = {placement.prefill: None, placement.decode: None}
        self.num_decode_tokens = placement.num_decode_tokens


class RemoteDesk(Recorder):  # type: ignore[misc]
    """``api.DeskClient``. Event loop only; ``start``, ``close``."""

    def __init__(self, link: NodeLink, config: SchedulerConfig, runtime: Runtime) -> None:
        self._link, self._config, self._runtime = link, config, runtime
        self._seat: SeatCalls = _RemoteSeat(link, DESK)
        self.tasks = TaskSet()
        self._attempts: dict[RequestId, _Attempt] = {}
        self._notes: list[Note] = []  # not acknowledged yet
        self._ended: list[tuple[int, RequestId]] = []  # attempts, and the number of their last note
        self._num_noted = self._num_taken = 0
        self._due, self._taken, self._up = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._session = 0  # in which our attempts are known over there
        self._outlook: Outlook | None = None
        self._pause: PauseState | None = None  # the latest that a desk has told
        self._former: set[PeerId] = set()
        self._alone_since_s: float | None = runtime.now_s()
        self.on_engine_lost: Callable[[EngineId], None] = lambda engine_id: None
        self.on_news: Callable[[Outlook], None] = lambda outlook: None

    async def start(self) -> None:
        """Return when the desk has told how things are."""
        self.tasks.spawn(self._run(), is_patrol=True)
        while self._outlook is None:
            await self._runtime.sleep_s(_RETRY_S)

    async def close(self) -> None:
        """The last notes have a moment to get there."""
        try:
            async with asyncio.timeout(self._config.release_timeout_s):
                await self._until_taken()
        except TimeoutError:
            _log.warning("%d notes have not reached the desk", len(self._notes))
        await self.tasks.cancel()

    # -- the link -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if not self._link.is_up:
                await self._runtime.sleep_s(_RETRY_S)
                continue
            session = self._link.num_sessions
            try:
                await self._register()
                if session != self._link.num_sessions:
                    continue
                self._session = session
                self._up.set()
                await self._serve()
            except DualPathError as error:
                _log.warning("the desk: %s", error)
            finally:
                self._up.clear()
            await self._runtime.sleep_s(_RETRY_S)

    async def _register(self) -> None:
        await self._seat.register(
            tuple(
                Registered(request_id, attempt.placement, tuple(attempt.left), attempt.num_decode_tokens)
                for request_id, attempt in self._attempts.items()
            ),
            self._pause,
        )

    async def _serve(self) -> None:
        """Until the link breaks."""
        both = [asyncio.ensure_future(self._watch()), asyncio.ensure_future(self._send())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            ends = await asyncio.gather(*both, return_exceptions=True)
        raise next((end for end in ends if isinstance(end, DualPathError)), EngineSilentError("it has ended its news"))

    async def _send(self) -> None:
        """One batch at a time, so they arrive in order; at first those that may have arrived before."""
        while True:
            if self._notes:
                self._due.clear()
                batch = tuple(self._notes)
                await self._seat.take(batch)
                del self._notes[: len(batch)]
                self._num_taken += len(batch)
                self._forget_ended()
                self._taken.set()
            else:
                await self._due.wait()
                self._due.clear()

    async def _watch(self) -> None:
        async for outlook in self._seat.watch():
            former, self._outlook = self._outlook, outlook
            self._pause = outlook.pause or self._pause
            if former is not None:
                self._former.update(set(former.peers) - set(outlook.peers))
            self._former.difference_update(outlook.peers)
            if outlook.has_engines:
                self._alone_since_s = None
            elif self._alone_since_s is None:
                self._alone_since_s = self._runtime.now_s()
            self.on_news(outlook)
            for engine_id in outlook.lost:
                if former is None or engine_id not in former.lost:
                    self.on_engine_lost(engine_id)

    async def _ask(self, ask: Callable[[], Any], timeout_s: float) -> Any:
        """The answer, of whichever desk there is then. Raises OverloadedError where there is none for so long."""
        until_s = self._runtime.now_s() + timeout_s
        while True:
            left_s = until_s - self._runtime.now_s()
            try:
                if left_s <= 0:
                    raise TimeoutError
                async with asyncio.timeout(left_s):
                    await self._up.wait()
            except TimeoutError:
                text = f"the scheduler has not answered for {timeout_s:g} s"
                raise OverloadedError(text, retry_after_s=self._config.retry_after_s) from None
            session = self._session
            try:
                answer = await ask()
            except (EngineSilentError, TimeoutError):
                await self._runtime.sleep_s(_RETRY_S)
                continue
            if session == self._session and session == self._link.num_sessions:
                return answer

    # -- notes --------------------------------------------------------------------------------------------------------

    def noted(self, name: str, arguments: tuple[Any, ...]) -> None:
        self._notes.append(note_of(name, arguments))
        self._num_noted += 1
        self._due.set()

    def grown(self, request_id: RequestId, num_tokens: int) -> None:
        """For every token that nothing was set aside for: it goes with the news of the next block."""
        if attempt := self._attempts.get(request_id):
            attempt.num_decode_tokens = max(attempt.num_decode_tokens, num_tokens)

    def wrote(self, request_id: RequestId, *news: Any) -> None:
        attempt = self._attempts.get(request_id)
        if attempt is not None and attempt.num_decode_tokens > attempt.placement.num_decode_tokens:
            self.noted("grown", (request_id, attempt.num_decode_tokens))
        self.noted("wrote", (request_id, *news))

    def released(self, request_id: RequestId, engine_id: EngineId) -> None:
        self.noted("released", (request_id, engine_id))
        if attempt := self._attempts.get(request_id):
            attempt.left.pop(engine_id, None)
            if not attempt.left:
                self._ended.append((self._num_noted, request_id))

    def _forget_ended(self) -> None:
        """Until the desk has heard all of an attempt it is one of ours, or its news would be nobody's."""
        while self._ended and self._ended[0][0] <= self._num_taken:
            self._attempts.pop(self._ended.pop(0)[1], None)

    async def _until_taken(self) -> None:
        number = self._num_noted
        while self._num_taken < number:
            self._taken.clear()
            await self._taken.wait()

    # -- questions ----------------------------------------------------------------------------------------------------

    async def place(self, demand: Demand) -> Placement:
        try:
            answer: Placement = await self._ask(lambda: self._seat.place(demand), self._config.queue_timeout_s)
        except BaseException:
            self.withdrawn(demand.request_id)
            raise
        self._attempts[demand.request_id] = _Attempt(answer)
        return answer

    async def count_known(self, keys: tuple[BlockKey, ...]) -> int:
        answer: int = await self._ask(lambda: self._seat.count_known(keys), self._config.queue_timeout_s)
        return answer

    async def look_up(self, request_id: RequestId, keys: tuple[BlockKey, ...]) -> int:
        """What was written before is known over there."""

        async def ask() -> int:
            async with asyncio.timeout(self._config.queue_timeout_s):
                await self._until_taken()
            return await self._seat.look_up(request_id, keys)

        if not keys:
            return 0
        answer: int = await self._ask_of(request_id, ask)
        return answer

    async def plan_reading(self, request_id: RequestId, num_hit_blocks: int) -> ReadPlan:
        if not num_hit_blocks:
            return ReadPlan(0, 0)
        answer: ReadPlan = await self._ask_of(request_id, lambda: self._seat.plan_reading(request_id, num_hit_blocks))
        return answer

    async def _ask_of(self, request_id: RequestId, ask: Callable[[], Any]) -> Any:
        """Of an attempt. Raises EngineFailure where the desk does not know it: it had given us up."""
        try:
            return await self._ask(ask, self._config.queue_timeout_s)
        except EngineLostError as error:
            raise EngineFailure(self._attempts[request_id].placement.prefill, EngineSilentError(str(error))) from error

    async def check(self, engine_ids: tuple[EngineId, ...]) -> None:
        await self._ask(lambda: self._seat.check(engine_ids), self._config.queue_timeout_s)

    async def check_weights(self, engine_ids: tuple[EngineId, ...]) -> None:
        await self._ask(lambda: self._seat.check_weights(engine_ids), self._config.queue_timeout_s)

    async def fate(self, engine_id: EngineId, peer_id: PeerId) -> bool:
        answer: bool = await self._ask(lambda: self._seat.fate(engine_id, peer_id), self._config.queue_timeout_s)
        return answer

    async def pause(self, mode: PauseMode) -> bool:
        answer: bool = await self._ask(lambda: self._seat.pause(mode), self._config.queue_timeout_s)
        return answer

    async def resume(self) -> None:
        await self._ask(self._seat.resume, self._config.queue_timeout_s)

    async def abort(self, names: tuple[str, ...] | None) -> int:
        """``api.SeatCalls.abort``."""
        answer: int = await self._ask(lambda: self._seat.abort(names), self._config.queue_timeout_s)
        return answer

    async def records(self, query: RecordQuery) -> RecordAnswer:
        """``api.SeatCalls.records``."""
        answer: RecordAnswer = await self._ask(lambda: self._seat.records(query), self._config.stats_timeout_s)
        return answer

    async def answer(self, number: int, found: RecordAnswer) -> None:
        """``api.SeatCalls.answer``."""
        await self._ask(lambda: self._seat.answer(number, found), self._config.stats_timeout_s)

    async def update_weights(self, directory: str, version: str | None) -> WeightEpoch:
        answer: WeightEpoch = await self._ask(
            lambda: self._seat.update_weights(directory, version), self._config.queue_timeout_s
        )
        return answer

    async def flush(self) -> None:
        await self._ask(self._seat.flush, self._config.queue_timeout_s)

    async def stats(self) -> DeskStats:
        answer: DeskStats = await self._ask(self._seat.stats, self._config.stats_timeout_s)
        return answer

    # -- as of the latest news ----------------------------------------------------------------------------------------

    @property
    def news(self) -> Outlook:
        assert self._outlook is not None, "not started"
        return self._outlook

    @property
    def max_prompt_tokens(self) -> int:
        return self.news.max_prompt_tokens

    @property
    def epoch(self) -> WeightEpoch:
        return self.news.epoch

    @property
    def is_full(self) -> bool:
        return self.news.is_full

    @property
    def has_engines(self) -> bool:
        return self.news.has_engines and self._link.is_up

    @property
    def alone_s(self) -> float:
        alone_s = 0.0 if self._alone_since_s is None else self._runtime.now_s() - self._alone_since_s
        return alone_s if self._link.is_up else max(alone_s, self._link.silent_s)

    def problems(self) -> tuple[str, ...]:
        return self.news.problems if self._link.is_up else ("the scheduler does not answer",)

    def is_gone(self, peer_id: PeerId) -> bool:
        return peer_id in self._former

    def is_held(self, first_id: RequestId) -> bool:
        return False  # attempts' names are of this life of this gateway only

    def knows(self, report: wire.NodeReport) -> bool:
        """Whether the desk has told of these engines, so that the former ones are gone. It has none itself."""
        peers = () if self._outlook is None else self._outlook.peers
        return all(info.peer_id in peers for info in report.engines)
