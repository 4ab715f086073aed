"""One call to an engine, with a deadline of its own and errors that say which engine they came from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

from dualpath.core.errors import ConfigError, DeadlineExceededError, DualPathError, EngineBugError, InvalidRequestError
from dualpath.core.ids import EngineId

T = TypeVar("T")

_log = logging.getLogger(__name__)


class EngineFailure(Exception):
    """An engine dropped the request, died or missed a deadline: the request can go on elsewhere."""

    def __init__(self, engine_id: EngineId, cause: DualPathError) -> None:
        super().__init__(f"{engine_id}: {cause}")
        self.engine_id = engine_id
        self.cause = cause


async def ask(engine_id: EngineId, call: Awaitable[T], timeout_s: float) -> T:
    """Await ``call``. Raises EngineFailure for whatever another attempt may cure; other errors pass as they are."""
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except Exception as error:
        raise _named(engine_id, error, timeout_s) from error


def _named(engine_id: EngineId, error: Exception, timeout_s: float) -> Exception:
    if isinstance(error, TimeoutError):
        return EngineFailure(engine_id, DeadlineExceededError(f"no answer within {timeout_s:g} s"))
    if isinstance(error, (InvalidRequestError, ConfigError, StopAsyncIteration)):
        return error
    if isinstance(error, DualPathError):
        return EngineFailure(engine_id, error)
    _log.error("%s raised what it must not", engine_id, exc_info=error)
    return EngineFailure(engine_id, EngineBugError(f"{engine_id} has a bug: {error!r}"))


class EngineStream(Generic[T]):
    """An engine's iterator: every item has a deadline, and leaving the block closes it, which cancels it over there.

    One timer watches over all items: an item costs two notes of the time.
    """

    def __init__(
        self,
        engine_id: EngineId,
        items: AsyncIterator[T],
        timeout_s: float,
        counts_from_s: Callable[[], float] = lambda: float("-inf"),
    ) -> None:
        """``counts_from_s``: a moment of the event loop's clock before which no waiting counts."""
        self._counts_from_s = counts_from_s
        self._engine_id = engine_id
        self._items = items
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waits_since_s: float | None = None
        self._waiter: asyncio.Task[object] | None = None
        self._num_cancelled = 0  # times that the waiter had been cancelled before
        self._is_late = False

    async def __aenter__(self) -> EngineStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        close = getattr(self._items, "aclose", None)
        if close is None:
            return
        try:
            await ask(self._engine_id, close(), self._timeout_s)
        except Exception as failure:
            _log.warning("closing a stream of %s: %s", self._engine_id, failure)

    def __aiter__(self) -> EngineStream[T]:
        return self

    async def __anext__(self) -> T:
        self._waits_since_s = self._loop.time()
        if self._timer is None:
            self._waiter = waiter = asyncio.current_task()
            self._num_cancelled = waiter.cancelling() if waiter is not None else 0
            self._timer = self._loop.call_at(self._waits_since_s + self._timeout_s, self._look)
        try:
            return await anext(self._items)
        except asyncio.CancelledError:
            if not self._is_late or self._waiter is None or self._waiter.uncancel() > self._num_cancelled:
                raise  # somebody else has cancelled it
            raise _named(self._engine_id, TimeoutError(), self._timeout_s) from None
        except StopAsyncIteration:
            raise
        except Exception as error:
            raise _named(self._engine_id, error, self._timeout_s) from error
        finally:
            self._waits_since_s = None

    def _look(self) -> None:
        """Has an item been waited for too long?"""
        self._timer, since_s = None, self._waits_since_s
        if since_s is None:
            return  # the next wait starts it again
        since_s = max(since_s, self._counts_from_s())
        if self._loop.time() < since_s + self._timeout_s:
            self._timer = self._loop.call_at(since_s + self._timeout_s, self._look)
        elif self._waiter is not None:
            self._is_late = True
            self._waiter.cancel()
