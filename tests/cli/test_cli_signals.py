"""The first signal drains (or ends the start), the second one ends at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualpath.cli.main import main
from dualpath.cluster import signals
from dualpath.cluster.signals import INTERRUPTED, SAME_WISH_S, Stopper, held_back, interrupted_by_signals


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


@pytest.mark.parametrize("earlier", [signal.default_int_handler, signal.SIG_IGN])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_unwind_a_command(number: signal.Signals, earlier: Any) -> None:
    """Wherever they come: in a callback they must not break the loop, which has to wait for what is let go."""
    unwound = False

    async def work() -> None:
        nonlocal unwound
        asyncio.get_running_loop().call_soon(_send, number)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            unwound = True

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, earlier)  # a shell's background command ignores it
        with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
            asyncio.run(work())
        assert unwound
        assert signal.getsignal(signal.SIGINT) is earlier
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_takes_is_held_back_too(number: signal.Signals) -> None:
    reached: list[str] = []
    other = threading.Thread(target=time.sleep, args=(0.2,))  # masks nothing, so the kernel gives it the signal
    other.start()

    def step() -> None:
        with interrupted_by_signals(), held_back():
            _send(number)
            other.join()
            reached.append("the end of the step")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert reached == ["the end of the step"]


def test_a_process_that_is_started_inside_is_not_interrupted_either() -> None:
    with held_back():
        child = subprocess.Popen(["sleep", "0.2"])
        child.send_signal(signal.SIGINT)
        assert child.wait() == 0


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("dualpath.serving.batch", ["batch", "IN", "OUT", "--store", "memory://"]),
        ("dualpath.bench.run_rollout", ["bench", "rollout", "--trace", "synth:32K"]),
        ("dualpath.bench.run_serving", ["bench", "serving", "--trace", "synth:32K", "--aps", "1"]),
    ],
)
def test_commands_with_children_and_scratch_files_unwind_on_sigterm(
    module: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: object) -> int:
        _send(signal.SIGTERM)
        time.sleep(60)
        return 0

    fake = types.ModuleType(module)
    fake.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.chdir(tmp_path)
    Path("IN").touch()
    assert main([*words, "--model", str(tmp_path)]) == INTERRUPTED
    assert capsys.readouterr().err == "dualpath: error: interrupted\n"
