"""Calls that are made side by side: all come to their end or are ended, and a failure is not lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any


async def all_or_none(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Their results. Raises the first failure, in their order where several have failed; nothing runs on then."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await end_all(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    return [task.result() for task in tasks]


async def each(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Their results. All are made to their end, whatever becomes of the others; then the first failure is raised."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return list(found)


async def end_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def rest(items: AsyncIterator[Any]) -> None:
    """Until there are no more."""
    async for _ in items:
        pass
