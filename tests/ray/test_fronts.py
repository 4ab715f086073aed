"""A front's life: a start that fails, one that is given up, one that comes again, and its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dualpath.config import ModelConfig, ServeConfig, StoreConfig
from dualpath.core.errors import ConfigError
from dualpath.gateway.http import server
from dualpath.ray import fronts
from dualpath.ray.fronts import Front

CONFIG = ServeConfig(model=ModelConfig(dir=Path()), store=StoreConfig(url="memory://"))
SOON_S = 10.0


class ScriptedFront(Front):
    """``starts``: what each does. ``said``: what has happened."""

    def __init__(self, *starts: Callable[[ScriptedFront, asyncio.Event], Awaitable[None]]) -> None:
        self._starts = iter(starts)
        self.said: list[str] = []
        super().__init__(CONFIG, "test")

    async def _serve(self, stop: asyncio.Event) -> None:
        try:
            await next(self._starts)(self, stop)
        except BaseException as error:
            self.said.append(type(error).__name__)
            raise

    def on_ready(self) -> None:
        self.said.append("ready")
        self._on_ready()

    async def until(self, said: list[str]) -> None:
        async with asyncio.timeout(SOON_S):
            while self.said != said:  # noqa: ASYNC110  another thread says it
                await asyncio.sleep(0.01)

    async def end(self, drain_s: float) -> None:
        await asyncio.wait_for(self.stop(drain_s), SOON_S)


async def fails(front: ScriptedFront, stop: asyncio.Event) -> None:
    raise ConfigError("no")


async def hangs(front: ScriptedFront, stop: asyncio.Event) -> None:
    front.said.append("starting")
    await asyncio.Event().wait()


async def serves(front: ScriptedFront, stop: asyncio.Event) -> None:
    front.on_ready()
    await stop.wait()
    front.said.append("stopped")


async def serves_and_fails(front: ScriptedFront, stop: asyncio.Event) -> None:
    front.on_ready()
    raise OSError("disk")


async def drains_for_ever(front: ScriptedFront, stop: asyncio.Event) -> None:
    await serves(front, stop)
    await asyncio.Event().wait()


@pytest.fixture
def restarted(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Ray's word for an actor that it has started again."""
    context = SimpleNamespace(was_current_actor_reconstructed=False)
    monkeypatch.setattr(fronts, "import_ray", lambda: SimpleNamespace(get_runtime_context=lambda: context))
    monkeypatch.setattr(fronts, "set_up_process", lambda config: None)
    monkeypatch.setattr(fronts, "_RETRY_S", 0.01)
    return context


async def test_a_first_start_that_fails_is_told_and_not_tried_again(restarted: SimpleNamespace) -> None:
    front = ScriptedFront(fails, serves)
    look = await front.look(0, SOON_S)
    assert look.failure is not None
    assert str(look.failure.error()) == "no"
    await front.end(0.0)
    assert front.said == ["ConfigError"]


async def test_one_that_ray_has_started_again_tries_until_it_can(restarted: SimpleNamespace) -> None:
    restarted.was_current_actor_reconstructed = True
    front = ScriptedFront(fails, fails, serves)
    await front.until(["ConfigError", "ConfigError", "ready"])
    assert (await front.look(0, SOON_S)).failure is None
    await front.end(1.0)
    assert front.said[-1] == "stopped"


async def test_one_that_fails_while_it_serves_starts_again(restarted: SimpleNamespace) -> None:
    front = ScriptedFront(serves_and_fails, fails, serves)
    await front.until(["ready", "OSError", "ConfigError", "ready"])
    await front.end(1.0)
    assert front.said[-1] == "stopped"


async def test_the_wait_for_another_start_is_given_up(
    restarted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fronts, "_RETRY_S", 1e3)
    restarted.was_current_actor_reconstructed = True
    front = ScriptedFront(fails, serves)
    await front.until(["ConfigError"])
    await front.end(30.0)
    assert front.said == ["ConfigError"]


@pytest.mark.parametrize("before", [[], [serves_and_fails]], ids=["first", "second"])
async def test_a_start_is_given_up_however_long_requests_would_get(restarted: SimpleNamespace, before: list) -> None:
    front = ScriptedFront(*before, hangs)
    await front.until([*(["ready", "OSError"] if before else []), "starting"])
    await front.end(30.0)
    assert front.said[-1] == "CancelledError"


async def test_one_that_is_told_before_it_has_a_loop_does_not_start(
    restarted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, run = threading.Event(), server.run
    monkeypatch.setattr(server, "run", lambda main: (gate.wait(), run(main)))
    front = ScriptedFront(serves)
    ending = asyncio.create_task(front.end(30.0))
    await asyncio.sleep(0.05)
    gate.set()
    await ending
    assert front.said == []


async def test_a_second_word_ends_at_once_what_the_first_lets_run(restarted: SimpleNamespace) -> None:
    front = ScriptedFront(drains_for_ever)
    await front.until(["ready"])
    draining = asyncio.create_task(front.end(30.0))
    await front.until(["ready", "stopped"])
    await front.end(0.0)
    await draining
    assert front.said == ["ready", "stopped", "CancelledError"]
