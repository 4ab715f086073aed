"""What an attempt holds on its two engines, and letting go of it: prefill first, then decode, whatever happens.

The decode side is kept until nothing can write it any more: until the prefill engine says so (``release`` returns True;
False while transfers of it may still arrive), or until its process is gone and the decode engine has let go of it, for
what it had sent may still be on its way. An engine that is silent, or fails by whatever error, has said nothing.
Runs in tasks of the service, so no cancellation interrupts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from dualpath.core.errors import EngineGoneError, EngineSilentError
from dualpath.core.ids import EngineId, PeerId, RequestId
from dualpath.core.repeated_warning import RepeatedWarning
from dualpath.core.runtime import Runtime
from dualpath.protocol.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.backoff import Backoff
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.tasks import TaskSet

_log = logging.getLogger(__name__)
_LOOK_S = 0.02


class _Answer(Enum):
    YES = "yes"
    GONE = "gone"  # the process that was asked has ended
    NONE = "none"  # the service closes and waits no longer


@dataclass(frozen=True, slots=True)
class _Prefill:
    engine: PrefillEngineClient
    peer: PeerId


@dataclass(frozen=True, slots=True)
class _Decode:
    engine: DecodeEngineClient
    peer: PeerId


class Releaser:
    """Releases holds in the background. ``on_released`` is told which engine holds nothing of which attempt now."""

    def __init__(
        self,
        config: SchedulerConfig,
        runtime: Runtime,
        tasks: TaskSet,
        on_released: Callable[[RequestId, EngineId], None],
        is_gone: Callable[[PeerId], bool] = lambda peer_id: False,
    ) -> None:
        """``is_gone``: what others know, beside the engines' links."""
        self._is_gone = is_gone
        self._config, self._runtime = config, runtime
        self._tasks = tasks
        self._on_released = on_released
        self._hurry = asyncio.Event()
        self._warning = RepeatedWarning(_log, runtime)
        self._held: dict[RequestId, dict[Hold, None]] = {}
        self._unheard: dict[Hold, None] = {}  # of attempts that are over; their engines may not know it yet

    def hold(
        self,
        first_id: RequestId,
        request_id: RequestId,
        prefill: PrefillEngineClient | None,
        decode: DecodeEngineClient | None,
        peers: tuple[PeerId, PeerId] | None = None,
    ) -> Hold:
        """What the attempt ``request_id`` of the request ``first_id`` holds. It is to be dropped some time.

        ``peers``: of which incarnations; else of the engines as they are now.
        """
        hold = Hold(self, self._tasks, request_id, prefill, decode, peers)
        self._held.setdefault(first_id, {})[hold] = None
        hold.on_end = lambda: self._forget(first_id, hold)
        return hold

    def is_held(self, first_id: RequestId) -> bool:
        """Engines hold something of the request: another of this id would be taken for it."""
        return first_id in self._held

    async def until_heard(self, is_on: Callable[[], bool]) -> None:
        """Nothing is computed any more for attempts that were over: their engines have answered since, or have ended;
        after ``lease_s`` they have ended themselves. ``is_on``: whether that is still wanted."""
        end_s = self._runtime.now_s() + self._config.lease_s
        unheard = list(self._unheard)
        while any(hold in self._unheard for hold in unheard) and is_on():
            if self._runtime.now_s() > end_s:
                _log.warning("engines that have not answered for long may still compute for %d requests", len(unheard))
                return
            await self._runtime.sleep_s(_LOOK_S)

    def dropped(self, hold: Hold) -> None:
        self._unheard[hold] = None

    def _forget(self, first_id: RequestId, hold: Hold) -> None:
        self._unheard.pop(hold, None)
        holds = self._held[first_id]
        del holds[hold]
        if not holds:
            del self._held[first_id]

    def hurry(self) -> None:
        """The service closes: ask everybody once more, then stop waiting."""
        self._hurry.set()

    async def release_prefill(self, hold: Hold) -> bool:
        """True: nothing that the engine began for this request can touch the decode engine's memory any more."""
        prefill, decode = hold.prefill, hold.decode
        if prefill is None:
            return True
        answer = await self._until(hold, prefill, lambda: prefill.engine.release(hold.request_id))
        self._end(hold, prefill)
        if answer is _Answer.GONE and decode is not None:
            answer = await self._until(hold, decode, lambda: _done(decode.engine.remove_peer(prefill.peer)))
        return answer is not _Answer.NONE

    async def release_decode(self, hold: Hold, *, is_at_rest: bool) -> None:
        """Not at rest: it stays held, for the next scheduler to release."""
        decode = hold.decode
        if decode is None:
            return
        if is_at_rest:
            await self._until(hold, decode, lambda: _done(decode.engine.release(hold.request_id)))
        self._end(hold, decode)

    def _end(self, hold: Hold, side: _Prefill | _Decode) -> None:
        self._on_released(hold.request_id, side.engine.info.engine_id)

    async def _until(self, hold: Hold, side: _Prefill | _Decode, call: Callable[[], Awaitable[bool]]) -> _Answer:
        """Ask again and again, ever less often: what the engine still holds is still part of its load."""
        backoff = Backoff(self._config, self._runtime)
        while side.engine.info.peer_id == side.peer and not self._is_gone(side.peer):
            try:
                async with asyncio.timeout(self._config.release_timeout_s):
                    if await call():
                        return _Answer.YES
                self._unheard.pop(hold, None)  # what moves on needs no forward
            except EngineGoneError:
                break
            except EngineSilentError:
                pass
            except Exception as error:  # of whatever class, it tells nothing of what the engine holds and moves
                self._warning.log(f"{hold.request_id}: release on {side.peer} failed: {error!r}")
            if self._hurry.is_set():
                return _Answer.NONE
            await self._pause(backoff.next_s())
        return _Answer.GONE

    async def _pause(self, pause_s: float) -> None:
        """Sleep, unless told to hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._hurry.wait()


async def _done(call: Awaitable[None]) -> bool:
    await call
    return True


class Hold:
    """One attempt's engines: it is about these incarnations only.

    ``drop`` and ``drop_prefill`` return at once and never raise.
    """

    def __init__(
        self,
        releaser: Releaser,
        tasks: TaskSet,
        request_id: RequestId,
        prefill: PrefillEngineClient | None,
        decode: DecodeEngineClient | None,
        peers: tuple[PeerId, PeerId] | None,
    ) -> None:
        self._releaser = releaser
        self._tasks = tasks
        self.request_id = request_id
        self.prefill = None if prefill is None else _Prefill(prefill, peers[0] if peers else prefill.info.peer_id)
        self.decode = None if decode is None else _Decode(decode, peers[1] if peers else decode.info.peer_id)
        self._prefill_task: asyncio.Task[bool] | None = None
        self._decode_task: asyncio.Task[None] | None = None
        self.on_end: Callable[[], None] = lambda: None

    def drop_prefill(self) -> asyncio.Task[bool]:
        """Prefill is done: its slots are somebody else's as soon as possible."""
        if self._prefill_task is None:
            self._prefill_task = self._tasks.spawn(self._releaser.release_prefill(self))
        return self._prefill_task

    def drop(self) -> None:
        """The attempt is over."""
        if self._decode_task is None:
            self._releaser.dropped(self)
            self._decode_task = self._tasks.spawn(self._drop_decode(self.drop_prefill()))
            self._decode_task.add_done_callback(lambda _: self.on_end())

    async def _drop_decode(self, prefill_gone: asyncio.Task[bool]) -> None:
        await asyncio.wait([prefill_gone])
        is_at_rest = not prefill_gone.cancelled() and prefill_gone.exception() is None and prefill_gone.result()
        await self._releaser.release_decode(self, is_at_rest=is_at_rest)
