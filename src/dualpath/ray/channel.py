"""A channel over Ray actor calls: about a millisecond each, in no order of their own (the link keeps the order)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TypeVar

from dualpath.core.errors import DualPathError, EngineGoneError
from dualpath.ray.runtime import Handle, import_ray

T = TypeVar("T")
_RESTARTING = "restarting"  # in the message of an ActorUnavailableError: Ray knows that the process has ended


class RayChannel:
    """Implements ``protocol.channel.Channel``."""

    def __init__(self, actor: Handle) -> None:
        self._ray = import_ray()
        self._actor = actor

    async def open(self, session: str) -> bytes:
        return await ask(self._ray, lambda: self._actor.open.remote(session))

    async def send(self, session: str, batch: bytes) -> None:
        await ask(self._ray, lambda: self._actor.send.remote(session, batch))

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await ask(self._ray, lambda: self._actor.poll.remote(session, max_wait_s))

    def end_process(self) -> None:
        self._ray.kill(self._actor, no_restart=False)


async def ask(ray: ModuleType, call: Callable[[], Awaitable[T]]) -> T:
    """An actor's answer. Raises EngineGoneError where its process is known to have ended, else DualPathError."""
    errors = ray.exceptions
    try:
        return await call()
    except errors.ActorDiedError as error:
        raise EngineGoneError(_first_line(error)) from None
    except errors.ActorUnavailableError as error:
        kind = EngineGoneError if _RESTARTING in str(error) else DualPathError
        raise kind(_first_line(error)) from None
    except errors.RayError as error:  # also what the actor's method raised
        raise DualPathError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
