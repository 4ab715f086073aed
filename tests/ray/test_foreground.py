"""Ctrl-C and its repetition while a system of nodes runs, and while what was started is ended. Ray is not needed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dualpath.cluster.signals import SAME_WISH_S
from dualpath.config import ModelConfig, ServeConfig, StoreConfig
from dualpath.core.errors import DualPathError
from dualpath.ray import runtime
from dualpath.ray import system as system_module
from dualpath.ray.foreground import first_signal
from dualpath.ray.run_dir import MARKER, RunDir, State
from dualpath.ray.system import System

BOTH = [signal.SIGINT, signal.SIGTERM]
NAME = "impatient"


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", BOTH)
def test_signals_close_together_are_one_wish_and_a_later_one_is_another(number: signal.Signals) -> None:
    with first_signal() as came:
        assert not came.is_set()
        _send(number)
        _send(number)
        assert came.is_set()
    _send(number)  # still the same wish
    time.sleep(SAME_WISH_S)
    with pytest.raises(KeyboardInterrupt):
        _send(number)


def test_a_signal_after_a_run_without_any_interrupts() -> None:
    with first_signal():
        pass
    with pytest.raises(KeyboardInterrupt):
        _send()


class _Started:
    """A system whose start waits, with a process of its own, and whose orderly end never comes."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
        for name in ("check", "check_shared_store", "require_ray", "quick"):
            monkeypatch.setattr(system_module, name, lambda *_: None)
        monkeypatch.setattr(system_module, "end_actors", self._end_in_order)
        monkeypatch.setattr(System, "_up", lambda system, _: self._start(system))
        self.run_dir = RunDir.of(NAME)
        self.child: subprocess.Popen[bytes] | None = None
        self.state = State(NAME, "127.0.0.1:1", "n", True, (), ())
        self.failure: Callable[[], None] = _send
        self.said: list[str] = []

    def _start(self, _: System) -> None:
        self.run_dir.write(self.state)
        # In a session of its own: all that is in one with a marked process is ended, these tests too.
        marked = os.environ | {MARKER: str(self.run_dir.path)}
        self.child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], env=marked, start_new_session=True
        )
        self.failure()
        time.sleep(60)

    def _end_in_order(self, *_: object) -> None:
        _send()  # the same Ctrl-C, once more
        time.sleep(SAME_WISH_S + 0.1)
        _send(signal.SIGTERM)  # another wish
        time.sleep(60)

    def up(self) -> None:
        config = ServeConfig(model=ModelConfig(dir=Path("model")), store=StoreConfig(url="kv"))
        System(NAME, self.said.append).up(config)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Started]:
    found = _Started(tmp_path, monkeypatch)
    yield found
    if found.child is not None:
        found.child.kill()
        found.child.wait()


def test_who_interrupts_a_start_and_does_not_wait_for_its_end_leaves_nothing(started: _Started) -> None:
    with pytest.raises(KeyboardInterrupt):
        started.up()
    assert started.child is not None
    assert started.child.wait(5.0) != 0
    assert not started.run_dir.is_there
    assert started.said == ["ending what was started"]


def test_signals_while_all_is_ended_at_once_change_nothing(started: _Started, monkeypatch: pytest.MonkeyPatch) -> None:
    end_processes = RunDir.end_processes

    def end(run_dir: RunDir, grace_s: float) -> None:
        _send()
        _send(signal.SIGTERM)
        end_processes(run_dir, grace_s)

    monkeypatch.setattr(RunDir, "end_processes", end)
    with pytest.raises(KeyboardInterrupt):
        started.up()
    assert not started.run_dir.is_there


def test_the_error_of_a_start_is_told_however_its_end_went(started: _Started) -> None:
    def fail() -> None:
        raise DualPathError("no such thing")

    started.failure = fail
    with pytest.raises(DualPathError, match="no such thing"):
        started.up()
    assert not started.run_dir.is_there


def test_nodes_on_a_ray_of_others_are_left_to_down(started: _Started) -> None:
    started.state = dataclasses.replace(started.state, is_own_ray=False)
    with pytest.raises(KeyboardInterrupt):
        started.up()
    assert started.run_dir.read() == started.state
    assert started.said[-1] == f"nodes may still run: dualpath down --cluster-name {NAME} ends them"


def test_signals_do_not_break_off_the_parting_from_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that comes while it is joined leave this process its driver."""
    has_parted = False

    def shutdown() -> None:
        nonlocal has_parted
        _send()
        has_parted = True

    def connect(*_: str) -> types.ModuleType:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _send()
        return fake

    fake = types.ModuleType("ray")
    fake.shutdown = shutdown  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(runtime, "connect", connect)
    with pytest.raises(KeyboardInterrupt), runtime.connected("127.0.0.1:1", "n"):
        raise AssertionError("it was not joined")
    assert has_parted
