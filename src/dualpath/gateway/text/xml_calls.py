"""A call written in tags, as Qwen3-Coder does: ``<function=read><parameter=path>a.py</parameter></function>``.

Values are plain text there: the tool's schema says what of it is a number, a list or a string.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualpath.gateway.text.call_sink import CallSink
from dualpath.gateway.text.reader import Need, Reader

FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def read_xml_call(reader: Reader, i: int, sink: CallSink, tools: Sequence[Mapping[str, Any]]) -> Need[bool]:
    """Take a call at ``i`` and all before it; False, and nothing is taken, where none is. It is one when its first
    parameter is complete or it ends."""
    if not (yield from reader.sees(i, FUNCTION)):
        return False
    name, i = yield from _name(reader, i + len(FUNCTION))
    i = yield from reader.skip_blank(i)
    tag = yield from reader.sees(i, PARAMETER, END_FUNCTION)
    if not name or not tag:
        return False
    if tag == END_FUNCTION:
        reader.take(i + len(tag))
        sink.whole(name, None)
        return True
    properties = _properties(tools, name)
    separator = "{"
    while parameter := (yield from _parameter(reader, i)):
        key, text, end = parameter
        reader.take(end)
        if separator == "{":
            sink.begin(name)
        sink.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: {_json(text, properties.get(key))}")
        separator = ", "
        i = yield from reader.skip_blank(0)
        if (yield from reader.sees(i, END_FUNCTION)):
            reader.take(i + len(END_FUNCTION))
            sink.arguments("}")
            break
    return separator == ", "  # a call without an end stays as it is: nothing is made up


def _name(reader: Reader, i: int) -> Need[tuple[str, int]]:
    """What stands before ``>`` on this line, and the place behind it; no name where there is none."""
    found = yield from reader.find(i, ">", "\n", "<")
    if found is None or found[1] != ">":
        return "", i
    return reader.text(i, found[0]).strip().strip("\"'"), found[0] + 1


def _parameter(reader: Reader, i: int) -> Need[tuple[str, str, int] | None]:
    """A parameter at ``i``: its name, its text without the line breaks that are layout, and its end. One without an end
    tag ends where the next begins, or the function ends."""
    if not (yield from reader.sees(i, PARAMETER)):
        return None
    key, start = yield from _name(reader, i + len(PARAMETER))
    found = (yield from reader.find(start, END_PARAMETER, "\n" + PARAMETER, "\n" + END_FUNCTION)) if key else None
    if found is None:
        return None
    end, tag = found
    text = reader.text(start, end).removeprefix("\n").removesuffix("\n")
    return key, text, end + (len(tag) if tag == END_PARAMETER else 0)


def _properties(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, dict) and function.get("name") == name:
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, dict) else None
            return properties if isinstance(properties, dict) else {}
    return {}


def _json(text: str, schema: object) -> str:
    """``text`` as JSON of a type that the schema allows; a string where it is none."""
    types = set(schema_types(schema))
    plain = text.strip()
    if "null" in types and plain.lower() in ("null", "none"):
        return "null"
    if "string" not in types:
        literal = plain.lower() if "boolean" in types and plain.lower() in ("true", "false") else plain
        try:
            value = json.loads(literal, parse_constant=_refuse)
        except (ValueError, RecursionError):
            value = None
        for name in types & _JSON_TYPES.keys():
            if isinstance(value, _JSON_TYPES[name]) and (name == "boolean") == isinstance(value, bool):
                return literal
    return json.dumps(text, ensure_ascii=False)


def schema_types(schema: object) -> Iterator[str]:
    """All types that a schema names, those of its alternatives with them."""
    if not isinstance(schema, dict):
        return
    own = schema.get("type")
    yield from [own] if isinstance(own, str) else [item for item in own or () if isinstance(item, str)]
    for key in ("anyOf", "oneOf"):
        alternatives = schema.get(key)
        for item in alternatives if isinstance(alternatives, list) else ():
            if isinstance(item, dict):
                yield from schema_types({"type": item.get("type")})


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are no JSON
