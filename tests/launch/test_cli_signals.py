"""The first signal drains (or ends the start), the second one ends at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator

import pytest

from dualpath.launch import signals
from dualpath.launch.signals import INTERRUPTED, SAME_WISH_S, Stopper


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    logging.disable(logging.NOTSET)


def _send(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_for_an_orderly_end(number: signal.Signals) -> None:
    said: list[str] = []
    stopper = Stopper(said.append, drain_s=30.0)

    async def serve() -> int:
        stopper.started()
        _send(number)
        await stopper.stop.wait()
        await asyncio.sleep(0.01)  # the drain
        return 0

    assert asyncio.run(stopper.guard(serve())) == 0
    assert said == ["stopping: running requests get up to 30 s; Ctrl-C again stops at once"]
    assert not stopper.forced


def test_second_signal_cuts_the_drain_short_and_still_closes() -> None:
    said: list[str] = []
    stopper = Stopper(said.append, drain_s=30.0)
    closed = False

    async def serve() -> int:
        nonlocal closed
        try:
            stopper.started()
            _send()
            await stopper.stop.wait()
            await asyncio.sleep(1.5 * SAME_WISH_S)
            _send()
            await asyncio.sleep(60)
            return 0
        finally:
            closed = True

    assert asyncio.run(stopper.guard(serve())) == INTERRUPTED
    assert closed
    assert stopper.forced
    assert said[-1] == "stopping at once"


def test_a_signal_before_the_start_is_complete_ends_the_start() -> None:
    said: list[str] = []
    stopper = Stopper(said.append, drain_s=30.0)

    async def start() -> int:
        _send()
        await asyncio.sleep(60)
        return 0

    assert asyncio.run(stopper.guard(start())) == INTERRUPTED
    assert said == ["stopping before the start is complete; Ctrl-C again stops at once"]


def test_when_closing_hangs_the_process_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "FORCED_CLOSE_S", 0.01)
    exits: list[int] = []
    exited = asyncio.Event()
    monkeypatch.setattr(os, "_exit", lambda code: (exits.append(code), exited.set()))
    stopper = Stopper(lambda _: None, drain_s=30.0)

    async def serve() -> int:
        stopper.started()
        _send()
        await stopper.stop.wait()
        await asyncio.sleep(1.5 * SAME_WISH_S)
        _send()
        try:
            await asyncio.sleep(60)
        finally:
            await exited.wait()  # never, were it not for the deadline
        return 0

    assert asyncio.run(stopper.guard(serve())) == INTERRUPTED
    assert exits == [INTERRUPTED]


def test_an_error_is_not_mistaken_for_an_interruption() -> None:
    async def fail() -> int:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(Stopper(lambda _: None, 1.0).guard(fail()))
