"""What the last minute would have been otherwise, for all pages: computed when somebody asks, elsewhere, seldom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from dualpath.core.errors import DualPathError
from dualpath.core.request import RecordQuery, RequestRecord
from dualpath.core.stats import ClusterStats
from dualpath.gateway.backend import Backend
from dualpath.gateway.errors import as_api_error

# Gives JSON, and reads what it is given before it waits first: records of running requests change.
Replay = Callable[[Sequence[RequestRecord], ClusterStats], Awaitable[bytes]]

KEEP_S = 15.0  # whoever asks again within it gets the same
_MAX_RECORDS = 1000
_LOOK_TIMEOUT_S = 10.0


class ReplayState(msgspec.Struct, frozen=True):
    """``error``: why there is no answer. ``age_s``: since the answer or the error."""

    is_running: bool = False
    answer: msgspec.Raw | None = None
    error: str | None = None
    age_s: float | None = None


class MinuteReplay:
    """Event loop only. One at a time."""

    def __init__(self, backend: Backend, replay: Replay | None) -> None:
        self._backend = backend
        self._replay = replay
        self._task: asyncio.Task[None] | None = None
        self._answer: msgspec.Raw | None = None
        self._error: str | None = None
        self._ended_s: float | None = None

    def state(self) -> ReplayState:
        return ReplayState(self._is_running(), self._answer, self._error, self._age_s())

    def ask(self) -> None:
        """Begin, unless one is under way or just done. What comes of it is in ``state``."""
        age_s = self._age_s()
        if not self._is_running() and (age_s is None or age_s > KEEP_S):
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _age_s(self) -> float | None:
        return None if self._ended_s is None else round(asyncio.get_running_loop().time() - self._ended_s, 1)

    async def _run(self) -> None:
        self._answer, self._error = None, None
        try:
            if self._replay is None:
                raise OSError("this server has nothing to replay with")
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                stats = await self._backend.stats()
                found = await self._backend.control.records(RecordQuery(_MAX_RECORDS))
            self._answer = msgspec.Raw(await self._replay(found.records, stats))
        except TimeoutError:
            self._error = "it took too long: the machine or the cluster has no time for it"
        except (DualPathError, OSError) as error:
            self._error = str(error) or type(error).__name__
        except Exception as error:  # a page that shows nothing looks like one where nobody has asked
            self._error = as_api_error(error).message
        finally:
            self._ended_s = asyncio.get_running_loop().time()
