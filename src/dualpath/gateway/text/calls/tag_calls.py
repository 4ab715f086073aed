"""Calls written in tags, as Qwen3-Coder does: ``<function=read><parameter=path>a.py</parameter></function>``.

Other families have other tags. Values are plain text in all of them: the tool's schema says what of it is a number, a
list or a string, where no attribute does.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.gateway.text.calls.sink import CallSink
from dualpath.gateway.text.reader import Need, Reader

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
_NAMED = re.compile(r"""\s*(["']?)([^"']+)\1(?:\s+string\s*=\s*["']?(true|false)["']?)?\s*""")
_MAX_REFERENCES = 16  # of schemas that stand for each other


@dataclass(frozen=True, slots=True)
class Value:
    key: str
    text: str
    is_string: bool | None  # None: the schema says it
    end: int  # where what follows begins


@dataclass(frozen=True, slots=True)
class Tags:
    """``function`` NAME ``>``, parameters, ``end_function``; a parameter is ``parameter`` KEY ``>`` VALUE and its end.
    ``value_layout``: the line breaks around a value are not part of it."""

    function: str
    end_function: str
    parameter: str
    end_parameter: str
    value_layout: bool = False

    def name(self, reader: Reader, i: int) -> Need[tuple[str, int]]:
        """The name of the function whose tag begins at ``i``, and the place behind it; no name where there is none."""
        if not (yield from reader.sees(i, self.function)):
            return "", i
        name, _, i = yield from self._named(reader, i + len(self.function))
        return name, i

    def value(self, reader: Reader, i: int) -> Need[Value | None]:
        """The parameter at ``i``. One without an end tag ends where the next begins, or the function ends."""
        if not (yield from reader.sees(i, self.parameter)):
            return None
        key, is_string, start = yield from self._named(reader, i + len(self.parameter))
        ends = (self.end_parameter, "\n" + self.parameter, "\n" + self.end_function)
        found = (yield from reader.find(start, *ends)) if key else None
        if found is None:
            return None
        end, tag = found
        text = reader.text(start, end)
        if self.value_layout:
            text = text.removeprefix("\n").removesuffix("\n")
        return Value(key, text, is_string, end + (len(tag) if tag == self.end_parameter else 0))

    def _named(self, reader: Reader, i: int) -> Need[tuple[str, bool | None, int]]:
        """What stands before ``>`` on this line, whether it says that its value is a string, and the place behind."""
        found = yield from reader.find(i, ">", "\n", "<")
        named = _NAMED.fullmatch(reader.text(i, found[0])) if found is not None and found[1] == ">" else None
        if found is None or named is None:
            return "", None, i
        is_string = None if named[3] is None else named[3] == "true"
        return named[2].strip(), is_string, found[0] + 1


@dataclass(frozen=True, slots=True)
class KeyTags(Tags):
    """A name without a tag, and keys and values in tags of their own, as GLM-4.5 has them."""

    end_key: str = "</arg_key>"
    begin_value: str = "<arg_value>"

    def name(self, reader: Reader, i: int) -> Need[tuple[str, int]]:
        found = yield from reader.find(i, "\n", self.parameter, self.end_function)
        name = reader.text(i, found[0]).strip() if found else ""
        return ("", i) if found is None or re.search(r"[\s<>{}\"]", name) else (name, found[0])

    def value(self, reader: Reader, i: int) -> Need[Value | None]:
        if not (yield from reader.sees(i, self.parameter)):
            return None
        i += len(self.parameter)
        found = yield from reader.find(i, self.end_key, "\n", self.end_function)
        if found is None or found[1] != self.end_key:
            return None
        key = reader.text(i, found[0]).strip()
        i = yield from reader.skip_blank(found[0] + len(self.end_key))
        if not key or not (yield from reader.sees(i, self.begin_value)):
            return None
        i += len(self.begin_value)
        found = yield from reader.find(i, self.end_parameter, "\n" + self.parameter, "\n" + self.end_function)
        if found is None:
            return None
        end, tag = found
        return Value(key, reader.text(i, end), None, end + (len(tag) if tag == self.end_parameter else 0))


QWEN_CODER = Tags("<function=", "</function>", "<parameter=", "</parameter>", value_layout=True)
SEED = Tags("<function=", "</function>", "<parameter=", "</parameter>")
INVOKE = Tags("<invoke name=", "</invoke>", "<parameter name=", "</parameter>")
DSML = Tags("<｜DSML｜invoke name=", "</｜DSML｜invoke>", "<｜DSML｜parameter name=", "</｜DSML｜parameter>")
GLM = KeyTags("", "</tool_call>", "<arg_key>", "</arg_value>")


def read_tagged_call(
    reader: Reader,
    i: int,
    sink: CallSink,
    tools: Sequence[Mapping[str, Any]],
    tags: Tags,
    *,
    only: Container[str] | None = None,
) -> Need[bool]:
    """Take a call at ``i`` and all before it; False, and nothing is taken, where none is. It is one when its first
    parameter is complete or it ends. ``only``: the names that it may have, where nothing else says that it is one."""
    name, i = yield from tags.name(reader, i)
    if not name or (only is not None and name not in only):
        return False
    i = yield from reader.skip_blank(i)
    tag = yield from reader.sees(i, tags.parameter, tags.end_function)
    if not tag:
        return False
    if tag == tags.end_function:
        reader.take(i + len(tag))
        sink.whole(name, None)
        return True
    parameters = _parameters(tools, name)
    separator = "{"
    while value := (yield from tags.value(reader, i)):
        reader.take(value.end)
        if separator == "{":
            sink.begin(name)
        sink.arguments(f"{separator}{json.dumps(value.key, ensure_ascii=False)}: {_json(value, parameters)}")
        separator = ", "
        i = yield from reader.skip_blank(0)
        if (yield from reader.sees(i, tags.end_function)):
            reader.take(i + len(tags.end_function))
            sink.arguments("}")
            break
    return separator == ", "  # a call without an end stays as it is: nothing is made up


def _parameters(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The schema of a tool's arguments."""
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, dict) and function.get("name") == name:
            parameters = function.get("parameters")
            return parameters if isinstance(parameters, dict) else {}
    return {}


def _json(value: Value, parameters: Mapping[str, Any]) -> str:
    """The value as JSON of a type that its schema allows; a string where it is none."""
    plain = value.text.strip()
    if value.is_string is False and (plain == "null" or _loaded(plain) is not None):
        return plain
    properties = parameters.get("properties")
    schema = properties.get(value.key) if isinstance(properties, dict) else None
    types = {"string"} if value.is_string else set(schema_types(schema, parameters))
    if "null" in types and plain.lower() in ("null", "none"):
        return "null"
    if "string" not in types:
        literal = plain.lower() if "boolean" in types and plain.lower() in ("true", "false") else plain
        found = _loaded(literal)
        if found is None and types & {"object", "array"}:
            found = _python_literal(plain)  # as templates print objects that are not made JSON first
            literal = "" if found is None else json.dumps(found, ensure_ascii=False)
        for name in types & _JSON_TYPES.keys():
            if isinstance(found, _JSON_TYPES[name]) and (name == "boolean") == isinstance(found, bool):
                return literal
    return json.dumps(value.text, ensure_ascii=False)


def _loaded(text: str) -> object:
    """None where it is no JSON, and for null."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _python_literal(text: str) -> object:
    """An object or array as Python writes it; None where it is none that JSON could say."""
    try:
        value = ast.literal_eval(text) if text[:1] in ("{", "[") else None
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def schema_types(schema: object, root: Mapping[str, Any] | None = None, num_references: int = 0) -> Iterator[str]:
    """All types that a schema names, those of its alternatives with them. ``root`` has what it may refer to."""
    if not isinstance(schema, dict) or num_references > _MAX_REFERENCES:
        return
    own = schema.get("type")
    yield from [own] if isinstance(own, str) else [item for item in own or () if isinstance(item, str)]
    if root is not None and "$ref" in schema:
        yield from schema_types(referred(schema, root), root, num_references + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        alternatives = schema.get(key)
        for item in alternatives if isinstance(alternatives, list) else ():
            yield from schema_types(item, root, num_references + 1)


def referred(schema: Mapping[str, Any], root: Mapping[str, Any]) -> object:
    """What ``$ref`` stands for, by its place in ``root``; None where it is elsewhere."""
    place = schema.get("$ref")
    if not isinstance(place, str) or not place.startswith("#/"):
        return None
    target: object = root
    for key in place[2:].split("/"):
        target = target.get(key) if isinstance(target, Mapping) else None
    return target


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are no JSON
