"""One call to an engine, with a deadline of its own and errors that say which engine they came from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
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
    except TimeoutError as error:
        raise EngineFailure(engine_id, DeadlineExceededError(f"no answer within {timeout_s:g} s")) from error
    except (InvalidRequestError, ConfigError, StopAsyncIteration):
        raise
    except DualPathError as error:
        raise EngineFailure(engine_id, error) from error
    except Exception as error:
        _log.exception("%s raised what it must not", engine_id)
        raise EngineFailure(engine_id, EngineBugError(f"{engine_id} has a bug: {error!r}")) from error


class EngineStream(Generic[T]):
    """An engine's iterator: every item has a deadline, and leaving the block closes it, which cancels it over there."""

    def __init__(self, engine_id: EngineId, items: AsyncIterator[T], timeout_s: float) -> None:
        self._engine_id = engine_id
        self._items = items
        self._timeout_s = timeout_s

    async def __aenter__(self) -> EngineStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        return await ask(self._engine_id, anext(self._items), self._timeout_s)
