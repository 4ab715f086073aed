"""Grammars of calls in tags: parameters in the schema's order, not required ones where the model wants them.

Text stands as it is, so nothing of its schema is held but the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dualpath.gateway.text.calls.form import CallForm, Tool
from dualpath.gateway.text.calls.tag_calls import schema_types
from dualpath.grammar.lark import either, json_value, quoted


class TaggedForm(CallForm):
    """``head`` and ``key`` stand before parameters and a value, with the name in place of ``{}``."""

    head: ClassVar[str]
    key: ClassVar[str]
    end_value: ClassVar[str]
    end_call: ClassVar[str]

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        return either([self.rules.add(self.call(tool)) for tool in tools])

    def call(self, tool: Tool) -> str:
        parts = [self.shown(self.head.replace("{}", tool.name))]
        for key, schema, is_required in parameters(tool):
            rule = self.rules.add(self._parameter(key, schema, tool.is_strict))
            parts.append(rule if is_required else rule + "?")
        return " ".join([*parts, self.shown(self.end_call)])

    def _parameter(self, key: str, schema: dict[str, Any], is_strict: bool) -> str:
        types, options = set(schema_types(schema, schema)), schema.get("enum")
        is_text, end = "string" in types or not types, self.shown(self.end_value)
        if isinstance(options, list) and options and all(isinstance(option, str) for option in options):
            is_text, value = True, f"{either([quoted(option) for option in options])} {end}"
        elif is_text:
            value = self.until(self.end_value)
        else:
            value = f"{json_value(schema, is_strict=is_strict)} {end}"
        return f"{self.shown(self._key(key, is_text))} {value}"

    def _key(self, key: str, is_text: bool) -> str:
        return self.key.replace("{}", key)


def parameters(tool: Tool) -> list[tuple[str, dict[str, Any], bool]]:
    """Name, schema and whether it is required, of each parameter."""
    properties, required = tool.schema.get("properties"), tool.schema.get("required")
    must = required if isinstance(required, list) else []
    shared = {key: tool.schema[key] for key in ("$defs", "definitions") if key in tool.schema}
    return [
        (key, {**shared, **schema} if isinstance(schema, Mapping) else {}, key in must)
        for key, schema in (properties.items() if isinstance(properties, Mapping) else ())
    ]


class QwenCoderForm(TaggedForm):
    """A block for each call."""

    opener, between = "<tool_call>", "\n"
    tokens = ("<tool_call>", "</tool_call>")
    head, key, end_value = "\n<function={}>\n", "<parameter={}>\n", "\n</parameter>\n"
    end_call = "</function>\n</tool_call>"


class SeedForm(TaggedForm):
    opener, between = "<seed:tool_call>", "\n"
    tokens = ("<seed:tool_call>", "</seed:tool_call>")
    head, key, end_value = "\n<function={}>\n", "<parameter={}>", "</parameter>\n"
    end_call = "</function>\n</seed:tool_call>"


class GlmForm(TaggedForm):
    opener, between = "<tool_call>", "\n"
    tokens = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    head, key, end_value = "{}\n", "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n"
    end_call = "</tool_call>"


class GlmDenseForm(GlmForm):
    """4.7: without line breaks."""

    between = ""
    head, key, end_value = "{}", "<arg_key>{}</arg_key><arg_value>", "</arg_value>"


class _InvokeForm(TaggedForm):
    """All calls in one block."""

    closer: ClassVar[str]

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        call = self.rules.add(super().behind(tools, many=many))
        return f"{quoted(chr(10))} {call}{'+' if many else ''} {self.shown(self.closer)}"


class MiniMaxForm(_InvokeForm):
    opener, closer = "<minimax:tool_call>", "</minimax:tool_call>"
    tokens = (opener, closer)
    head, key, end_value = '<invoke name="{}">\n', '<parameter name="{}">', "</parameter>\n"
    end_call = "</invoke>\n"


class DsmlForm(_InvokeForm):
    opener, closer = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"
    tokens = ("｜DSML｜",)
    head = '<｜DSML｜invoke name="{}">\n'
    key, end_value = '<｜DSML｜parameter name="{}" string="IS_TEXT">', "</｜DSML｜parameter>\n"
    end_call = "</｜DSML｜invoke>\n"

    def _key(self, key: str, is_text: bool) -> str:
        return self.key.replace("IS_TEXT", "true" if is_text else "false").replace("{}", key)


class DsmlNewForm(DsmlForm):
    """V4's."""

    opener, closer = "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"
