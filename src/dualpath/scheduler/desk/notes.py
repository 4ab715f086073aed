"""Notes on their way to the desk: recorded in a gateway, carried out at its seat. ``api.Notes`` is their definition."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from dualpath.scheduler.desk.api import Note, Notes

_encode = msgspec.msgpack.Encoder().encode


@functools.cache
def _decoders() -> Mapping[str, msgspec.msgpack.Decoder[tuple[Any, ...]]]:
    members = {name: member for name, member in vars(Notes).items() if not name.startswith("_")}
    return {name: _decoder(member) for name, member in members.items() if inspect.isfunction(member)}


def _decoder(function: Callable[..., None]) -> msgspec.msgpack.Decoder[tuple[Any, ...]]:
    _, *parameters = inspect.signature(function, eval_str=True).parameters.values()
    arguments: Any = tuple[tuple(parameter.annotation for parameter in parameters)]  # type: ignore[misc]
    return msgspec.msgpack.Decoder(arguments)


def carry_out(notes: Iterable[Note], seat: Notes) -> None:
    for note in notes:
        getattr(seat, note.name)(*_decoders()[note.name].decode(note.arguments))


class _Recorder:
    def noted(self, name: str, arguments: tuple[Any, ...]) -> None:
        raise NotImplementedError


def _record(name: str) -> Callable[..., None]:
    def record(self: _Recorder, *arguments: Any) -> None:
        self.noted(name, arguments)

    return record


def note_of(name: str, arguments: tuple[Any, ...]) -> Note:
    return Note(name, _encode(arguments))


Recorder: Any = type("Recorder", (_Recorder,), {name: _record(name) for name in _decoders()})
