"""Tool calls as model families write them, as grammars: for calls that must come, or must be right when they do."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.gateway.text.xml_calls import END_FUNCTION, END_PARAMETER, FUNCTION, PARAMETER, schema_types
from dualpath.grammar.lark import ANY_TEXT, Rules, either, json_value, quoted

Mark = Callable[[str], str]  # markup as it stands in a rule: text, or one special token


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    schema: Mapping[str, Any]  # of its arguments
    is_strict: bool

    @property
    def arguments(self) -> str:
        return json_value(self.schema, is_strict=self.is_strict)


class CallForm(ABC):
    """``opener`` and what comes behind it are a block; ``between`` stands between two of them, if there may be more."""

    opener: str
    between: str | None = None

    def __init__(self, rules: Rules, mark: Mark) -> None:
        self.rules, self.mark = rules, mark

    @abstractmethod
    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        """The part of a rule behind the opener."""

    def forced(self, tools: Sequence[Tool], *, many: bool) -> str:
        """Calls and nothing else."""
        block = self.rules.add(f"{self.mark(self.opener)} {self.behind(tools, many=many)}")
        if not many or self.between is None:
            return block
        return self.rules.add(f"{block} ({quoted(self.between) if self.between else ''} {block})*")

    def among_text(self, tools: Sequence[Tool]) -> str:
        """Any text, and calls wherever one is begun."""
        behind = self.rules.add(self.behind(tools, many=True))
        mark = self.mark(self.opener)
        text = self.rules.add(ANY_TEXT)
        if mark == quoted(self.opener):
            return self.rules.add(f"({self.rules.ending(self.opener)} {behind})* {text}")
        return self.rules.add(f"{text} ({mark} {behind} {text})*")


def _object(tool: Tool, arguments: str = "arguments") -> str:
    name = json.dumps(tool.name, ensure_ascii=False)
    head = f'{{"name": {name}, "{arguments}": '
    return f"{quoted(head)} {tool.arguments} {quoted('}')}"


def _listed(item: str, separator: str, *, many: bool) -> str:
    return f"{item} ({quoted(separator)} {item})*" if many else item


class HermesForm(CallForm):
    opener, between = "<tool_call>", "\n"

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        called = either([self.rules.add(self.call(tool)) for tool in tools])
        return f"{quoted(chr(10))} {called} {quoted(chr(10))} {self.mark('</tool_call>')}"

    def call(self, tool: Tool) -> str:
        return _object(tool)


class QwenCoderForm(HermesForm):
    """Parameters in the schema's order, not required ones where the model wants them. Text stands as it is."""

    def call(self, tool: Tool) -> str:
        properties, required = tool.schema.get("properties"), tool.schema.get("required")
        shared = {key: tool.schema[key] for key in ("$defs", "definitions") if key in tool.schema}
        parts = [quoted(f"{FUNCTION}{tool.name}>\n")]
        for key, schema in properties.items() if isinstance(properties, dict) else ():
            value = self._value({**shared, **schema} if isinstance(schema, dict) else {}, tool.is_strict)
            rule = self.rules.add(f"{quoted(f'{PARAMETER}{key}>{chr(10)}')} {value}")
            parts.append(rule if isinstance(required, list) and key in required else rule + "?")
        return " ".join([*parts, quoted(END_FUNCTION)])

    def _value(self, schema: dict[str, Any], is_strict: bool) -> str:
        end, types = f"\n{END_PARAMETER}\n", set(schema_types(schema))
        options = schema.get("enum")
        if isinstance(options, list) and options and all(isinstance(option, str) for option in options):
            return f"{either([quoted(option) for option in options])} {quoted(end)}"
        if "string" in types or not types:
            return self.rules.ending(end)
        return f"{json_value(schema, is_strict=is_strict)} {quoted(end)}"


class MistralForm(CallForm):
    """One list of objects."""

    opener = "[TOOL_CALLS]"

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([_object(tool) for tool in tools]))
        return f"{quoted('[')} {_listed(item, ', ', many=many)} {quoted(']')}"


class MistralNameForm(CallForm):
    """A name and its arguments behind each mark, in newer templates."""

    opener, between = "[TOOL_CALLS]", ""

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        return either([self.rules.add(f"{quoted(t.name)} {self.mark('[ARGS]')} {t.arguments}") for t in tools])


class DeepSeekForm(CallForm):
    opener = "<｜tool▁calls▁begin｜>"

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([self._call(tool) for tool in tools]))
        more = f" ({self._gap()} {item})*" if many else ""
        return f"{item}{more} {self.mark('<｜tool▁calls▁end｜>')}"

    def _call(self, tool: Tool) -> str:
        name, separator = quoted(tool.name), self.mark("<｜tool▁sep｜>")
        call = f"{name} {separator} {tool.arguments}"
        return f"{self.mark('<｜tool▁call▁begin｜>')} {call} {self.mark('<｜tool▁call▁end｜>')}"

    def _gap(self) -> str:
        return ""


class DeepSeekBlockForm(DeepSeekForm):
    """V3 and R1: the arguments are in a block of code."""

    def _call(self, tool: Tool) -> str:
        name, separator = quoted(f"{tool.name}\n```json\n"), self.mark("<｜tool▁sep｜>")
        call = f"{quoted('function')} {separator} {name} {tool.arguments} {quoted(chr(10) + '```')}"
        return f"{self.mark('<｜tool▁call▁begin｜>')} {call} {self.mark('<｜tool▁call▁end｜>')}"

    def _gap(self) -> str:
        return quoted("\n")


class LlamaForm(CallForm):
    """Objects without any mark, or behind ``<|python_tag|>``; text does not begin as they do."""

    opener = "<|python_tag|>"

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([_object(tool, "parameters") for tool in tools]))
        return _listed(item, "; ", many=many)

    def forced(self, tools: Sequence[Tool], *, many: bool) -> str:
        return self.rules.add(self.behind(tools, many=many))

    def among_text(self, tools: Sequence[Tool]) -> str:
        text = self.rules.add(r"/[^{](?s:.*)/")
        return self.rules.add(f"({self.mark(self.opener)}? {self.forced(tools, many=True)} | {text})?")


def call_form(calls: str, template: str) -> type[CallForm]:
    """Of calls as ``AnswerFormat`` names them; a family's variants are told by its chat template."""
    if calls == "mistral":
        return MistralNameForm if "[ARGS]" in template else MistralForm
    if calls == "deepseek_v3":
        return DeepSeekBlockForm if "```json" in template else DeepSeekForm
    return {"qwen3_coder": QwenCoderForm, "llama3_json": LlamaForm}.get(calls, HermesForm)
