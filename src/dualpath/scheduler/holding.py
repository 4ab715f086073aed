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
from enum import Enum

from dualpath.core.errors import EngineGoneError, EngineSilentError
from dualpath.core.ids import EngineId, PeerId, RequestId
from dualpath.core.runtime import Runtime
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.engine.repeated_warning import RepeatedWarning
from dualpath.scheduler.accounts import Accounts
from dualpath.scheduler.backoff import Backoff
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.tasks import TaskSet

_log = logging.getLogger(__name__)


class _Answer(Enum):
    YES = "yes"
    GONE = "gone"  # the process that was asked has ended
    NONE = "none"  # the service closes and waits no longer


class Releaser:
    """Releases holds in the background and keeps the accounts in step."""

    def __init__(
        self,
        accounts: Accounts,
        config: SchedulerConfig,
        runtime: Runtime,
        tasks: TaskSet,
        on_change: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._config, self._runtime = config, runtime
        self._tasks = tasks
        self._on_change = on_change
        self._hurry = asyncio.Event()
        self._warning = RepeatedWarning(_log, runtime)

    def hold(self, request_id: RequestId, prefill: PrefillEngineClient, decode: DecodeEngineClient) -> Hold:
        return Hold(self, self._tasks, request_id, prefill, decode)

    def hurry(self) -> None:
        """The service closes: ask everybody once more, then stop waiting."""
        self._hurry.set()

    async def release_prefill(self, hold: Hold) -> bool:
        """True: nothing that the engine began for this request can touch the decode engine's memory any more."""
        prefill, decode = hold.prefill, hold.decode

        async def remove() -> bool:
            await decode.remove_peer(hold.prefill_peer)
            return True

        answer = await self._until(hold, prefill, hold.prefill_peer, lambda: prefill.release(hold.request_id))
        self._end(hold, prefill.info.engine_id)
        if answer is _Answer.GONE:
            answer = await self._until(hold, decode, hold.decode_peer, remove)
        return answer is not _Answer.NONE

    async def release_decode(self, hold: Hold, *, is_at_rest: bool) -> None:
        """Not at rest: it stays held, for the next scheduler to release."""
        decode = hold.decode

        async def release() -> bool:
            await decode.release(hold.request_id)
            return True

        if is_at_rest:
            await self._until(hold, decode, hold.decode_peer, release)
        self._end(hold, decode.info.engine_id)

    def _end(self, hold: Hold, engine_id: EngineId) -> None:
        self._accounts.release(hold.request_id, engine_id)
        self._on_change()

    async def _until(
        self,
        hold: Hold,
        engine: PrefillEngineClient | DecodeEngineClient,
        peer: PeerId,
        call: Callable[[], Awaitable[bool]],
    ) -> _Answer:
        """Ask again and again, ever less often: what the engine still holds is in nobody else's accounts."""
        backoff = Backoff(self._config, self._runtime)
        while engine.info.peer_id == peer:
            try:
                async with asyncio.timeout(self._config.release_timeout_s):
                    if await call():
                        return _Answer.YES
            except EngineGoneError:
                break
            except EngineSilentError:
                pass
            except Exception as error:  # of whatever class, it tells nothing of what the engine holds and moves
                self._warning.log(f"{hold.request_id}: release on {engine.info.engine_id} failed: {error!r}")
            if self._hurry.is_set():
                return _Answer.NONE
            await self._pause(backoff.next_s())
        return _Answer.GONE

    async def _pause(self, pause_s: float) -> None:
        """Sleep, unless told to hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._hurry.wait()


class Hold:
    """One attempt's engines, in these incarnations. ``drop`` and ``drop_prefill`` return at once and never raise."""

    def __init__(
        self,
        releaser: Releaser,
        tasks: TaskSet,
        request_id: RequestId,
        prefill: PrefillEngineClient,
        decode: DecodeEngineClient,
    ) -> None:
        self._releaser = releaser
        self._tasks = tasks
        self.request_id = request_id
        self.prefill, self.decode = prefill, decode
        self.prefill_peer, self.decode_peer = prefill.info.peer_id, decode.info.peer_id
        self._prefill_task: asyncio.Task[bool] | None = None
        self._decode_task: asyncio.Task[None] | None = None

    def drop_prefill(self) -> asyncio.Task[bool]:
        """Prefill is done: its slots are somebody else's as soon as possible."""
        if self._prefill_task is None:
            self._prefill_task = self._tasks.spawn(self._releaser.release_prefill(self))
        return self._prefill_task

    def drop(self) -> None:
        """The attempt is over."""
        if self._decode_task is None:
            self._decode_task = self._tasks.spawn(self._drop_decode(self.drop_prefill()))

    async def _drop_decode(self, prefill_gone: asyncio.Task[bool]) -> None:
        await asyncio.wait([prefill_gone])
        is_at_rest = not prefill_gone.cancelled() and prefill_gone.exception() is None and prefill_gone.result()
        await self._releaser.release_decode(self, is_at_rest=is_at_rest)
