"""What travels between the scheduler's process and a node's: batches of messages in msgpack, all control, no KV.

A call has one number for its whole life. It ends with exactly one ``Result`` or ``Failed``; a stream's items come
before its end as ``Item``. ``Cancel`` asks for an early end, and the answer to it is that same last message: nothing
of the call runs any more when it arrives.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from dualpath.core import errors
from dualpath.core.errors import (
    DualPathError,
    EngineBugError,
    EngineGoneError,
    EngineLostError,
    InvalidRequestError,
    OverloadedError,
)
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.keys import Namespace
from dualpath.protocol.api import EngineInfo


class _Message(msgspec.Struct, array_like=True, tag=True):
    """Tagged with its class's name, without field names."""


# -- to the node: what to do ------------------------------------------------------------------------------------------


class Call(_Message):
    call_id: int
    engine_id: EngineId
    method: str
    arguments: msgspec.Raw  # a tuple: ``protocol.methods``


class Cancel(_Message):
    call_id: int


# -- to the scheduler: what came of it --------------------------------------------------------------------------------


class Item(_Message):
    """One item of a stream. A decode step of many requests is many items of one batch."""

    call_id: int
    value: msgspec.Raw


class Result(_Message):
    call_id: int
    value: msgspec.Raw


class Failed(_Message):
    call_id: int
    error: Failure


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """An exception by its class's name. One of no class of ours is an engine's bug; none says it is gone."""

    kind: str
    message: str
    details: tuple[str | None, ...] = ()

    @staticmethod
    def of(error: BaseException) -> Failure:
        if isinstance(error, InvalidRequestError):
            return Failure(type(error).__name__, str(error), (error.param, error.code))
        if isinstance(error, OverloadedError):
            return Failure(type(error).__name__, str(error), (repr(error.retry_after_s),))
        if isinstance(error, DualPathError):
            return Failure(type(error).__name__, str(error))
        return Failure(EngineBugError.__name__, repr(error))

    def error(self) -> DualPathError:
        kind = getattr(errors, self.kind, None)
        if kind is InvalidRequestError:
            param, code = self.details
            return InvalidRequestError(self.message, param=param, code=code)
        if kind is OverloadedError:
            return OverloadedError(self.message, retry_after_s=float(self.details[0] or 1.0))
        if kind is EngineGoneError:  # whoever answers is not
            return EngineLostError(self.message)
        if isinstance(kind, type) and issubclass(kind, DualPathError):
            return kind(self.message)
        return DualPathError(f"{self.kind}: {self.message}")


# -- the node itself --------------------------------------------------------------------------------------------------


class NodeReport(msgspec.Struct, frozen=True):
    """What the scheduler's process must know of a node that is ready: it has no model of its own."""

    namespace: Namespace
    model_name: str
    max_context_tokens: int
    engines: tuple[EngineInfo, ...]
    limits: bytes  # the composition root's, from the model's profile on that node
    host: str
    pid: int


class Opened(msgspec.Struct, frozen=True):
    """Answer to the opening of a session. ``report`` is there once the engines are; until then ask again.

    ``held``: what requests of the caller's former sessions still hold here. ``callers``: the others that there are.
    """

    incarnation: str  # of the process: another one means that the former has ended, with all that it moved
    progress: tuple[str, ...] = ()  # lines for people, since the last answer
    failure: Failure | None = None  # why the engines could not be started
    report: NodeReport | None = None
    held: tuple[tuple[EngineId, RequestId], ...] = ()
    callers: tuple[str, ...] = ()


ToNode: TypeAlias = Call | Cancel
ToScheduler: TypeAlias = Item | Result | Failed

_encoder = msgspec.msgpack.Encoder()
_to_node = msgspec.msgpack.Decoder(list[ToNode])
_to_scheduler = msgspec.msgpack.Decoder(list[ToScheduler])
_opened = msgspec.msgpack.Decoder(Opened)


def encode(message: Any) -> bytes:
    """A message, a list of messages, or a value for ``Raw``."""
    return _encoder.encode(message)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


def decode_to_node(batch: bytes) -> list[ToNode]:
    return _to_node.decode(batch)


def decode_to_scheduler(batch: bytes) -> list[ToScheduler]:
    return _to_scheduler.decode(batch)


def decode_opened(answer: bytes) -> Opened:
    return _opened.decode(answer)
