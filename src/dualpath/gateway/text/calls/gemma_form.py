"""The grammar of a call as Gemma 4 writes it: an object with keys without quotes, and strings in marks of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualpath.gateway.text.calls.form import CallForm, Tool, members
from dualpath.gateway.text.calls.gemma_calls import QUOTE
from dualpath.gateway.text.calls.tag_calls import referred, schema_types
from dualpath.grammar.lark import either, json_value, quoted

_MAX_DEPTH = 16


class GemmaForm(CallForm):
    """Types, keys and options are held; of a text only the end is, and of what has no type nothing but the form."""

    opener, between = "<|tool_call>", ""
    tokens = ("<tool_call|>", QUOTE)

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        return either([self.rules.add(self._call(tool)) for tool in tools])

    def _call(self, tool: Tool) -> str:
        arguments = self._object(tool.schema, tool, 0)
        return f"{quoted(f'call:{tool.name}')} {arguments} {self.mark('<tool_call|>')}"

    def _object(self, schema: Mapping[str, Any], tool: Tool, depth: int) -> str:
        """The required members first."""
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, Mapping) or not properties:
            is_closed = schema.get("additionalProperties") is False
            return quoted("{}") if is_closed or depth == 0 else self._any_object()
        is_required = {key: isinstance(required, list) and key in required for key in properties}
        rules = {
            key: self.rules.add(f"{quoted(key + ':')} {self._value(value, tool, depth + 1)}")
            for key, value in properties.items()
        }
        must, may = ([rules[key] for key in rules if is_required[key] is wanted] for wanted in (True, False))
        return self.rules.add(f"{quoted('{')} {members(must, may, quoted(','))} {quoted('}')}")

    def _value(self, schema: object, tool: Tool, depth: int) -> str:
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return self._any()
        if "$ref" in schema:
            return self._value(referred(schema, tool.schema), tool, depth + 1)
        options = schema.get("enum")
        if isinstance(options, list) and options and all(isinstance(option, str) for option in options):
            return either([f"({self.mark(QUOTE)} {quoted(option)} {self.mark(QUOTE)})" for option in options])
        types = set(schema_types(dict(schema), tool.schema))
        if types == {"string"}:
            return self._string()
        if types and types <= {"integer", "number", "boolean", "null"}:
            return json_value(dict(schema), is_strict=tool.is_strict)
        if types == {"array"} and isinstance(schema.get("items"), Mapping):
            item = self.rules.add(self._value(schema["items"], tool, depth + 1))
            return f'"[" ({item} ("," {item})*)? "]"'
        if types == {"object"} and "properties" in schema:
            return self._object(schema, tool, depth)
        return self._any()

    def _string(self) -> str:
        return f"{self.mark(QUOTE)} {self.until(QUOTE)}"

    def _any(self) -> str:
        scalar = json_value({"type": ["number", "boolean", "null"]}, is_strict=False)
        flat = self.rules.add(f"{self._string()} | {scalar}")
        listed = self.rules.add(f'"[" ({flat} ("," {flat})*)? "]"')
        return self.rules.add(f"{flat} | {listed} | {self._any_object(flat)}")

    def _any_object(self, flat: str = "") -> str:
        value = flat or self.rules.add(self._string())
        member = self.rules.add(f'/[A-Za-z_][A-Za-z0-9_]*/ ":" {value}')
        return self.rules.add(f'"{{" ({member} ("," {member})*)? "}}"')
