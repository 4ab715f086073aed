"""What an attempt holds on its two engines, and letting go of it: prefill first, then decode, whatever happens.

While a prefill engine cannot say that its transfers have ended (``release`` returns False), they may still write into the
decode buffer: the decode side is kept until it can. Runs in tasks of the service, so no cancellation interrupts it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dualpath.core.errors import EngineLostError
from dualpath.core.ids import EngineId, RequestId
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.accounts import Accounts
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.tasks import TaskSet

_log = logging.getLogger(__name__)

_DECODE_RELEASE_ATTEMPTS = 5  # then the engine's own clean-up must do


class Releaser:
    """Releases holds in the background and keeps the accounts in step."""

    def __init__(
        self,
        accounts: Accounts,
        config: SchedulerConfig,
        tasks: TaskSet,
        is_lost: Callable[[EngineId], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._config = config
        self._tasks = tasks
        self._is_lost = is_lost
        self._on_change = on_change
        self._hurry = asyncio.Event()

    def hold(self, request_id: RequestId, prefill: PrefillEngineClient, decode: DecodeEngineClient) -> Hold:
        return Hold(self, self._tasks, request_id, prefill, decode)

    def hurry(self) -> None:
        """The service closes: ask everybody once more, then stop waiting."""
        self._hurry.set()

    async def release_prefill(self, request_id: RequestId, engine: PrefillEngineClient) -> None:
        """Returns when the engine can no longer touch another engine's memory for this request."""
        pause_s = self._config.release_retry_s
        while not await self._try_prefill(request_id, engine) and not self._hurry.is_set():
            pause_s = await self._pause(pause_s)
        self._settle(request_id, engine.info.engine_id)

    async def release_decode(self, request_id: RequestId, engine: DecodeEngineClient) -> None:
        engine_id = engine.info.engine_id
        pause_s = self._config.release_retry_s
        for _ in range(_DECODE_RELEASE_ATTEMPTS):
            try:
                async with asyncio.timeout(self._config.release_timeout_s):
                    await engine.release(request_id)
                break
            except EngineLostError:
                break
            except Exception as error:
                _log.warning("%s: release on %s failed: %r", request_id, engine_id, error)
            if self._hurry.is_set() or self._is_lost(engine_id):
                break
            pause_s = await self._pause(pause_s)
        self._settle(request_id, engine_id)

    async def _try_prefill(self, request_id: RequestId, engine: PrefillEngineClient) -> bool:
        try:
            async with asyncio.timeout(self._config.release_timeout_s):
                return await engine.release(request_id)
        except EngineLostError:
            return True  # a dead engine's transfers have failed with it
        except Exception as error:
            _log.warning("%s: release on %s failed: %r", request_id, engine.info.engine_id, error)
            return self._is_lost(engine.info.engine_id)

    async def _pause(self, pause_s: float) -> float:
        """Sleep, unless told to hurry; the next pause is twice as long."""
        try:
            async with asyncio.timeout(pause_s):
                await self._hurry.wait()
        except TimeoutError:
            pass
        return min(2 * pause_s, self._config.release_retry_max_s)

    def _settle(self, request_id: RequestId, engine_id: EngineId) -> None:
        self._accounts.release(request_id, engine_id)
        self._on_change()


class Hold:
    """One attempt's engines. Both calls return at once, may be repeated, and never raise."""

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
        self._request_id = request_id
        self._prefill = prefill
        self._decode = decode
        self._prefill_task: asyncio.Task[None] | None = None
        self._decode_task: asyncio.Task[None] | None = None

    def drop_prefill(self) -> asyncio.Task[None]:
        """Prefill is done: its slots are somebody else's as soon as possible."""
        if self._prefill_task is None:
            release = self._releaser.release_prefill(self._request_id, self._prefill)
            self._prefill_task = self._tasks.spawn(release)
        return self._prefill_task

    def drop(self) -> None:
        """The attempt is over."""
        if self._decode_task is None:
            self._decode_task = self._tasks.spawn(self._drop_decode(self.drop_prefill()))

    async def _drop_decode(self, prefill_gone: asyncio.Task[None]) -> None:
        await asyncio.wait([prefill_gone])
        await self._releaser.release_decode(self._request_id, self._decode)
