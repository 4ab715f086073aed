"""What an attempt holds on its two engines, and letting go of it: prefill first, then decode, whatever happens.

While a prefill engine cannot say that its transfers have ended (``release`` returns False), they may still write into
the decode buffer: the decode side is kept until it can, also when the prefill engine has fallen silent, for it may go
on where it stopped. Runs in tasks of the service, so no cancellation interrupts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from dualpath.core.errors import EngineLostError, EngineSilentError
from dualpath.core.ids import EngineId, RequestId
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.accounts import Accounts
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.tasks import TaskSet

_log = logging.getLogger(__name__)


class Releaser:
    """Releases holds in the background and keeps the accounts in step."""

    def __init__(
        self,
        accounts: Accounts,
        config: SchedulerConfig,
        tasks: TaskSet,
        on_change: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._config = config
        self._tasks = tasks
        self._on_change = on_change
        self._hurry = asyncio.Event()

    def hold(self, request_id: RequestId, prefill: PrefillEngineClient, decode: DecodeEngineClient) -> Hold:
        return Hold(self, self._tasks, request_id, prefill, decode)

    def hurry(self) -> None:
        """The service closes: ask everybody once more, then stop waiting."""
        self._hurry.set()

    async def release_prefill(self, request_id: RequestId, engine: PrefillEngineClient) -> None:
        """Returns when the engine can no longer touch another engine's memory for this request."""
        await self._until_released(request_id, engine.info.engine_id, lambda: engine.release(request_id))

    async def release_decode(self, request_id: RequestId, engine: DecodeEngineClient) -> None:
        async def release() -> bool:
            await engine.release(request_id)
            return True

        await self._until_released(request_id, engine.info.engine_id, release)

    async def _until_released(
        self, request_id: RequestId, engine_id: EngineId, release: Callable[[], Awaitable[bool]]
    ) -> None:
        """Ask again and again, ever less often: what the engine still holds is in nobody else's accounts."""
        pause_s = self._config.release_retry_s
        while not await self._try(request_id, engine_id, release) and not self._hurry.is_set():
            await self._pause(pause_s)
            pause_s = min(2 * pause_s, self._config.release_retry_max_s)
        self._accounts.release(request_id, engine_id)
        self._on_change()

    async def _try(self, request_id: RequestId, engine_id: EngineId, release: Callable[[], Awaitable[bool]]) -> bool:
        try:
            async with asyncio.timeout(self._config.release_timeout_s):
                return await release()
        except EngineSilentError:
            return False
        except EngineLostError:
            return True  # what a dead engine held and moved has gone with it
        except Exception as error:  # no answer tells nothing of what still moves, not even of an engine that is lost
            _log.warning("%s: release on %s failed: %r", request_id, engine_id, error)
            return False

    async def _pause(self, pause_s: float) -> None:
        """Sleep, unless told to hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._hurry.wait()


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
