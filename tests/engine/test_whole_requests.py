"""Device memory of whole requests: first come first served, once per request, nothing left behind."""

from __future__ import annotations

import asyncio

import pytest

from dualpath.core.errors import DeadlineExceededError
from dualpath.core.ids import RequestId
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.workspace import WholeRequests

A, B, C = (RequestId(name) for name in "abc")


async def test_a_request_waits_until_all_its_blocks_are_free_and_keeps_its_place():
    memory = WholeRequests(10, SystemRuntime(), 5.0)
    await memory.reserve(A, 6)
    large, small = asyncio.create_task(memory.reserve(B, 7)), asyncio.create_task(memory.reserve(C, 1))
    await asyncio.sleep(0.01)
    assert not large.done()
    assert not small.done(), "the one behind would fit, but came later"
    memory.release(A)
    await asyncio.gather(large, small)
    assert (memory.used_blocks, memory.peak_blocks) == (8, 8)
    memory.release(B)
    memory.release(C)
    assert memory.used_blocks == 0


async def test_reserving_and_releasing_twice_changes_nothing():
    memory = WholeRequests(10, SystemRuntime(), 5.0)
    await memory.reserve(A, 6)
    await memory.reserve(A, 6)
    assert memory.used_blocks == 6
    memory.release(A)
    memory.release(A)
    memory.release(B)
    assert memory.used_blocks == 0


async def test_who_gives_up_holds_nothing():
    memory = WholeRequests(4, SystemRuntime(), 0.02)
    await memory.reserve(A, 4)
    with pytest.raises(DeadlineExceededError):
        await memory.reserve(B, 1)
    waiting = asyncio.create_task(memory.reserve(C, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    memory.release(A)
    assert memory.used_blocks == 0
