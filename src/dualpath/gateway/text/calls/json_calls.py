"""A call written as a JSON object: ``{"name": ..., "arguments": {...}}``, members in any order."""

from __future__ import annotations

from collections.abc import Container

from dualpath.gateway.text.calls.sink import CallSink
from dualpath.gateway.text.json_text import string_value, take_object, value_end
from dualpath.gateway.text.reader import Need, Reader

_ARGUMENTS = ("arguments", "parameters")
_MEMBERS = ("name", *_ARGUMENTS, "type", "id")


def read_json_call(
    reader: Reader, i: int, sink: CallSink, markers: tuple[str, ...], *, only: Container[str] | None = None
) -> Need[bool]:
    """Take a call at ``i`` and all before it; False, and nothing is taken, where none is. Arguments are streamed once
    the name is known. ``markers`` outside of strings end it. ``only``: nothing says that it is a call but itself, so
    it must have arguments and one of these names."""
    name = arguments = None
    call_id = ""
    if (yield from reader.peek(i)) != "{":
        return False
    i += 1
    while True:
        i = yield from reader.skip_blank(i, " \t\r\n,")
        if (yield from reader.peek(i)) == "}":
            if name is None or (only is not None and arguments is None):
                return False
            reader.take(i + 1)
            sink.whole(name, arguments, call_id)
            return True
        member = yield from _member(reader, i, markers)
        if member is None or (only is not None and member[0] not in _MEMBERS):
            return False
        key, i = member
        if key in _ARGUMENTS and name is not None and arguments is None and (yield from reader.peek(i)) == "{":
            reader.take(i)
            sink.begin(name, call_id)
            yield from take_object(reader, markers, sink.arguments)
            yield from _take_rest(reader, markers)
            return True
        end = yield from value_end(reader, i, markers)
        if end is None:
            return False
        if key == "name" and name is None:
            name = string_value(reader.text(i, end))
            if not name or (only is not None and name not in only):
                return False
        elif key == "id":
            call_id = string_value(reader.text(i, end)) or ""
        elif key in _ARGUMENTS and arguments is None:
            arguments = reader.text(i, end)
            if arguments.startswith('"') and string_value(arguments) is None:
                return False
        i = end


def read_arguments(
    reader: Reader, i: int, name: str, sink: CallSink, markers: tuple[str, ...], call_id: str = ""
) -> Need[bool]:
    """Take a call whose name, and perhaps id, stood before its arguments, which begin at ``i``; False if none do."""
    if not name:
        return False
    if (yield from reader.peek(i)) == "{":
        reader.take(i)
        sink.begin(name, call_id)
        yield from take_object(reader, markers, sink.arguments)
        return True
    if (yield from reader.sees(i, "null")):
        reader.take(i + len("null"))
        sink.whole(name, None, call_id)
        return True
    return False


def _member(reader: Reader, i: int, markers: tuple[str, ...]) -> Need[tuple[str, int] | None]:
    """The key of an object's member that begins at ``i``, and where its value begins."""
    if (yield from reader.peek(i)) != '"':
        return None
    end = yield from value_end(reader, i, markers)
    key = None if end is None else string_value(reader.text(i, end))
    if end is None or key is None:
        return None
    i = yield from reader.skip_blank(end)
    if (yield from reader.peek(i)) != ":":
        return None
    return key, (yield from reader.skip_blank(i + 1))


def _take_rest(reader: Reader, markers: tuple[str, ...]) -> Need[None]:
    """Members behind the arguments, up to the object's end; where it has none, nothing is taken."""
    i = 0
    while True:
        i = yield from reader.skip_blank(i, " \t\r\n,")
        if (yield from reader.peek(i)) == "}":
            reader.take(i + 1)
            return
        member = yield from _member(reader, i, markers)
        end = None if member is None else (yield from value_end(reader, member[1], markers))
        if end is None:
            return
        i = end
