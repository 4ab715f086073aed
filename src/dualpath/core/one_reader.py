"""A queue with one reader: for that case what ``asyncio.Queue`` does, at less cost."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class OneReader(Generic[T]):
    """Event loop only. The reader's ``while not queue.items: await queue.filled()``, then ``queue.items.popleft()``."""

    __slots__ = ("_waiter", "items")

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        self.items.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def filled(self) -> asyncio.Future[None]:
        """Done with the next ``put``. A future and no coroutine: one frame less for each item to go through."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter
